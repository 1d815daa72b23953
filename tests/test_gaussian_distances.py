"""KL and W2 between Gaussians: closed forms, digits near zero, singular covariances."""

import math

import pytest
import torch

from halfbridge.solvers.reference.gaussian import Gaussian, minus_log1p

F64 = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=F64)


def covariance(d, seed, floor=0.05):
    a = torch.randn(d, d, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return a @ a.mT / d + floor * torch.eye(d, dtype=F64)


def points(n, d, seed=0):
    return 2 * torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def kl_1d(m, v, mm, vv):
    return 0.5 * (v / vv - 1 - math.log(v / vv) + (m - mm) ** 2 / vv)


@pytest.mark.parametrize(("m", "v", "mm", "vv"), [(0, 1, 0, 2), (1, 0.5, -1, 3), (0.2, 1e-8, 0, 1), (0, 5, 3, 1e-3)])
def test_distances_in_one_dimension(m, v, mm, vv):
    p, q = Gaussian([m], [[v]]), Gaussian([mm], [[vv]])
    assert p.kl(q) == pytest.approx(kl_1d(m, v, mm, vv), rel=1e-13)
    assert p.w2(q) == pytest.approx(math.hypot(m - mm, math.sqrt(v) - math.sqrt(vv)), rel=1e-13)


def test_distances_agree_with_the_trace_formulas_far_from_zero():
    p, q = Gaussian(points(1, 5)[0], covariance(5, 1)), Gaussian(points(1, 5, 9)[0], covariance(5, 2))
    shift = p.mean - q.mean
    inverse = torch.linalg.inv(q.cov)
    kl = 0.5 * (torch.trace(inverse @ p.cov) - 5 + shift @ inverse @ shift + q.cov.logdet() - p.cov.logdet())
    assert p.kl(q) == pytest.approx(float(kl), rel=1e-12)
    cross = torch.linalg.eigvals(p.cov @ q.cov).real.sqrt().sum()
    w2 = (shift.square().sum() + p.cov.trace() + q.cov.trace() - 2 * cross).sqrt()
    assert p.w2(q) == pytest.approx(float(w2), rel=1e-11)
    assert q.w2(p) == pytest.approx(p.w2(q), rel=1e-12)


def test_distances_add_up_over_independent_coordinates():
    """Variance ratios on both sides of the switch between the two forms of mu - log(1 + mu), in a rotated basis."""
    p, q = tensor([1.1, 0.18, 1.2, 0.01, 2.0]), tensor([1.0, 0.2, 1, 0.1, 2.0])
    rotation = torch.linalg.qr(points(5, 5)).Q
    law, other = (Gaussian(torch.zeros(5), rotation @ torch.diag(v) @ rotation.mT) for v in (p, q))
    kl = sum(kl_1d(0, float(a), 0, float(b)) for a, b in zip(p, q, strict=True))
    assert law.kl(other) == pytest.approx(kl, rel=1e-13)
    assert law.w2(other) == pytest.approx(float((p.sqrt() - q.sqrt()).norm()), rel=1e-13)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-11])
def test_distances_keep_their_digits_near_zero(size):
    """Leading terms in the perturbation E: KL = |C^-1/2 E C^-1/2|^2 / 4, and, with E in the eigenbasis of C,

    W2^2 = sum |E_ij|^2 / (2 (l_i + l_j)). The trace formulas return rounding, or the root of a negative, at 1e-9.
    """
    base = Gaussian(torch.zeros(4), covariance(4, 3, floor=0.3))
    bump = covariance(4, 8) * size
    near = Gaussian(torch.zeros(4), base.cov + bump)
    e = base.eigenvectors.mT @ (near.cov - base.cov) @ base.eigenvectors
    values = base.eigenvalues
    kl = float((e.square() / torch.outer(values, values)).sum()) / 4
    w2 = math.sqrt(float((e.square() / (2 * (values[:, None] + values))).sum()))
    assert near.kl(base) == pytest.approx(kl, rel=30 * size + 1e-9, abs=0)
    assert near.w2(base) == pytest.approx(w2, rel=30 * size + 1e-14 / size, abs=0)
    assert base.kl(base) == 0.0
    assert base.w2(base) < 1e-14


def test_minus_log1p_against_its_series_and_the_logarithm():
    mu = tensor([1e-15, -1e-12, 3e-9, -1e-5])
    torch.testing.assert_close(minus_log1p(mu), mu**2 / 2 - mu**3 / 3 + mu**4 / 4, rtol=1e-14, atol=0)
    mu = tensor([0.5, -0.5, 0.3, -0.4])
    torch.testing.assert_close(minus_log1p(mu), mu - torch.log1p(mu), rtol=1e-14, atol=0)


def test_kl_is_infinite_exactly_where_the_supports_differ():
    line = torch.outer(tensor([3.0, 4]), tensor([3.0, 4])) / 25
    thin, full, point = Gaussian([0, 0], line), Gaussian([0, 0], 1.0), Gaussian([0, 0], 0.0)
    assert thin.kl(full) == math.inf
    assert full.kl(thin) == math.inf
    assert point.kl(thin) == math.inf
    assert point.kl(Gaussian([0, 0], 0.0)) == 0.0
    assert point.kl(Gaussian([0, 1], 0.0)) == math.inf
    assert thin.kl(Gaussian([0, 0], torch.outer(tensor([3.0, -4]), tensor([3.0, -4])))) == math.inf
    assert Gaussian([4, -3], line).kl(thin) == math.inf
    a = points(5, 2)
    assert Gaussian(torch.zeros(5), a @ a.mT).kl(Gaussian(torch.zeros(5), covariance(5, 1))) == math.inf
    assert Gaussian(torch.zeros(5), a @ a.mT).kl(Gaussian(torch.zeros(5), a @ covariance(2, 1) @ a.mT)) < 10
    assert Gaussian([0.6, 0.8], line).kl(Gaussian([0, 0], 2 * line)) == pytest.approx(kl_1d(1, 1, 0, 2), rel=1e-13)


def test_w2_to_a_point_mass_and_between_crossing_lines():
    law = Gaussian(tensor([0.3, -1.0, 2.0]), covariance(3, 1))
    expected = math.sqrt(float((law.mean - 1).square().sum() + law.cov.trace()))
    assert law.w2(Gaussian([1, 1, 1], 0.0)) == pytest.approx(expected, rel=1e-14)
    across, along = torch.diag(tensor([4.0, 0])), torch.diag(tensor([0, 9.0]))
    assert Gaussian([0, 0], across).w2(Gaussian([0, 0], along)) == pytest.approx(math.sqrt(13), rel=1e-14)
