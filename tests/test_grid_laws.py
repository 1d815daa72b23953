"""What a Fokker-Planck run returns and refuses: samples, moments, warnings, errors."""

import math
import warnings

import numpy as np
import pytest
import torch
from grid_problems import F64, MIXTURE, axis, density, gaussian

import halfbridge as hb
from halfbridge.solvers.reference.fokker_planck import fokker_planck
from halfbridge.solvers.reference.nodes import Nodes


def kolmogorov(values, cdf):
    """sqrt(n) sup |F_n - F|: above 2.1 with probability 3e-4."""
    n = len(values)
    f = cdf(values.sort().values)
    steps = torch.arange(n + 1, dtype=F64) / n
    return math.sqrt(n) * float(torch.maximum((f - steps[:-1]).abs().max(), (steps[1:] - f).abs().max()))


def test_samples_follow_the_interpolated_density():
    x = torch.tensor([0.0, 0.5, 1.5, 2.0], dtype=F64)
    p = torch.tensor([0.2, 0.8, 0.4, 0.0], dtype=F64)
    nodes = Nodes(x)
    p = p / torch.trapezoid(p, x)
    z = nodes.sample(p.numpy(), 20000, seed=5)

    def cdf(v):
        i = torch.searchsorted(x, v, right=True).clamp(1, 3) - 1
        below = torch.cumulative_trapezoid(p, x)
        u, h = v - x[i], (x[1:] - x[:-1])[i]
        start = torch.cat([torch.zeros(1, dtype=F64), below])[i]
        return start + u * p[i] + u**2 / (2 * h) * (p[i + 1] - p[i])

    assert kolmogorov(z[:, 0], cdf) < 2.1


def test_samples_in_two_dimensions_follow_the_law_and_shard():
    x, y = axis(-4, 4, 41), axis(-3, 5, 51)
    law = hb.reference.Gaussian([0.2, 0.6], [[0.6, 0.3], [0.3, 0.5]])
    result = fokker_planck(hb.SDE(lambda t, z: 0 * z, 0.3), (x, y), density(law, x, y), [0.0, 1e-3], tol=1e-2)
    n = 40000
    z = result.sample(n, seed=11)
    assert z.dtype == F64
    mean, cov = law.mean, law.cov + torch.diag(torch.tensor([(8 / 40) ** 2 / 6, (8 / 50) ** 2 / 6], dtype=F64))
    assert float(((z.mean(0) - mean) / (cov.diagonal() / n).sqrt()).abs().max()) < 4  # standard errors
    slack = 4 * (cov.diagonal()[:, None] * cov.diagonal() + cov**2).sqrt() / math.sqrt(n)
    assert bool(((torch.cov(z.T) - cov).abs() < slack + 1e-3).all())
    for k in range(2):
        std = cov[k, k].sqrt()
        assert kolmogorov(z[:, k], lambda v, k=k, std=std: torch.special.ndtr((v - mean[k]) / std)) < 2.1
    assert torch.equal(z[100:160], result.sample(60, seed=11, first=100))
    assert not torch.equal(z[:60], result.sample(60, seed=12))
    assert torch.equal(result.sample(60, 11, t=0.0), Nodes((x, y)).sample(result.density[0].numpy(), 60, 11))
    with pytest.raises(ValueError, match=r"nearest is times\[1\]"):
        result.sample(10, 0, t=0.002)


def test_moments_are_those_of_the_density():
    x, y = axis(-6, 6, 61), axis(-5, 7, 71)
    law = hb.reference.Gaussian([0.5, 1.0], [[0.8, -0.3], [-0.3, 0.6]])
    mass, mean, cov = Nodes((x, y)).moments(density(law, x, y).numpy())
    assert mass == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(mean, law.mean, atol=1e-9)
    np.testing.assert_allclose(cov, law.cov, atol=1e-8)


def test_a_box_too_small_is_told_and_a_meant_wall_is_not():
    x = axis(-2, 2, 41)
    sde, p0 = hb.SDE(lambda t, x: 0 * x, 1.0), gaussian(x, 0.0, 0.1)
    with pytest.warns(UserWarning, match=r"box is too small: at t = 0.5 .* at x = -?2, is 0\.\d+ of the largest"):
        fokker_planck(sde, x, p0, [0.0, 0.5], tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for boundary in ("reflecting", "absorbing"):
            fokker_planck(sde, x, p0, [0.0, 0.5], tol=1e-3, boundary=boundary)
        fokker_planck(hb.SDE(lambda t, x: -x, 0.5), x, p0, [0.0, 0.5], tol=1e-3)


def test_cells_too_coarse_for_the_drift_are_told():
    """Noise that ends at t = 1, unseen by the check at three times: the grid's own diffusion takes over."""
    x = axis(-4, 4, 81)
    p0 = gaussian(x, 0.0, 0.5)
    with pytest.warns(UserWarning, match=r"too coarse for the drift: .* above 1 during \d\d% .*up to inf at t = "):
        fokker_planck(hb.SDE(lambda t, x: -x, lambda t: max(0.0, 1 - t)), x, p0, [0.0, 2.0], tol=1e-2)
    y = axis(-6, 6, 31)
    plane = torch.outer(gaussian(y, 0.0, 1.0), gaussian(y, 0.0, 1.0))
    for scale, told in ((0.6, False), (3.0, True)):  # |f| h/D = 0.48 |y| and 2.4 |y|, along the second axis
        sde = hb.SDE(lambda t, z, c=scale: torch.stack([0 * z[:, 0], -c * z[:, 1]], 1), 1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fokker_planck(sde, (y, y), plane, [0.0, 0.02], tol=1e-1, boundary="reflecting")
        assert bool(caught) is told


X = axis(-5, 5, 51)
P0 = gaussian(X, 0.0, 1.0)
OU = hb.SDE(lambda t, x: -x, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p0": 2 * P0}, r"integral \(trapezoidal rule\) is 2; pass p0 / torch.trapezoid\(p0, x\)"),
        ({"p0": P0 - 0.01}, r"`p0` must be >= 0, but is -0.00999851 at x = -5; pass a density"),
        ({"p0": P0[1:]}, r"`p0` has shape \(50,\), but `x` has 51 nodes"),
        ({"p0": P0 * float("nan")}, "`p0` must be finite"),
        ({"x": X.flip(0)}, r"`x` must increase, but x\[0\] = 5"),
        ({"x": X[:, None]}, r"`x` has shape \(51, 1\); pass an axis"),
        ({"x": (X, X.flip(0))}, r"`x\[1\]` must increase"),
        ({"times": [0.0, 1.0, 0.5]}, r"`times` must run strictly one way, but times\[1\] = 1.0"),
        ({"times": [0.0]}, "at least two times"),
        ({"boundary": "open"}, "boundary = 'open' is not one of 'no-flux'"),
        ({"tol": 0.0}, r"tol = 0.0 must be a number in \(0, 1\)"),
        ({"sde": hb.SDE(lambda t, x: 1 / (x * 0), 1.0)}, r"the drift is \[.*inf.*\] at t = 0, x = "),
        ({"sde": hb.SDE(lambda t, x: x / torch.tensor(float(t < 0.3)), 1.0)}, "the drift is .* at t = "),
        ({"sde": hb.SDE(lambda t, x: -x / torch.tensor(1.0 - t), 1.0)}, "the drift is .* at t = 1, x = "),
        ({"sde": hb.SDE(lambda t, x: -x, 0.0)}, "the diffusion of `sde` is 0 between t = 0 and 1"),
        (
            {"sde": hb.SDE(lambda t, x: -x, lambda t: max(0.0, 1 - t)), "times": [0.0, 1.0, 2.0]},
            "the diffusion of `sde` is 0 between t = 1 and 2",
        ),
        ({"sde": hb.SDE(lambda t, x: -x, lambda t, x: x * float("nan"), "diagonal")}, "the diffusion is"),
        ({"sde": MIXTURE.field(hb.VP()).reverse_sde()}, "the reverse SDE runs from noise to data"),
    ],
    ids=lambda v: "" if isinstance(v, str) else next(iter(v)),
)
def test_bad_arguments_are_named(arguments, message):
    given = {"sde": OU, "x": X, "p0": P0, "times": [0.0, 1.0], **arguments}
    with pytest.raises(ValueError, match=message):
        fokker_planck(**given)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (MIXTURE.field(hb.VP()), r"pass field.reverse_sde\(\)"),
        (MIXTURE.field(hb.VP()).probability_flow(), "is an ODE: without diffusion"),
        (lambda t, x: -x, "must be an hb.SDE, got function"),
    ],
)
def test_other_problems_are_refused(problem, message):
    with pytest.raises(TypeError, match=message):
        fokker_planck(problem, X, P0, [0.0, 1.0])
