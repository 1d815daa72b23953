"""Fokker-Planck on a grid against exact laws: orders in space, signs, steady states, walls, Ito's correction."""

import math

import numpy as np
import pytest
import torch
from grid_problems import DOUBLE_WELL, F64, MIXTURE, averages, axis, density, gaussian, l1, order

import halfbridge as hb
from halfbridge.solvers.reference.chain_law import chain_law_of
from halfbridge.solvers.reference.fokker_planck import fokker_planck

SECOND = pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("t", [0.4, 1.0])
def test_space_is_second_order_on_ornstein_uhlenbeck(t):
    mean, var = 1.5 * math.exp(-t), 0.2 * math.exp(-2 * t) + 0.32 * -math.expm1(-2 * t)
    law = hb.reference.GaussianMixture([1.0], [[mean]], [var])
    errors = []
    for n in (81, 161):
        x = axis(-5, 5, n)
        result = fokker_planck(hb.SDE(lambda t, x: -x, 0.8), x, gaussian(x, 1.5, 0.2), [0.0, t])
        errors.append(l1(result.density[-1], averages(x, law), x))
    assert order(errors) == SECOND
    assert errors[-1] < 2.5e-3
    assert float(result.mean[-1]) == pytest.approx(mean, abs=2e-3)
    assert float(result.cov[-1]) == pytest.approx(var, abs=2e-3)


def test_space_is_second_order_on_the_double_well():
    """Against Richardson's extrapolation of the law of Euler-Maruyama, an answer that knows nothing of fluxes."""
    x = axis(-3.2, 3.2, 321)
    start = gaussian(x, 0.5, 0.15)

    def euler(n):
        grid = np.linspace(0.0, 0.5, n + 1)
        return chain_law_of(hb.EulerMaruyama(), DOUBLE_WELL, grid, x, start, tol=1e-6)[-1]

    coarse, middle, fine = (euler(n) for n in (16, 32, 64))
    exact = (8 * fine - 6 * middle + coarse) / 3
    errors = []
    for stride in (8, 4):
        nodes = x[::stride].clone()
        result = fokker_planck(DOUBLE_WELL, nodes, start[::stride].clone(), [0.0, 0.5])
        errors.append(l1(result.density[-1], exact[::stride], nodes))
    assert order(errors) == pytest.approx(2.0, abs=0.15)


def test_space_is_second_order_on_a_rotation():
    turn = torch.tensor([[-0.5, -1.2], [1.2, -0.5]], dtype=F64)
    sde, t = hb.SDE(lambda t, x: x @ turn.T, 1.1), 0.5
    start = hb.reference.Gaussian([0.9, 0.3], [[0.5, 0.2], [0.2, 0.4]])
    flow = torch.linalg.matrix_exp(turn * t)
    cov = flow @ start.cov @ flow.T - 1.1**2 * math.expm1(-t) * torch.eye(2, dtype=F64)
    end = hb.reference.Gaussian(flow @ start.mean, cov)
    errors = []
    for n in (33, 65):
        x, y = axis(-5.6, 6.0, n), axis(-5.6, 5.6, n)
        result = fokker_planck(sde, (x, y), density(start, x, y), [0.0, t], tol=1e-3)
        errors.append(l1(result.density[-1], density(end, x, y), x, y))
    assert order(errors) == pytest.approx(2.0, abs=0.15)
    assert float(result.mass[-1]) == pytest.approx(float(result.mass[0]), abs=1e-12)
    assert float((result.cov[-1] - end.cov).abs().max()) < 0.02
    assert float((result.mean[-1] - end.mean).abs().max()) < 0.005


def test_space_is_second_order_on_uneven_nodes():
    law = hb.reference.GaussianMixture([1.0], [[0.4]], [0.15])
    process, errors = hb.OU(1.0, 0.9), []
    for n in (61, 121, 241):
        x = 6 * torch.sinh(2 * axis(-1, 1, n)) / math.sinh(2)
        p0 = density(law, x)
        result = fokker_planck(hb.SDE(lambda t, x: -x, 0.9), x, p0 / torch.trapezoid(p0, x), [0.0, 0.6])
        errors.append(float(torch.trapezoid((result.density[-1] - density(law.at(process, 0.6), x)).abs(), x)))
    assert order(errors) == SECOND


def test_mass_is_conserved_over_a_whole_run():
    x = axis(-2.8, 2.8, 141)
    p0 = torch.where((x > 0.3) & (x < 0.9), 1.0, 0.0).to(F64)
    result = fokker_planck(DOUBLE_WELL, x, p0 / torch.trapezoid(p0, x), np.linspace(0, 3, 7), tol=1e-4)
    assert float((result.mass - 1).abs().max()) < 1e-12
    assert float(result.density.min()) >= 0
    assert float(result.density[1:].min()) > 0


def normalised(p, *axes):
    mass = p
    for a in reversed(axes):
        mass = torch.trapezoid(mass, a)
    return p / mass


def test_gibbs_densities_are_steady_to_rounding():
    x, y = axis(-2.3, 2.3, 41), axis(-2.6, 2.4, 36)
    wells = normalised(torch.exp(-(x**6 - 3 * x**4 + x**2 + 0.2 * x)), x)
    sixth = hb.SDE(lambda t, x: -(6 * x**5 - 12 * x**3 + 2 * x + 0.2) / 2, 1.0)
    both = normalised(torch.exp(-((x[:, None] ** 2 - 1) ** 2) - x[:, None] * y - y**2), x, y)
    plane = hb.SDE(
        lambda t, z: -0.32 * torch.stack([4 * z[:, 0] * (z[:, 0] ** 2 - 1) + z[:, 1], z[:, 0] + 2 * z[:, 1]], 1), 0.8
    )
    # dp/dt = 0 without flux for any D: f = D' - D U'
    spread = hb.SDE(lambda t, x: 0.5 * x - (0.5 + 0.25 * x**2) * x, lambda t, x: (1 + 0.5 * x**2).sqrt(), "diagonal")
    ito = normalised(torch.exp(-(x**2) / 2), x)
    for sde, axes, p in ((sixth, x, wells), (plane, (x, y), both)):
        result = fokker_planck(sde, axes, p, [0.0, 2.0], boundary="reflecting", tol=0.1)
        assert float((result.density[-1] / p - 1).abs().max()) < 1e-11
    result = fokker_planck(spread, x, ito, [0.0, 2.0], boundary="reflecting", tol=0.1)
    assert float((result.density[-1] / ito - 1).abs().max()) < 1e-8  # Gauss's rule on (D' - D U')/D


def test_any_start_tends_to_the_gibbs_density():
    x = axis(-2.6, 2.6, 105)
    gibbs = normalised(torch.exp(-2 * (x**4 / 4 - x**2 / 2) / 0.81), x)
    result = fokker_planck(DOUBLE_WELL, x, gaussian(x, 0.8, 0.05), [0.0, 80.0], tol=0.05, boundary="reflecting")
    assert l1(result.density[-1], gibbs, x) < 1e-5


def test_forward_sde_of_a_process_gives_the_diffused_mixture():
    process, errors = hb.VP(), []
    sde = hb.SDE(lambda t, x: process.drift_rate(t) * x, process.diffusion)
    times = [0.0, 0.2, 0.5]
    for n in (121, 241):
        x = axis(-5, 5, n)
        result = fokker_planck(sde, x, averages(x, MIXTURE), times)
        exact = torch.stack([averages(x, MIXTURE.at(process, t)) for t in times])
        errors.append(max(l1(p, q, x) for p, q in zip(result.density, exact, strict=True)))
    assert order(errors) == SECOND


@pytest.mark.parametrize("process", [hb.VP(), hb.OU(0.5, 1.0, 3.0), hb.EDM(0.002, 3.0)], ids=repr)
def test_reverse_sde_along_decreasing_times_returns_to_the_data(process):
    errors, t_end = [], process.time_at(0.7)
    width = 5 * float(MIXTURE.at(process, process.T).cov.sqrt()) + 1
    for n in (61, 121):
        x = axis(-width, width, n)
        start = averages(x, MIXTURE.at(process, process.T))
        result = fokker_planck(MIXTURE.field(process).reverse_sde(), x, start, [process.T, t_end], tol=1e-4)
        errors.append(l1(result.density[-1], averages(x, MIXTURE.at(process, t_end)), x))
    assert order(errors) == pytest.approx(2.0, abs=0.25)
    assert errors[-1] < 0.006


def test_decreasing_times_are_eulers_limit():
    """dX = -f dtau + g dW, f at the running time: the same as increasing times with drift -f(-t)."""
    x = axis(-4, 4, 61)
    f, g = (lambda t, x: t - x + 0.1 * t * x**2), (lambda t: 1.0 + 0.3 * t)
    p0 = gaussian(x, 0.2, 0.2)
    down = fokker_planck(hb.SDE(f, g), x, p0, [1.0, 0.6, 0.4], tol=1e-4, boundary="reflecting")
    up = hb.SDE(lambda s, x: -f(-s, x), lambda s: g(-s))
    assert (
        l1(down.density[2], fokker_planck(up, x, p0, [-1.0, -0.6, -0.4], tol=1e-4, boundary="reflecting").density[2], x)
        < 1e-9
    )
    fine = axis(-4, 4, 161)
    laws = [
        chain_law_of(
            hb.EulerMaruyama(), hb.SDE(f, g), np.linspace(1.0, 0.6, n + 1), fine, gaussian(fine, 0.2, 0.2), tol=1e-3
        )[-1]
        for n in (16, 32)
    ]
    exact = fokker_planck(
        hb.SDE(f, g), fine, gaussian(fine, 0.2, 0.2), [1.0, 0.6], tol=1e-4, boundary="reflecting"
    ).density[-1]
    assert l1(2 * laws[1] - laws[0], exact, fine) < 3e-3


def test_absorbing_walls_let_the_eigenfunction_decay_at_its_rate():
    errors = []
    for n in (41, 81):
        x = axis(0, 1, n)
        p0 = math.pi / 2 * torch.sin(math.pi * x)
        result = fokker_planck(hb.SDE(lambda t, x: 0 * x, 1.2), x, p0, [0.0, 0.1, 0.3], boundary="absorbing", tol=1e-6)
        decay = math.exp(-0.72 * math.pi**2 * 0.3)
        errors.append(l1(result.density[-1], decay * p0, x))
        assert float(result.mass[-1]) == pytest.approx(decay, abs=2e-4 * (80 / (n - 1)) ** 2)
        assert float(result.mean[-1]) == pytest.approx(0.5, abs=1e-12)
    assert order(errors) == pytest.approx(2.0, abs=0.2)


def test_absorbing_wall_has_the_image_solution():
    """Brownian motion from N(a, v) killed at 0: N(x; a, v + t) - N(x; -a, v + t), with the start's own image."""
    x, t = axis(0, 9, 361), 1.0
    start = gaussian(x, 2.0, 0.25) - gaussian(x, -2.0, 0.25)
    result = fokker_planck(hb.SDE(lambda t, x: 0 * x, 1.0), x, start, [0.0, t], boundary="absorbing")
    assert l1(result.density[-1], gaussian(x, 2.0, 1.25) - gaussian(x, -2.0, 1.25), x) < 2e-4
    assert float(result.mass[-1]) == pytest.approx(math.erf(2 / math.sqrt(2 * 1.25)), abs=2e-4)


def test_geometric_brownian_motion_has_itos_drift():
    mu, sigma, t, errors = 0.3, 0.4, 0.5, []

    def lognormal(x, m, v):
        safe = x.clamp_min(1e-300)
        return torch.where(x > 0, gaussian(safe.log(), m, v) / safe, 0.0)

    sde = hb.SDE(lambda t, x: mu * x, lambda t, x: sigma * x, "diagonal")
    for n in (101, 201):
        x = axis(0, 8, n)
        result = fokker_planck(sde, x, lognormal(x, 0.0, 0.04), [0.0, t])
        exact = lognormal(x, (mu - sigma**2 / 2) * t, 0.04 + sigma**2 * t)
        errors.append(l1(result.density[-1], exact, x))
    assert order(errors) == SECOND
    assert float(result.mean[-1]) == pytest.approx(math.exp(0.02 + mu * t), abs=3e-5)


def test_square_root_diffusion_reaches_its_gamma_law():
    """Cox, Ingersoll and Ross 1985: D = 0 at the wall x = 0, stationary Gamma(2 k theta/s^2, 2 k/s^2)."""
    k, theta, s = 2.0, 1.0, 0.8
    sde = hb.SDE(lambda t, x: k * (theta - x), lambda t, x: s * x.clamp_min(0).sqrt(), "diagonal")
    x = axis(0, 5.5, 101)
    shape, rate = 2 * k * theta / s**2, 2 * k / s**2
    law = rate**shape / math.gamma(shape) * x ** (shape - 1) * torch.exp(-rate * x)
    result = fokker_planck(sde, x, gaussian(x, 2.0, 0.1), [0.0, 0.3, 8.0], tol=1e-3)
    assert l1(result.density[-1], law, x) < 1e-5
    assert float(result.mean[1]) == pytest.approx(theta + (2 - theta) * math.exp(-0.3 * k), abs=1e-3)


def test_jacobi_diffusion_keeps_the_uniform_law_between_walls_without_noise():
    """dX = (1/2 - X) dt + sqrt(X (1 - X)) dW: D vanishes at both walls, where the density does not."""
    sde = hb.SDE(lambda t, x: 0.5 - x, lambda t, x: (x * (1 - x)).clamp_min(0).sqrt(), "diagonal")
    x = axis(0, 1, 41)
    for start in (torch.ones_like(x), 2 * x):
        result = fokker_planck(sde, x, start, [0.0, 9.0], tol=1e-2, boundary="reflecting")
        assert float((result.density[-1] - 1).abs().max()) < 1e-4


def test_noise_that_is_scalar_diagonal_or_a_diagonal_matrix_is_the_same_law():
    x, y = axis(-4, 4, 25), axis(-5, 5, 31)
    start = density(hb.reference.Gaussian([0.5, -0.5], [[0.4, 0.0], [0.0, 0.6]]), x, y)

    def drift(t, z):
        return -z

    laws = [
        fokker_planck(hb.SDE(drift, g, noise), (x, y), start, [0.0, 0.3], tol=1e-2).density[-1]
        for g, noise in (
            (torch.tensor([0.8, 1.2], dtype=F64), "diagonal"),
            (lambda t, z: torch.tensor([0.8, 1.2], dtype=F64).expand_as(z), "diagonal"),
            (lambda t: torch.tensor([[0.0, 0.8, 0.0], [1.2, 0.0, 0.0]], dtype=F64), "matrix"),
        )
    ]
    assert l1(laws[0], laws[1], x, y) < 1e-12
    assert l1(laws[0], laws[2], x, y) < 1e-12
    separate = []
    for a, g, m, v in ((x, 0.8, 0.5, 0.4), (y, 1.2, -0.5, 0.6)):
        separate.append(fokker_planck(hb.SDE(drift, g), a, gaussian(a, m, v), [0.0, 0.3], tol=1e-2).density[-1])
    assert l1(laws[0], torch.outer(*separate), x, y) < 1e-2


def test_correlated_noise_is_refused():
    x = axis(-4, 4, 25)
    start = density(hb.reference.Gaussian([0.0, 0.0], 0.5), x, x)
    sde = hb.SDE(lambda t, z: -z, lambda t: torch.tensor([[1.0, 0.0], [0.5, 1.0]], dtype=F64), "matrix")
    with pytest.raises(ValueError, match=r"correlated between the axes.*change to coordinates"):
        fokker_planck(sde, (x, x), start, [0.0, 0.3])


def test_a_reflecting_wall_has_the_folded_solution():
    x = axis(0, 7, 281)
    start = gaussian(x, 1.0, 0.2) + gaussian(x, -1.0, 0.2)
    result = fokker_planck(hb.SDE(lambda t, x: 0 * x, 1.0), x, start, [0.0, 0.6], boundary="reflecting")
    assert l1(result.density[-1], gaussian(x, 1.0, 0.8) + gaussian(x, -1.0, 0.8), x) < 3e-4


@pytest.mark.parametrize("jump", [lambda t: t < 1, lambda t: t <= 1], ids=["right", "left"])
@pytest.mark.parametrize("times", [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]], ids=["up", "down"])
def test_a_jump_on_one_of_the_times_is_passed(jump, times):
    """Ornstein-Uhlenbeck whose g falls from 1 to 1/2 at t = 1."""
    sign = 1.0 if times[1] > times[0] else -1.0
    x = axis(-5, 5, 161)
    sde = hb.SDE(lambda t, x: -sign * x, lambda t: 1.0 if jump(t) else 0.5)
    result = fokker_planck(sde, x, gaussian(x, 1.5, 0.3), times, tol=1e-4)
    var = 0.3
    for g in (1.0, 0.5) if sign > 0 else (0.5, 1.0):
        var = math.exp(-2) * var + g**2 * (1 - math.exp(-2)) / 2
    assert float(result.mean[-1]) == pytest.approx(1.5 * math.exp(-2), abs=2e-3)
    assert float(result.cov[-1]) == pytest.approx(var, abs=2e-3)


def test_the_jumps_of_a_discrete_process_are_passed_unlisted():
    process = hb.DiscreteVP([0.1, 0.3, 0.2, 0.4])
    sde, errors = MIXTURE.field(process).reverse_sde(), []
    for n in (81, 161):
        x = axis(-5, 5, n)
        result = fokker_planck(sde, x, averages(x, MIXTURE.at(process, 4.0)), [4.0, 1.5], tol=1e-4)
        errors.append(l1(result.density[-1], averages(x, MIXTURE.at(process, 1.5)), x))
    assert order(errors) == pytest.approx(2.0, abs=0.25)


def test_noise_may_vanish_at_an_instant_and_drift_dominate_a_cell():
    process = hb.SubVP()
    x = axis(-5, 5, 201)
    assert process.diffusion(0.0) == 0.0
    sde = hb.SDE(lambda t, x: process.drift_rate(t) * x, process.diffusion)
    with pytest.warns(UserWarning, match="too coarse for the drift"):
        result = fokker_planck(sde, x, averages(x, MIXTURE), [0.0, 0.4], tol=1e-4)
    assert l1(result.density[-1], averages(x, MIXTURE.at(process, 0.4)), x) < 0.05
    assert float(result.mass[-1]) == pytest.approx(float(result.mass[0]), abs=1e-12)
