"""The exact law of every solver on every process, against matrices, against sampling, and in closed form."""

import itertools
import math

import numpy as np
import pytest
import torch
from independent import (
    KERNELS,
    RATES,
    Affine,
    Model,
    ancestral,
    ancestral_ddpm,
    ddim,
    dpm,
    dpmpp_2m,
    euler_maruyama,
    heun,
    law,
    reverse_diffusion,
    ula,
)  # fmt: skip

import halfbridge as hb

MEAN = np.array([0.7, -0.4, 1.1])
COV = np.array([[1.0, 0.4, 0.1], [0.4, 0.5, -0.2], [0.1, -0.2, 0.3]])
START_MEAN = np.array([0.2, 0.1, -0.3])
START_COV = np.array([[0.9, -0.3, 0.2], [-0.3, 1.4, 0.1], [0.2, 0.1, 0.6]])  # does not commute with COV
DATA, START = hb.reference.Gaussian(MEAN, COV), hb.reference.Gaussian(START_MEAN, START_COV)
PROCESSES = {name: getattr(hb, name)() for name in KERNELS}
PROCESSES["EDM"] = hb.EDM(sigma_min=0.02, sigma_max=20.0)

SCHEMES = {
    "EulerMaruyama": (hb.EulerMaruyama(), euler_maruyama),
    "ReverseDiffusion": (hb.ReverseDiffusion(), reverse_diffusion),
    "Ancestral posterior": (hb.Ancestral(), lambda M, x, t, s: ancestral(M, x, t, s, "posterior")),
    "Ancestral transition": (hb.Ancestral("transition"), lambda M, x, t, s: ancestral(M, x, t, s, "transition")),
    "DDIM 0": (hb.DDIM(), lambda M, x, t, s: ddim(M, x, t, s, 0.0)),
    "DDIM 0.6": (hb.DDIM(0.6), lambda M, x, t, s: ddim(M, x, t, s, 0.6)),
    "DDIM 1": (hb.DDIM(1.0), lambda M, x, t, s: ddim(M, x, t, s, 1.0)),
    "Heun": (hb.Heun(), heun),
    "DPM 1": (hb.DPMSolver(1), lambda M, x, t, s: dpm(M, x, t, s, 1)),
    "DPM 2": (hb.DPMSolver(2), lambda M, x, t, s: dpm(M, x, t, s, 2)),
    "DPM 3": (hb.DPMSolver(3), lambda M, x, t, s: dpm(M, x, t, s, 3)),
    "ULA": (hb.Langevin(step_size=0.003), lambda M, x, t, s: ula(M, x, s, 0.003)),
    "PC": (
        hb.PredictorCorrector(hb.ReverseDiffusion(), hb.Langevin(step_size=0.002), 2),
        lambda M, x, t, s: ula(M, ula(M, reverse_diffusion(M, x, t, s), s, 0.002), s, 0.002),
    ),
}


def model(name):
    return Model(*KERNELS[name], MEAN, COV, RATES.get(name))


def run_by_matrices(step, M, grid):
    x = Affine(np.eye(3), np.zeros(3))
    for t, s in itertools.pairwise(grid):
        x = step(M, x, float(t), float(s))
    return law(x, START_MEAN, START_COV)


def assert_same_law(ours, theirs, rtol=1e-8):
    mean, cov, cross = theirs
    scale = max(1.0, np.abs(cov).max())
    d = len(mean)
    np.testing.assert_allclose(ours.mean[:d], mean, rtol=rtol, atol=rtol * math.sqrt(scale))
    np.testing.assert_allclose(ours.cov[:d, :d], cov, rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(ours.cov[:d, d:], cross, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_law_of_every_solver_is_that_of_its_matrices(scheme, process):
    solver, step = SCHEMES[scheme]
    p = PROCESSES[process]
    grid = hb.grids.quadratic(p, 9, t_end=0.05 * p.T)
    ours = hb.reference.law_of(solver, p, grid, DATA, START, joint=True)
    # the matrices take a and g^2 by finite differences in Euler-Maruyama: 1e-8 is what that leaves
    assert_same_law(ours, run_by_matrices(step, model(process), grid))


@pytest.mark.parametrize("process", PROCESSES)
def test_law_of_the_multistep_solver_is_that_of_its_matrices(process):
    p, M = PROCESSES[process], model(process)
    grid = hb.grids.quadratic(p, 9, t_end=0.05 * p.T)
    x, past = Affine(np.eye(3), np.zeros(3)), None
    for t, s in itertools.pairwise(grid):
        x, past = dpmpp_2m(M, x, float(t), float(s), past)
    ours = hb.reference.law_of(hb.DPMSolverPP(), p, grid, DATA, START, joint=True)
    assert_same_law(ours, law(x, START_MEAN, START_COV))


@pytest.mark.parametrize("process", ["VP", "EDM", "OU", "VE"])
@pytest.mark.parametrize(("s_min", "s_max"), [(0.0, math.inf), (0.3, 3.0)])
def test_law_of_churn_is_that_of_its_matrices(process, s_min, s_max):
    """The raised noise goes through both stages of the step: adding variances stage by stage would be wrong."""
    p, M = PROCESSES[process], model(process)
    grid = hb.grids.quadratic(p, 9, t_end=0.05 * p.T)
    churn, s_noise = 2.5, 1.1
    gamma = min(churn / 9, math.sqrt(2) - 1)
    x = Affine(np.eye(3), np.zeros(3))
    for t, s in zip(map(float, grid), map(float, grid[1:]), strict=False):
        x = heun(M, x, t, s, gamma if s_min <= M.nu(t) <= s_max else 0.0, s_noise, horizon=4 * p.T)
    ours = hb.reference.law_of(hb.Heun(churn, s_noise, s_min, s_max), p, grid, DATA, START, joint=True)
    assert_same_law(ours, law(x, START_MEAN, START_COV))


@pytest.mark.parametrize("variance", ["posterior", "transition"])
def test_ancestral_on_ddpms_own_chain_is_ddpm(variance):
    betas = np.linspace(1e-3, 0.3, 12)
    p = hb.DiscreteVP(betas)
    abar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    M = Model(lambda t: math.sqrt(abar[round(t)]), lambda t: math.sqrt(1 - abar[round(t)]), MEAN, COV)
    grid = np.arange(12.0, 0.0, -1.0)
    theirs = run_by_matrices(lambda M, x, t, s: ancestral_ddpm(M, x, t, s, variance), M, grid)
    assert_same_law(hb.reference.law_of(hb.Ancestral(variance), p, grid, DATA, START, joint=True), theirs, 1e-11)


@pytest.mark.parametrize("predicts", ["noise", "score", "data", "velocity"])
@pytest.mark.parametrize("scheme", [*SCHEMES, "2M"])
def test_the_law_does_not_depend_on_the_parametrisation(scheme, predicts):
    from halfbridge.solvers.reference.law import gains

    solver = hb.DPMSolverPP() if scheme == "2M" else SCHEMES[scheme][0]
    p = hb.VP()
    grid = hb.grids.half_log_snr(p, 6, t_end=0.05)
    want, got = (gains(hb.plan(solver, p, grid, kind), DATA) for kind in ("noise", predicts))
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("process", [*PROCESSES, "DiscreteVP"])
@pytest.mark.parametrize(
    "solver", [s for s, _ in SCHEMES.values() if s.family != "corrector"] + [hb.DPMSolverPP(), hb.Heun(3.0)]
)
def test_the_end_of_a_grid_at_zero_is_the_data_prediction(solver, process):
    """Where sigma = 0 every solver returns D at the last time, without noise; churn raises the noise first."""
    p = hb.DiscreteVP(np.linspace(1e-4, 0.3, 20)) if process == "DiscreteVP" else PROCESSES[process]
    t = 3.0 if process == "DiscreteVP" else 0.3 * p.T
    end = hb.reference.law_of(solver, p, np.array([t, 0.0]), DATA, START)
    variance = 0.0
    nu = p.nu(t)
    if isinstance(solver, hb.Heun) and solver.churn:
        raised = p.time_at(-math.log(nu * math.sqrt(2.0)))
        variance, t_from, t = p.alpha(raised) ** 2 * nu**2, t, raised
        mean0, cov0 = p.alpha(t) / p.alpha(t_from) * START_MEAN, (p.alpha(t) / p.alpha(t_from)) ** 2 * START_COV
    else:
        mean0, cov0 = START_MEAN, START_COV
    S = p.alpha(t) ** 2 * COV + p.sigma(t) ** 2 * np.eye(3)
    G = p.alpha(t) * COV @ np.linalg.inv(S)
    np.testing.assert_allclose(end.mean, MEAN + G @ (mean0 - p.alpha(t) * MEAN), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(end.cov, G @ (cov0 + variance * np.eye(3)) @ G.T, rtol=1e-9, atol=1e-9)


def test_ddim_0_is_dpm_solver_1_and_2m_of_order_1():
    p = hb.CosineVP()
    grid = hb.grids.uniform(p, 7, t_end=0.02)
    laws = [
        hb.reference.law_of(s, p, grid, DATA, START, joint=True)
        for s in (hb.DDIM(), hb.DPMSolver(1), hb.DPMSolverPP(1))
    ]
    for other in laws[1:]:
        torch.testing.assert_close(other.cov, laws[0].cov, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(other.mean, laws[0].mean, rtol=1e-12, atol=1e-13)


def test_ddim_1_is_the_posterior_ancestral_step():
    p = hb.VE()
    grid = hb.grids.half_log_snr(p, 7)
    one, other = (hb.reference.law_of(s, p, grid, DATA, START, joint=True) for s in (hb.DDIM(1.0), hb.Ancestral()))
    torch.testing.assert_close(one.cov, other.cov, rtol=1e-12, atol=1e-13)


def test_transition_variance_is_exact_on_standard_normal_data_and_posterior_variance_on_a_point():
    p = hb.VP()
    grid = hb.grids.uniform(p, 5)
    normal = hb.reference.Gaussian(np.zeros(2), np.eye(2))
    point = hb.reference.Gaussian(np.array([1.0, -2.0]), np.zeros((2, 2)))
    for data, variance in ((normal, "transition"), (point, "posterior")):
        end = hb.reference.law_of(hb.Ancestral(variance), p, grid, data)
        exact = data.at(p, float(grid[-1]))
        torch.testing.assert_close(end.mean, exact.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(end.cov, exact.cov, rtol=1e-11, atol=1e-14)


def test_langevin_bias_is_first_order_in_the_step():
    """ULA on N(0, c): stationary variance c/(1 - e/(2c)); iterated at one level through a grid that hardly moves."""
    p, e = hb.EDM(), 0.05
    data = hb.reference.Gaussian([0.0], [[1.0]])
    grid = np.linspace(1.0, 0.9999, 400)
    c = 1.0 + 0.9999**2
    end = hb.reference.law_of(hb.Langevin(step_size=e), p, grid, data)
    assert float(end.cov) == pytest.approx(c / (1 - e / (2 * c)), rel=1e-3)
    assert float(end.cov) > c * (1 + 0.9 * e / (2 * c))


def test_linear_sde_has_the_law_of_its_recursion():
    """Full, unsymmetric drift and a matrix diffusion: x' = (I + h A) x + h b + sqrt(h) G z."""
    A = torch.tensor([[-0.5, 1.2, 0.0], [-1.0, -0.3, 0.4], [0.2, 0.0, -0.8]], dtype=torch.float64)
    b, G = (
        torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64),
        torch.tensor([[1.0, 0.0], [0.3, 0.5], [0.0, 0.2]], dtype=torch.float64),
    )
    for diffusion, noise, root in ((G, "matrix", G), (0.7, "scalar", 0.7 * torch.eye(3, dtype=torch.float64)),
                                   (lambda t: torch.tensor([0.1, 0.2, 0.3]).double() * (1 + t), "diagonal", None)):  # fmt: skip
        sde = hb.SDE(lambda t, x: x @ A.T + b, diffusion, noise)
        grid = np.linspace(0.0, 1.0, 11)
        ours = hb.reference.law_of(hb.EulerMaruyama(), sde, grid, START, joint=True)
        step, mean, cov, gain = torch.eye(3).double() + 0.1 * A, START.mean, START.cov, torch.eye(3).double()
        for t in grid[:-1]:
            R = root if root is not None else torch.diag(torch.tensor([0.1, 0.2, 0.3]).double() * (1 + t))
            mean, cov, gain = step @ mean + 0.1 * b, step @ cov @ step.T + 0.1 * R @ R.T, step @ gain
        torch.testing.assert_close(ours.mean[:3], mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours.cov[:3, :3], cov, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours.cov[:3, 3:], gain @ START.cov, rtol=1e-12, atol=1e-13)


def test_the_reverse_sde_as_a_problem_has_the_law_of_the_field():
    p = hb.VP()
    grid = hb.grids.uniform(p, 6, t_end=0.1)
    field = DATA.field(p)
    by_field = hb.reference.law_of(hb.EulerMaruyama(), p, grid, DATA, START)
    by_problem = hb.reference.law_of(hb.EulerMaruyama(), field.reverse_sde(), grid, start=START)
    torch.testing.assert_close(by_problem.cov, by_field.cov, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(by_problem.mean, by_field.mean, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "solver",
    [hb.EulerMaruyama(), hb.Ancestral(), hb.DDIM(0.5), hb.Heun(churn=3.0), hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(step_size=0.01))],
    ids=repr,
)  # fmt: skip
def test_moments_of_runs_are_within_five_and_a_half_standard_errors_of_the_law(solver):
    """The runner with real noise against the law: mean se sd/sqrt n, covariance se sqrt((c_ii c_jj + c_ij^2)/n)."""
    n, p = 40_000, hb.VP()
    grid = hb.grids.half_log_snr(p, 8, t_end=0.05)
    exact = hb.reference.law_of(solver, p, grid, DATA, hb.reference.Gaussian(np.zeros(3), np.eye(3)))
    x = hb.sample(DATA.field(p), solver, grid=grid, shape=(n, 3), seed=11, dtype=torch.float64)
    sd = exact.cov.diagonal().sqrt()
    assert ((x.mean(0) - exact.mean).abs() < 5.5 * sd / math.sqrt(n)).all()
    se = ((torch.outer(sd, sd) ** 2 + exact.cov**2) / n).sqrt()
    centred = x - exact.mean
    assert ((centred.T @ centred / n - exact.cov).abs() < 5.5 * se).all()


def test_laws_that_do_not_exist_are_refused():
    p = hb.VP()
    grid = hb.grids.uniform(p, 4)
    for solver in (hb.Langevin(), hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(snr=0.1))):
        with pytest.raises(ValueError, match="has no exact law"):
            hb.reference.law_of(solver, p, grid, DATA)
    mixture = hb.reference.GaussianMixture([0.5, 0.5], [[0.0], [1.0]], 0.1)
    with pytest.raises(ValueError, match=r"data must be an hb\.reference\.Gaussian"):
        hb.reference.law_of(hb.DDIM(), p, grid, mixture)
    with pytest.raises(ValueError, match="data = None"):
        hb.reference.law_of(hb.DDIM(), p, grid)
    with pytest.raises(ValueError, match="not affine"):
        hb.reference.law_of(hb.EulerMaruyama(), hb.SDE(lambda t, x: -(x**3), 1.0), np.linspace(0, 1, 5), START)
    with pytest.raises(ValueError, match="diffusion depends on x"):
        hb.reference.law_of(
            hb.EulerMaruyama(), hb.SDE(lambda t, x: -x, lambda t, x: x, "diagonal"), np.linspace(0, 1, 5), START
        )
