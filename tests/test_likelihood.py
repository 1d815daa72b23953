"""`log_likelihood` against densities, flows and trace estimates that are known exactly."""

import itertools
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases import bounded_field
from gaussians import covariances
from jacobians import probes

import halfbridge as hb
from halfbridge import Hutchinson, HutchPP
from halfbridge.solvers.likelihood import log_likelihood

F64 = torch.float64
P = hb.VP()
PROCESSES = [hb.VP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.Brownian(), hb.DiscreteVP(np.linspace(1e-4, 0.02, 1000))]
SOLVERS = [
    hb.EulerMaruyama(), hb.DDIM(), hb.Heun(), hb.DPMSolver(1), hb.DPMSolver(2), hb.DPMSolver(3), hb.DPMSolverPP(1), hb.DPMSolverPP(2),
]  # fmt: skip


def mixture(d: int, full: bool = False) -> hb.reference.GaussianMixture:
    means = torch.randn(2, d, dtype=F64, generator=torch.Generator().manual_seed(1))
    return hb.reference.GaussianMixture([0.3, 0.7], means, covariances(2, d) if full else 0.05)


MIXTURE = mixture(2, full=True)
X = MIXTURE.sample(4, seed=0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("d", [1, 4, 16])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_log_likelihood_of_an_exact_field_is_the_density_of_the_mixture(process, d):
    """All times that the field sees lie inside the run, though torchdiffeq's steps would end beyond."""
    data, seen = mixture(d, full=d == 4), []
    exact = data.field(process, "data" if d == 4 else "noise")
    field = exact.with_function(lambda t, x: seen.append(t) or exact.fn(t, x))
    x = data.sample(5, seed=2)
    found = log_likelihood(field, x, prior=data.at(process, process.T))
    assert (found.log_prob - data.at(process, process.t_min).log_prob(x)).abs().max() < 1e-5
    assert found.std_error is None
    assert found.nfe == len(seen)
    assert min(seen) >= process.t_min
    assert max(seen) <= process.T
    flow = hb.reference.exact_flow(exact, x, process.t_min, process.T)
    assert torch.allclose(found.latent, flow, rtol=1e-4, atol=1e-5 * process.prior_std)


def test_tolerances_and_t_min_are_obeyed():
    x, prior = X, MIXTURE.at(P, P.T)
    errors = [
        (log_likelihood(MIXTURE.field(P), x, "exact", prior, rtol, rtol / 100, solver=solver, t_min=0.2).log_prob
         - MIXTURE.at(P, 0.2).log_prob(x)).abs().max()
        for solver, rtol in (("dopri5", 1e-4), ("dopri5", 1e-9), ("dopri8", 1e-10))
    ]  # fmt: skip
    assert 1e-7 < errors[0] < 1e-3
    assert max(errors[1:]) < 2e-8


@pytest.mark.parametrize("predicts", ["noise", "data", "score", "velocity"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_grid_solvers_integrate_the_log_density_to_their_order(solver, predicts):
    errors = []
    for n in (24, 48, 96) if predicts == "velocity" else (96,):
        grid = hb.grids.half_log_snr(P, n)
        found = log_likelihood(MIXTURE.field(P, predicts), X, prior=MIXTURE.at(P, P.T), solver=solver, grid=grid)
        errors.append(float((found.log_prob - MIXTURE.at(P, P.t_min).log_prob(X)).abs().max()))
        assert found.nfe == n * solver.evals_per_step
    assert errors[-1] < {1: 1.0, 2: 0.02, 3: 1e-3}[solver.order]
    if predicts == "velocity":
        assert min(math.log2(a / b) for a, b in itertools.pairwise(errors)) > solver.order - 0.15


@pytest.mark.parametrize("process", [hb.EDM(), hb.OU()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", [hb.DPMSolver(3), hb.EulerMaruyama()], ids=str)
def test_grid_solvers_know_every_process(solver, process):
    """Euler's method runs in the process's own time."""
    errors = []
    for n in (60, 120):
        grid = hb.grids.half_log_snr(process, n)[:: -1 if n == 60 else 1].copy()  # either direction
        found = log_likelihood(
            MIXTURE.field(process), X, prior=MIXTURE.at(process, process.T), solver=solver, grid=grid
        )
        errors.append(float((found.log_prob - MIXTURE.at(process, process.t_min).log_prob(X)).abs().max()))
    assert math.log2(errors[0] / errors[1]) > solver.order - 0.15
    assert errors[1] < {1: 0.5, 3: 1e-3}[solver.order]


def test_the_gap_of_the_default_prior_is_the_divergence_from_the_exact_one():
    """Averaged over data, by Gauss-Hermite quadrature, log p - log p(default prior) is KL(p_T || prior)."""
    process = hb.OU(T=1.0)
    data = hb.reference.Gaussian([0.8], [[0.3]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    law = data.at(process, process.t_min)
    x = law.mean + math.sqrt(float(law.cov)) * torch.from_numpy(nodes)[:, None]
    end = data.at(process, process.T)
    field = data.field(process)
    exact, default = log_likelihood(field, x, prior=end), log_likelihood(field, x)
    gap = float((exact.log_prob - default.log_prob) @ torch.from_numpy(weights / weights.sum()))
    want = end.kl(hb.reference.Gaussian([0.0], process.prior_std**2))
    assert want > 0.05
    assert gap == pytest.approx(want, rel=1e-5)
    at_latent = (
        end.log_prob(exact.latent) - torch.distributions.Normal(0.0, process.prior_std).log_prob(exact.latent)[:, 0]
    )
    assert torch.allclose(exact.log_prob - default.log_prob, at_latent, atol=1e-12)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_keeps_one_integral_for_each_probe_which_stays_the_same_along_the_path(kind: Any):
    """For Gaussian data the Jacobian of eps is sigma (alpha^2 C + sigma^2)^-1, and int v^T (...) v dlog nu is v^T W v."""
    d, n = 4, 3
    data = hb.reference.Gaussian(torch.zeros(d), covariances(1, d)[0])
    method, x = Hutchinson(n, kind, seed=7), data.sample(3, seed=1)
    found = log_likelihood(data.field(P, "score"), x, method, first=2**40)
    c, vectors = torch.linalg.eigh(data.cov)
    nu = [P.nu(t) ** 2 for t in (P.t_min, P.T)]
    w = vectors @ torch.diag(((c + nu[1]) / (c + nu[0])).log() / 2) @ vectors.T
    v = probes(method, x, first=2**40)
    terms = torch.einsum("kbi,ij,kbj->kb", v, w, v)
    scale = P.alpha(P.T) / P.alpha(P.t_min)
    end = scale * (x @ vectors) * ((c + nu[1]) / (c + nu[0])).sqrt() @ vectors.T
    base = torch.distributions.Normal(0.0, P.prior_std).log_prob(end).sum(1) + d * math.log(scale)
    assert torch.allclose(found.log_prob, base + terms.mean(0), atol=1e-5)
    assert torch.allclose(found.std_error, terms.std(0) / n**0.5, rtol=1e-5)


@pytest.mark.parametrize("method", [HutchPP(5), Hutchinson(2)], ids=str)
def test_estimates_are_unbiased_and_their_error_is_honest(method):
    """1500 copies of a point, each with its own probes, against the exact divergence under the same scheme."""
    n, data = 1500, mixture(6, full=True)
    x = data.sample(1, seed=0)
    run: Any = {"solver": hb.DPMSolver(2), "grid": hb.grids.half_log_snr(P, 4)}
    exact = log_likelihood(data.field(P), x, **run).log_prob
    found = log_likelihood(data.field(P), x.expand(n, -1), method, **run)
    error = found.log_prob - exact
    assert abs(error.mean()) < 5 * error.std() / n**0.5
    # of two or more terms: the mean of their squared error is the variance; 5 deviations of a ratio of two such means
    squares = found.std_error**2
    noise = (squares.var() / squares.mean() ** 2 + (error**2).var() / error.var() ** 2) / n
    assert squares.mean() / error.var() == pytest.approx(1.0, abs=5 * math.sqrt(float(noise)))
    assert torch.allclose(log_likelihood(data.field(P), x, HutchPP(6), **run).log_prob, exact, atol=1e-9)


def test_hutch_pp_is_exact_along_the_flow_of_two_narrow_modes():
    """The Jacobian is a multiple of the identity, of about the dimension's size, plus a matrix of rank 1."""
    data = mixture(16)
    x = data.sample(1, seed=0)
    run: Any = {"solver": hb.DPMSolver(2), "grid": hb.grids.half_log_snr(P, 6)}
    found = log_likelihood(data.field(P), x.expand(20, -1), HutchPP(6), **run)
    assert torch.allclose(found.log_prob, log_likelihood(data.field(P), x, **run).log_prob, rtol=0, atol=1e-9)


@pytest.mark.parametrize("divergence", ["exact", Hutchinson(3), HutchPP(5)], ids=str)
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_on_a_grid_a_sample_knows_nothing_of_its_batch(divergence: Any, dtype):
    """Bit for bit, for a field that works elementwise; states of images keep their shape."""
    x = torch.randn(7, 1, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(3)).to(dtype)
    run: Any = {"divergence": divergence, "solver": hb.DPMSolverPP(), "grid": hb.grids.half_log_snr(P, 5)}
    whole = log_likelihood(bounded_field(P, "noise"), x, first=10, **run)
    part = log_likelihood(bounded_field(P, "noise"), x[4:6], first=14, **run)
    assert torch.equal(part.log_prob, whole.log_prob[4:6])
    assert torch.equal(part.latent, whole.latent[4:6])
    assert whole.latent.shape == x.shape
    assert whole.log_prob.dtype == F64
    wide = log_likelihood(bounded_field(P, "noise"), x.double(), first=10, **run)
    assert torch.allclose(
        wide.log_prob, whole.log_prob, rtol={F64: 0, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    )


def test_easy_samples_do_not_hide_the_error_of_a_hard_one():
    """0 is at rest under eps = sin(2 x); the steps are those that the point beside it needs."""
    field = hb.Field(P, lambda t, x: torch.sin(2 * x))
    hard = torch.full((1, 1), 0.5, dtype=F64)
    alone = log_likelihood(field, hard)
    among = log_likelihood(field, torch.cat([hard, torch.zeros(200, 1, dtype=F64)]))
    assert log_likelihood(field, 0 * hard).nfe < alone.nfe
    assert among.nfe >= alone.nfe
    assert torch.allclose(alone.log_prob, among.log_prob[:1], rtol=1e-6)


def test_gradients_are_the_score_and_its_derivative():
    """By both engines; second derivatives go through the exact divergence."""
    exact = MIXTURE.at(P, P.t_min)
    grid = hb.grids.half_log_snr(P, 30)
    with torch.enable_grad():
        x = X[:2].clone().requires_grad_()
        wanted = torch.autograd.grad(exact.log_prob(x).sum(), x, create_graph=True)[0]
        curvature = torch.autograd.grad(wanted.sum(), x)[0]
        for options, atol in (({"solver": "dopri5"}, 1e-3), ({"solver": hb.DPMSolver(3), "grid": grid}, 5e-2)):
            found = log_likelihood(MIXTURE.field(P), x, prior=MIXTURE.at(P, P.T), **options)  # type: ignore[arg-type]
            score = torch.autograd.grad(found.log_prob.sum(), x, create_graph=True)[0]
            assert torch.allclose(score, wanted, atol=atol)
            assert torch.allclose(torch.autograd.grad(score.sum(), x)[0], curvature, atol=20 * atol)


def test_the_adjoint_equation_gives_the_gradients_of_backpropagation():
    weight = torch.tensor([[0.6, 0.3], [-0.2, 0.5]], dtype=F64, requires_grad=True)
    field, parameters = hb.Field(P, lambda t, x: torch.tanh(x @ weight) + 0.1 * t), [weight]

    def gradients(**options):
        x = X[:2].clone().requires_grad_()
        found = log_likelihood(field, x, Hutchinson(2), solver="dopri5", **options)
        assert found.log_prob.grad_fn is not None
        return torch.autograd.grad(found.log_prob.sum(), [x, *parameters])

    with torch.enable_grad():
        for one, other in zip(gradients(), gradients(adjoint_params=parameters), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Clipped(hb.Solver):
    """A step that is not linear."""

    integrates = (hb.Field,)

    def step(self, field, x, t, s, draw):
        return field.process.alpha(s) * field.data(t, x).clamp(-1, 1)


class NoDensity:
    def sample(self, n, seed):
        return torch.zeros(n, 2)


GRID = hb.grids.half_log_snr(P, 5)
FIELD = MIXTURE.field(P)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "field": ({"field": FIELD.probability_flow()}, "field must be a Field, got ProbabilityFlow"),
    "x0 list": ({"x0": [[1.0, 2.0]]}, "x0 must be a tensor"),
    "x0 integers": ({"x0": torch.ones(2, 2, dtype=torch.int64)}, "floating point"),
    "x0 nan": ({"x0": torch.tensor([[math.nan, 1.0]])}, "1 of 2 entries of x0"),
    "x0 empty": ({"x0": torch.ones(3, 0)}, "no elements"),
    "x0 dimension": ({"x0": torch.ones(2, 3)}, "prod.shape. = 2"),
    "dimension of the prior": ({"prior": mixture(3)}, r"prior.log_prob.x. failed .*\(4, 2\).*prod.shape. = 3"),
    "prior without density": ({"prior": NoDensity()}, "log_prob"),
    "elementwise prior": ({"prior": torch.distributions.Normal(0.0, 1.0)}, r"gave \(4, 2\).*must give \(4,\)"),
    "singular prior": ({"prior": hb.reference.Gaussian([0.0, 0.0], 0.0)}, "no density"),
    "Brownian": ({"field": MIXTURE.field(hb.Brownian())}, "prior = None"),
    "divergence": ({"divergence": "hutchinson"}, "`divergence` = 'hutchinson'"),
    "rtol": ({"rtol": 0.0}, "rtol = 0.0 must be positive"),
    "atol": ({"atol": math.inf}, "atol = inf"),
    "rtol of float32": ({"x0": X.float(), "rtol": 1e-8}, "rtol = 1e-08 is below .*float32"),
    "solver name": ({"solver": "rk45"}, "solver = 'rk45' is not one of 'dopri5', 'dopri8'"),
    "solver class": ({"solver": hb.Heun}, "solver = .*Heun"),
    "no grid": ({"solver": hb.Heun()}, "grid = None"),
    "grid for dopri": ({"grid": GRID}, "grid is for our own solvers"),
    "grid to 0": ({"solver": hb.Heun(), "grid": hb.grids.uniform(P, 4, t_end=0.0)}, "t = 0, where sigma = 0"),
    "grid beyond T": ({"solver": hb.Heun(), "grid": [0.1, 1.5]}, "beyond T"),
    "grid before T": ({"solver": hb.Heun(), "grid": [0.5, 0.1]}, "ends at t = 0.5 but the prior"),
    "t_min with a grid": ({"solver": hb.Heun(), "grid": GRID, "t_min": 0.1}, "t_min = 0.1 is for adaptive"),
    "t_min": ({"t_min": 0.0}, r"t_min = 0.0 must be a number in \(0, T\)"),
    "churn": ({"solver": hb.Heun(churn=1.0), "grid": GRID}, "not deterministic"),
    "ancestral": ({"solver": hb.Ancestral(), "grid": GRID}, "not deterministic"),
    "corrector": ({"solver": hb.Langevin(), "grid": GRID}, "not deterministic"),
    "not linear": ({"solver": Clipped(), "grid": GRID}, "has no plan"),
    "first": ({"first": -1}, "`first` = -1"),
    "steps": ({"max_steps": 0}, "max_steps = 0"),
    "too few steps": ({"max_steps": 3}, "dopri8 gave up .*max_num_steps exceeded .*max_steps = 3"),
    "adjoint on a grid": ({"solver": hb.Heun(), "grid": GRID, "adjoint_params": []}, "adjoint_params is for adaptive"),
    "field nan": ({"field": hb.Field(P, lambda t, x: x / 0.0)}, r"12 of 12 entries .* at t = 0.001"),
    "field shape": ({"field": hb.Field(P, lambda t, x: x[:1])}, "shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    changes, message = BAD[name]
    options = {"field": FIELD, "x0": X, **changes}
    with pytest.raises((TypeError, ValueError, RuntimeError, FloatingPointError), match=message):
        log_likelihood(options.pop("field"), options.pop("x0"), **options)


def test_zero_probes_are_refused():
    with pytest.raises(ValueError, match="`probes` = 0"):
        Hutchinson(0)


def test_no_samples_have_no_likelihoods():
    assert log_likelihood(FIELD, X[:0]).log_prob.shape == (0,)
    for method, kept in (("exact", False), (Hutchinson(1), False), (Hutchinson(8), True)):
        error = log_likelihood(FIELD, X[:0], method).std_error
        assert (error is not None) == kept
        assert error is None or error.shape == (0,)
    assert log_likelihood(FIELD, X[:0], solver=hb.Heun(), grid=GRID).log_prob.shape == (0,)


def test_without_torchdiffeq_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"solver='dopri8' needs torchdiffeq: pip install .* solver=hb.DPMSolver"):
        log_likelihood(FIELD, X)
    log_likelihood(FIELD, X, solver=hb.Heun(), grid=GRID)
