"""`dequantise` and `bits_per_dim`: bins, counters and the bound that joins them."""

import math

import pytest
import torch

from halfbridge.kernels.philox import words
from halfbridge.solvers.dequantise import bits_per_dim, dequantise

F64 = torch.float64
IMAGES = torch.randint(0, 256, (5, 3, 7, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("levels", "low", "high"), [(256, -1.0, 1.0), (300, 0.0, 1.0), (2, -3.0, 5.0)])
def test_values_lie_uniformly_in_their_own_bins(levels, low, high):
    """Mean 1/2, variance 1/12 and no correlation with the level, within 5 standard errors of 40000 values."""
    images = torch.arange(40_000).view(100, 400) % levels
    x = dequantise(images, 3, levels=levels, low=low, high=high, dtype=F64)
    place = (x - low) / (high - low) * levels - images
    assert ((place > 0) & (place < 1)).all()
    n = images.numel()
    assert abs(place.mean() - 0.5) < 5 / math.sqrt(12 * n)
    assert abs(place.var() - 1 / 12) < 5 / math.sqrt(180 * n)
    assert abs(torch.corrcoef(torch.stack([place.flatten(), images.flatten().double()]))[0, 1]) < 5 / n**0.5


def test_the_uniform_number_is_the_documented_word():
    x = dequantise(IMAGES, 2**63 + 5, first=2**40, dtype=F64)
    for i, e in ((0, 0), (4, 41)):
        at = [torch.tensor(v) for v in (e // 4, 2**32 - 2, i, 2**8)]
        w = words(at[0], at[1], (at[2], at[3]), 2**63 + 5)[e % 4]
        want = -1 + 2 * (int(IMAGES[i].flatten()[e]) + (int(w) + 0.5) / 2**32) / 256
        assert float(x[i].flatten()[e]) == pytest.approx(want, rel=1e-15)


def test_a_sample_knows_nothing_of_its_batch(monkeypatch):
    whole = dequantise(IMAGES, 1, first=10)
    assert torch.equal(dequantise(IMAGES[3:4], 1, first=13), whole[3:4])
    monkeypatch.setitem(dequantise.__globals__, "ROWS", 50)
    assert torch.equal(dequantise(IMAGES, 1, first=10), whole)
    assert not torch.equal(dequantise(IMAGES, 2, first=10), whole)
    assert whole.dtype == torch.float32
    assert whole.shape == IMAGES.shape


@pytest.mark.parametrize(
    ("levels", "low", "high", "offset"), [(256, -1.0, 1.0, 7), (256, 0.0, 1.0, 8), (2, 0.0, 4.0, -1)]
)
def test_bits_of_a_density_that_is_flat_in_each_bin_are_those_of_the_discrete_law(levels, low, high, offset):
    log_p = torch.randn(levels, dtype=F64, generator=torch.Generator().manual_seed(1)).log_softmax(0)
    density = log_p - math.log((high - low) / levels)  # so that it integrates to P over a bin
    bits = bits_per_dim(3 * density, 3, levels=levels, low=low, high=high)
    assert torch.allclose(bits, -log_p / math.log(2), rtol=1e-12)
    assert float(bits_per_dim(torch.zeros(()), 5, levels=levels, low=low, high=high)) == offset


BAD = {
    "floats": (lambda: dequantise(IMAGES / 255, 0), "images must be a tensor of an integer dtype, got torch.float32"),
    "list": (lambda: dequantise([1], 0), "got list"),
    "booleans": (lambda: dequantise(IMAGES > 3, 0), "pass integers"),
    "scalar": (lambda: dequantise(IMAGES[0, 0, 0, 0], 0), "pass integers"),
    "range": (lambda: dequantise(IMAGES, 0, levels=16), "levels = 16 has 0 to 15"),
    "negative": (lambda: dequantise(-IMAGES.int(), 0), "values from -2"),
    "dtype": (lambda: dequantise(IMAGES, 0, dtype=torch.int32), "dtype = torch.int32"),
    "seed": (lambda: dequantise(IMAGES, -1), "`seed` = -1"),
    "levels": (lambda: dequantise(IMAGES, 0, levels=1), "levels = 1"),
    "ends": (lambda: dequantise(IMAGES, 0, low=1.0), "low = 1.0 must be below high = 1.0"),
    "low": (lambda: bits_per_dim(torch.zeros(1), 3, low=-math.inf), "low = -inf"),
    "dims": (lambda: bits_per_dim(torch.zeros(1), 0), "dims = 0"),
    "number": (lambda: bits_per_dim(-3.0, 2), "log_prob must be a tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_no_images_stay_none():
    assert dequantise(IMAGES[:0], 0).shape == (0, 3, 7, 2)
