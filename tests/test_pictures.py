"""Pictures of samples show what they say."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from halfbridge.training import pictures

CARD = [223, 227, 232]


def test_a_grid_has_each_image_in_its_place_and_its_shade(tmp_path):
    images = torch.linspace(-1.0, 1.0, 5)[:, None, None, None].expand(5, 1, 4, 6).clone()
    images[3, 0, 2, 5] = -1.0
    pixels = pictures.draw(images, tmp_path / "new" / "grid.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), pixels)
    scale = 640 // (3 * 7)
    gap = scale // 2
    assert pixels.shape == (2 * (4 * scale + gap) + gap, 3 * (6 * scale + gap) + gap, 3)
    for k, shade in enumerate([0, 64, 128, 191, 255]):
        top, left = gap + (k // 3) * (4 * scale + gap), gap + (k % 3) * (6 * scale + gap)
        tile = pixels[top : top + 4 * scale, left : left + 6 * scale].copy()
        if k == 3:
            assert (tile[2 * scale : 3 * scale, 5 * scale :] == 0).all()
            tile[2 * scale : 3 * scale, 5 * scale :] = shade
        assert (tile == shade).all()
    assert (pixels[-gap - 1, -gap - 1] == CARD).all()  # the sixth place is empty
    assert (pixels[0, 0] == CARD).all()


def test_colours_and_the_range_of_values_are_kept():
    image = torch.tensor([0.0, 5.0, 10.0])[None, :, None, None].expand(1, 3, 2, 2)
    assert pictures.grid(image, range=(0.0, 10.0))[320, 320].tolist() == [0, 128, 255]
    assert pictures.grid(torch.tensor([[[[7.0]]]]), range=(0.0, 1.0))[300, 300].tolist() == [255, 255, 255]
    assert pictures.grid(torch.tensor([[[[torch.nan]]]]))[300, 300].tolist() == [0, 0, 0]


def blue(pixels):
    """Where samples were drawn."""
    return (pixels[..., 2].astype(int) - pixels[..., 0]) > 60


def test_points_are_drawn_beside_the_data_in_its_frame(tmp_path):
    data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    pixels = pictures.draw(data[:100] * 0.0 + 0.01, tmp_path / "one.png", data=data)
    low, high = data.min(0).values, data.max(0).values
    span, middle = 0.75 * (high - low).max().item(), (low + high) / 2
    columns = np.nonzero(blue(pixels)[100:])[1]  # below the legend
    across = (columns.mean() - 31) / (pixels.shape[1] - 31)
    assert across == pytest.approx((0.01 - middle[0].item() + span) / (2 * span), abs=0.05)
    stray = data[:100].clone()
    stray[0] *= 1e3
    stray[1] = torch.nan
    assert not np.array_equal(pictures.draw(stray, tmp_path / "two.png", data=data), pixels)


def test_samples_outside_the_frame_are_counted(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    labels = []
    real = Axes.legend
    monkeypatch.setattr(
        Axes,
        "legend",
        lambda self, **how: labels.append([t.get_label() for t in self.collections]) or real(self, **how),
    )
    samples = torch.zeros(10, 2)
    samples[:2] = 1e4
    samples[2] = torch.nan
    pictures.draw(samples, tmp_path / "p.png", data=torch.randn(40, 2, generator=torch.Generator().manual_seed(0)))
    assert labels == [["data", "10 samples, 3 outside the picture"]]


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5)])
def test_other_shapes_are_histograms(tmp_path, shape):
    x = torch.randn(300, *shape, generator=torch.Generator().manual_seed(0))
    pixels = pictures.draw(x, tmp_path / "h.png", data=x)
    assert pixels.shape == (400, 640, 3)
    assert blue(pixels).sum() > 1000 or (pixels[..., 2] > pixels[..., 0]).sum() > 10000


@pytest.mark.parametrize(
    ("module", "samples"), [("PIL", torch.zeros(1, 1, 2, 2)), ("matplotlib.figure", torch.zeros(3, 2))]
)
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, module, samples):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'halfbridge\[train\]'"):
        pictures.draw(samples, tmp_path / "x.png")
