"""hb.testing judges solvers: it passes what is right, and names what is wrong."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import SOLVERS
from hypothesis import given, settings
from hypothesis import strategies as st

import halfbridge as hb
from halfbridge import testing

DATA = hb.reference.Gaussian([0.3, -0.8], [[0.8, 0.3], [0.3, 0.4]])
MIXTURE = hb.reference.GaussianMixture([0.4, 0.6], [[1.0, 0.2], [-0.5, -0.4]], 0.2)


@settings(max_examples=60, deadline=None)
@given(st.data(), testing.processes())
def test_processes_and_grids_are_usable_as_they_come(data, process):
    grid = data.draw(testing.grids(process, zero=True))
    assert grid.dtype == np.float64
    assert grid[0] == process.T
    assert (np.diff(grid) < 0).all()
    assert grid[-1] in (0.0, process.t_min)
    assert hb.plan(hb.DDIM(), process, grid).nfe == len(grid) - 1


@settings(max_examples=60, deadline=None)
@given(testing.gaussians(), testing.gaussians(3, singular=True), testing.mixtures(), testing.mixtures(2, components=3))
def test_laws_have_the_dimensions_and_variances_asked_for(gaussian, singular, mixture, three):
    assert 1 <= gaussian.dim <= 4
    assert float(gaussian.eigenvalues.min()) > 0.099
    assert singular.dim == 3
    assert mixture.log_prob(mixture.mean.unsqueeze(0)).isfinite().all()
    assert (three.dim, len(three)) == (2, 3)


def test_point_masses_are_among_singular_gaussians():
    from hypothesis import find

    assert find(testing.gaussians(2, singular=True), lambda g: float(g.cov.abs().max()) == 0.0).dim == 2


@dataclass(frozen=True)
class Slip(hb.Solver):
    """DDIM with one coefficient off."""

    factor: float = 1.01
    order = 1
    stochasticity = 0.0

    def step(self, field, x, t, s, draw):
        p, m = field.process, field(t, x)
        return p.alpha(s) * m.data + self.factor * p.sigma(s) * m.noise


@pytest.mark.parametrize("data", [DATA, MIXTURE], ids=["gaussian", "mixture"])
def test_assert_order_passes_the_right_coefficient_and_refuses_one_per_cent_more(data):
    assert testing.assert_order(Slip(1.0), hb.VP(), data).order > 0.85
    with pytest.raises(AssertionError, match=r"order .* seen, 1 expected of Slip\(factor=1.01\).* at n = 1280"):
        testing.assert_order(Slip(), hb.VP(), data)


def test_assert_order_takes_the_order_that_is_expected():
    with pytest.raises(AssertionError, match="2 expected"):
        testing.assert_order(Slip(1.0), hb.VP(), DATA, order=2)
    assert testing.assert_order(hb.Heun(), hb.OU(), DATA, order=1.5, steps=(20, 40, 80)).steps == (20, 40, 80)


def test_assert_law_compares_laws_whole():
    testing.assert_law(DATA, hb.reference.Gaussian(DATA.mean, DATA.cov))
    with pytest.raises(AssertionError, match=r"mean\[1\] is off by 0.0158"):
        testing.assert_law(hb.reference.Gaussian([0.3, -0.79], DATA.cov), DATA)
    with pytest.raises(AssertionError, match=r"covariance\[0, 1\] is off by"):
        testing.assert_law(hb.reference.Gaussian(DATA.mean, [[0.8, 0.29], [0.29, 0.4]]), DATA, rtol=1e-3)
    with pytest.raises(ValueError, match="`got` has dimension 1 but `want` has 2"):
        testing.assert_law(hb.reference.Gaussian([0.0], 1.0), DATA)


@pytest.mark.parametrize("law", [DATA, MIXTURE], ids=["gaussian", "mixture"])
def test_assert_law_passes_samples_and_sees_a_wrong_moment(law):
    x = law.sample(40_000, seed=3)
    testing.assert_law(x, law)
    sd = law.cov.diagonal().sqrt()
    with pytest.raises(AssertionError, match="mean"):
        testing.assert_law(x + 0.04 * sd, law)  # 8 standard errors
    with pytest.raises(AssertionError, match="covariance"):
        testing.assert_law(
            law.mean + 1.03 * (x - law.mean), law
        )  # 6 % of the variance: 8.5 standard errors on a Gaussian


def test_assert_law_sees_another_law_with_the_same_moments():
    law = hb.reference.GaussianMixture([0.5, 0.5], [[1.0], [-1.0]], 0.1)
    normal = hb.reference.Gaussian(law.mean, law.cov).sample(4_000, seed=1)
    with pytest.raises(AssertionError, match="distribution"):
        testing.assert_law(normal, law)


def test_assert_law_takes_no_gaussian_for_a_mixture_of_its_moments():
    with pytest.raises(ValueError, match="a mixture of 2, which no mean and covariance tell apart"):
        testing.assert_law(hb.reference.Gaussian(MIXTURE.mean, MIXTURE.cov), MIXTURE)


@pytest.mark.parametrize("seed", range(6))
def test_assert_law_passes_samples_of_a_law_with_no_spread_along_the_diagonal(seed):
    rows = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(torch.cat([torch.ones(3, 1, dtype=torch.float64), rows], 1))[0][:, 1:]
    law = hb.reference.Gaussian([0.3, -0.2, 0.1], (q * torch.tensor([0.7, 0.3], dtype=torch.float64)) @ q.T)
    testing.assert_law(law.sample(2000, seed=seed), law)


def test_a_stochastic_solver_on_a_mixture_has_its_own_grid():
    with pytest.raises(ValueError, match="`grid` and `t_end` cannot be chosen"):
        testing.assert_order(hb.Ancestral(), hb.VP(), MIXTURE, t_end=0.1)
    with pytest.raises(ValueError, match=r"has dimension 3.*followed in one or two"):
        testing.assert_order(hb.Ancestral(), hb.VP(), hb.reference.GaussianMixture([1.0], [[0.0] * 3], 0.2))


def test_assert_law_sees_what_is_not_finite_and_too_few_samples():
    x = DATA.sample(200, seed=0)
    x[7, 1] = math.nan
    with pytest.raises(AssertionError, match="is off by inf"):
        testing.assert_law(x, DATA)
    with pytest.raises(ValueError, match=r"pass \(n, d\) with n >= 100"):
        testing.assert_law(x[:50], DATA)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if "batch" not in repr(s)], ids=repr)
def test_every_solver_is_batch_invariant_bit_for_bit(solver):
    process = hb.VP()
    field = hb.Field(process, lambda t, x: torch.tanh(x) / 2)
    testing.assert_batch_invariant(solver, field, hb.grids.half_log_snr(process, 4), (7, 3), seed=5, first=2**40)


def test_a_solver_that_couples_the_batch_is_refused():
    process = hb.VP()
    field = hb.Field(process, lambda t, x: torch.tanh(x) / 2)
    grid = hb.grids.half_log_snr(process, 4)
    coupled = hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(snr=0.1, norm="batch"))
    with pytest.raises(AssertionError, match=r"sample 3 differs .* couples the samples"):
        testing.assert_batch_invariant(coupled, field, grid, (6, 2), first=3)
    with pytest.raises(ValueError, match="pass at least 2 samples"):
        testing.assert_batch_invariant(hb.DDIM(), field, grid, (1, 2))


def test_a_network_is_batch_invariant_up_to_the_tolerance():
    process, net = hb.VP(), hb.nets.MLP(3)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    field = hb.nets.as_field(net, process)
    testing.assert_batch_invariant(hb.Ancestral(), field, hb.grids.half_log_snr(process, 4), (9, 3), tolerance=1e-4)
