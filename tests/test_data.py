"""The data sets that packages ship or seeds make."""

import math

import pytest
import torch

from halfbridge.training import data


def test_digits_are_the_1797_images_between_minus_one_and_one():
    pytest.importorskip("sklearn")
    images, labels = data.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.dtype == torch.float32


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"halfbridge\[demo\]"):
        data.digits()


def test_noiseless_moons_lie_on_their_two_half_circles():
    points = data.moons(400, seed=3, noise=0.0, dtype=torch.float64)
    upper = (points - torch.tensor([-0.5, -0.25])).norm(dim=1).sub(1.0).abs() < 1e-12
    lower = (points - torch.tensor([0.5, 0.25])).norm(dim=1).sub(1.0).abs() < 1e-12
    assert bool((upper | lower).all())
    assert abs(int(upper.sum()) - 200) < 5.5 * math.sqrt(400 * 0.25)
    assert bool((points[upper, 1] >= -0.25).all())
    assert bool((points[lower, 1] <= 0.25).all())
    assert torch.equal(points, data.moons(400, seed=3, noise=0.0, dtype=torch.float64))


def test_the_ring_has_the_covariance_of_its_circle():
    law = data.ring(6, radius=3.0, std=0.5)
    torch.testing.assert_close(law.mean, torch.zeros(2, dtype=torch.float64), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(law.cov, (9.0 / 2 + 0.25) * torch.eye(2, dtype=torch.float64), rtol=1e-13, atol=1e-13)
