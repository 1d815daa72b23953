"""The convergence suite: every solver on random problems, against answers that are exact or deterministic."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from cases import DETERMINISTIC, PREDICTIONS, SOLVERS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import halfbridge as hb
from halfbridge import testing
from halfbridge.solvers.reference.certify import PROCESSES
from halfbridge.solvers.reference.law import gains

# corrections of fixed size and s_noise other than 1 leave a bias that finer grids do not remove
CONVERGENT = [s for s in SOLVERS if s.order and getattr(s, "s_noise", 1.0) == 1.0] + [hb.Heun(churn=2.0)]
CHAINS = [
    hb.EulerMaruyama(),
    hb.ReverseDiffusion(),
    hb.Ancestral(),
    hb.Ancestral("transition"),
    hb.DDIM(0.4),
    hb.DDIM(1.0),
]
# what these compute depends on x/alpha and nu alone
INVARIANT = [
    hb.DDIM(), hb.DDIM(0.4), hb.DDIM(1.0), hb.Ancestral(), hb.Heun(), hb.Heun(churn=1.5),
    hb.DPMSolver(1), hb.DPMSolver(2), hb.DPMSolver(3), hb.DPMSolverPP(1), hb.DPMSolverPP(2),
]  # fmt: skip
GENERATE = (Phase.explicit, Phase.generate)  # an order takes seconds: shrinking it would take minutes
few = settings(max_examples=3, deadline=None, derandomize=True, phases=GENERATE)
some = settings(max_examples=20, deadline=None, derandomize=True)


@few
@pytest.mark.parametrize("solver", CONVERGENT, ids=repr)
@given(testing.processes(discrete=False), testing.gaussians(), st.sampled_from(PREDICTIONS))
def test_the_whole_law_on_random_gaussians_converges_at_the_declared_order(solver, process, data, predicts):
    testing.assert_order(solver, process, data, predicts=predicts)


@few
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=repr)
@given(st.data())
def test_flows_of_random_mixtures_are_followed_at_the_declared_order(solver, dim, data):
    process, mixture = data.draw(testing.processes(discrete=False)), data.draw(testing.mixtures(dim))
    steps = (20, 40, 80) if solver.order == 2 else (40, 80, 160)
    testing.assert_order(solver, process, mixture, steps=steps, predicts=data.draw(st.sampled_from(PREDICTIONS)))


@few
@pytest.mark.parametrize("solver", CHAINS, ids=repr)
@given(st.data())
def test_laws_on_random_mixtures_converge_at_the_declared_order(solver, data):
    process, mixture = data.draw(testing.processes(discrete=False)), data.draw(testing.mixtures(1))
    testing.assert_order(solver, process, mixture, steps=(15, 30, 60), predicts=data.draw(st.sampled_from(PREDICTIONS)))


@pytest.mark.parametrize("process", [hb.VP(), hb.OU()], ids=repr)
@pytest.mark.parametrize("solver", CHAINS[:4], ids=repr)
def test_laws_on_a_mixture_in_the_plane_converge_at_the_declared_order(solver, process):
    mixture = hb.reference.GaussianMixture([0.5, 0.3, 0.2], [[1.0, 0.3], [-0.6, 0.8], [-1.2, -0.5]], 0.2)
    testing.assert_order(solver, process, mixture)


@pytest.mark.parametrize("solver", [s for s in INVARIANT if s.family == "ode"], ids=repr)
def test_kinks_of_a_discrete_process_do_not_show_in_half_log_snr(solver):
    process = hb.DiscreteVP(np.linspace(1e-4, 0.1, 60))
    testing.assert_order(solver, process, hb.reference.Gaussian([0.4, -0.2], [[0.8, 0.3], [0.3, 0.4]]))


@pytest.mark.parametrize("process", [*PROCESSES, hb.Brownian(), hb.DiscreteVP(np.linspace(1e-4, 0.1, 60))], ids=repr)
@pytest.mark.parametrize("solver", CONVERGENT, ids=repr)
def test_the_law_is_the_same_for_every_prediction(solver, process):
    """With the order of `test_orders` on every process, this is that order for every parametrisation."""
    data = hb.reference.Gaussian([0.4, -0.2], [[0.8, 0.3], [0.3, 0.4]])
    end = process.time_at(min(2.0, process.half_log_snr(process.t_min) - 0.1))
    grid = hb.grids.half_log_snr(process, 6, t_end=end)
    if isinstance(solver, hb.Heun) and solver.churn:
        solver = hb.Heun(solver.churn, s_max=process.nu(process.T) / 2)
    want, *others = (gains(hb.plan(solver, process, grid, kind), data) for kind in PREDICTIONS)
    for other in others:
        for a, b in zip(want, other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-8 * float(a.abs().max()) + 1e-10)


@pytest.mark.parametrize("process", [hb.VP(), hb.EDM(), hb.OU()], ids=repr)
def test_corrections_leave_a_mixture_alone_to_first_order_in_their_size(process):
    """The same amount of Langevin time at one level of a bimodal law in n corrections, by quadrature: no samples."""
    mixture = hb.reference.GaussianMixture([0.4, 0.6], [[1.2], [-1.0]], 0.2)
    t = process.time_at(0.5)
    law, score = mixture.at(process, t), mixture.field(process, "score")
    x = torch.linspace(-8, 8, 1601, dtype=torch.float64) * float(law.cov.sqrt())
    exact = law.log_prob(x[:, None]).exp()
    scale = process.sigma(t) ** 2
    errors = []
    for n in (10, 20, 40):
        e = 0.4 * scale / n
        end = hb.reference.chain_law(lambda k, x, e=e: x + e * score(t, x).score, [2 * e] * n, x, exact, tol=1e-8)[-1]
        errors.append(float((end - exact).abs().sum() * (x[1] - x[0])))
    assert 0.9 < math.log2(errors[0] / errors[2]) / 2 < 1.1


def runs(solver, field, grid, x, seed=3):
    with torch.no_grad():
        return hb.solve(field, solver, x, grid=grid, seed=seed).x


@some
@given(st.data(), testing.processes(), testing.mixtures(2))
def test_ddim_0_is_dpm_solver_1_on_anything(data, process, mixture):
    grid, field = data.draw(testing.grids(process, zero=True)), mixture.field(process)
    x = mixture.at(process, process.T).sample(5, seed=1)
    torch.testing.assert_close(
        runs(hb.DDIM(), field, grid, x), runs(hb.DPMSolver(1), field, grid, x), rtol=1e-11, atol=1e-11
    )


@few
@pytest.mark.parametrize("solver", INVARIANT, ids=repr)
@given(st.data(), testing.processes(discrete=False), testing.mixtures(2))
def test_solutions_map_onto_each_other_under_the_change_of_variables(solver, data, process, mixture):
    """x/alpha of any linear process at nu(t) is the state of EDM at its time nu: with the same normals, step by step."""
    grid = data.draw(testing.grids(process, steps=(2, 6)))
    nu = np.array([process.nu(float(t)) for t in grid])
    edm = hb.EDM(sigma_min=nu[-1], sigma_max=2 * nu[0])
    x = mixture.at(process, process.T).sample(5, seed=1)
    if isinstance(solver, hb.Heun) and solver.churn:  # the raised noise must be reached before the end of the process
        solver = hb.Heun(solver.churn, s_max=nu[0] / 1.5)
    ours = runs(solver, mixture.field(process), grid, x) / process.alpha(float(grid[-1]))
    theirs = runs(solver, mixture.field(edm), nu, x / process.alpha(float(grid[0])))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("solver", "order"), [(hb.EulerMaruyama(), 1), (hb.Heun(), 2)], ids=repr)
@few
@given(testing.processes(discrete=False), testing.mixtures(2))
def test_the_probability_flow_there_and_back_returns(solver, order, process, mixture):
    flow = mixture.field(process).probability_flow()
    end = process.time_at(2.0) if process.half_log_snr(process.t_min) > 2.0 else process.t_min
    x = mixture.at(process, end).sample(5, seed=2)

    def gap(n):
        back = hb.grids.half_log_snr(process, n, t_end=end)
        return float((runs(solver, flow, back, runs(solver, flow, back[::-1].copy(), x)) - x).abs().max())

    gaps = [gap(n) for n in (40, 80, 160)]
    assert math.log2(gaps[0] / gaps[2]) / 2 > order - 0.15 or gaps[2] < 1e-11


@dataclass(frozen=True)
class Optimal(hb.Solver):
    """The ancestral step with the variance that is optimal on N(0, v I) (Bao et al. 2022, with tau^2 of the posterior)."""

    v: float = 1.0
    factor: float = 1.0
    order = 1
    stochasticity = 1.0

    def step(self, field, x, t, s, draw):
        p = field.process
        r, added = p.transition(s, t)
        tau2 = added * p.sigma(s) ** 2 / p.sigma(t) ** 2
        c = p.sigma(t) / r - math.sqrt(p.sigma(s) ** 2 - tau2)
        gamma = p.sigma(t) ** 2 / (p.alpha(t) ** 2 * self.v + p.sigma(t) ** 2)  # E|eps(t, x)|^2 / d
        return (x + added * field.score(t, x)) / r + self.factor * math.sqrt(tau2 + c * c * (1 - gamma)) * draw()


@some
@given(st.data(), testing.processes(), st.floats(0.1, 4.0))
def test_the_ancestral_step_with_the_optimal_variance_is_exact_on_isotropic_normals(data, process, v):
    grid, law = data.draw(testing.grids(process)), hb.reference.Gaussian([0.0, 0.0], v)
    end = law.at(process, float(grid[-1]))
    testing.assert_law(hb.reference.law_of(Optimal(v), process, grid, law), end, rtol=1e-9)
    with pytest.raises(AssertionError, match="covariance"):
        testing.assert_law(hb.reference.law_of(Optimal(v, 1.01), process, grid, law), end, rtol=1e-4)


@some
@given(testing.processes(), testing.mixtures(3), st.floats(0.02, 0.98), st.permutations(PREDICTIONS))
def test_conversions_commute(process, mixture, share, order):
    """Through any chain of predictions the field of a mixture stays what it is."""
    lam = process.half_log_snr(process.T)
    t = process.time_at(lam + share * (process.half_log_snr(process.t_min) - lam))
    x = mixture.at(process, t).sample(5, seed=0)
    field = mixture.field(process, order[0])
    for name in order[1:]:
        field = hb.Field(process, lambda t, x, f=field, name=name: getattr(f(t, x), name), name)
    size = {"noise": 1.0, "score": 1 / process.sigma(t), "data": 1.0, "velocity": process.alpha(t) + process.sigma(t)}
    for name in PREDICTIONS:
        got, want = getattr(field(t, x), name), getattr(mixture.field(process, name)(t, x), name)
        lost = 1e-9 * max(1.0, process.nu(t), 1 / process.nu(t))  # data from noise at high noise, and back, cancel
        assert float((got - want).abs().max()) <= lost * size[name]


@pytest.mark.parametrize("process", [hb.VP(), hb.EDM(), hb.OU()], ids=repr)
def test_corrections_leave_the_law_alone_to_first_order_in_their_size(process):
    """A tenth of a unit of Langevin time at one level, from the exact law: the bias falls with the step."""
    data = hb.reference.Gaussian([0.4, -0.2], [[0.8, 0.3], [0.3, 0.4]])
    t = process.time_at(0.0)
    exact = data.at(process, t)
    errors = []
    for n in (20, 40, 80):
        grid = t * (1 - 1e-12 * np.arange(n + 1))
        law = hb.reference.law_of(hb.Langevin(step_size=0.1 / n), process, grid, data, exact)
        errors.append(float((law.cov - exact.cov).norm()))
        assert float((law.mean - exact.mean).norm()) < 1e-9
    assert 0.9 < math.log2(errors[0] / errors[2]) / 2 < 1.1


@pytest.mark.parametrize("predictor", [hb.Ancestral(), hb.DDIM(), hb.DPMSolver(2)], ids=repr)
def test_a_corrected_run_tends_to_the_law_as_both_steps_shrink(predictor):
    """Predictor steps of order 1/n and corrections of size 1/n^2 in all 1/n: the law converges at first order."""
    process, data = hb.VP(), hb.reference.Gaussian([0.4, -0.2], [[0.8, 0.3], [0.3, 0.4]])
    errors = []
    for n in (40, 80, 160):
        grid = hb.grids.half_log_snr(process, n, t_end=0.05)
        solver = hb.PredictorCorrector(predictor, hb.Langevin(step_size=0.2 / n**2))
        law = hb.reference.law_of(solver, process, grid, data)
        errors.append(law.w2(data.at(process, 0.05)))
    assert math.log2(errors[0] / errors[2]) / 2 > 0.85
