"""Measured orders, certificates, and the errors they catch."""

import math
from dataclasses import dataclass
from math import expm1

import numpy as np
import pytest
import torch
from cases import DETERMINISTIC, SOLVERS

import halfbridge as hb
from halfbridge.solvers.reference.flows import prescribed_data, prescribed_flow
from halfbridge.solvers.reference.order import law_error

DATA = hb.reference.Gaussian([0.3, -0.8], [[0.8, 0.3], [0.3, 0.4]])
# corrections of fixed size and s_noise other than 1 leave a bias that finer grids do not remove
CONVERGENT = [s for s in SOLVERS if s.order and getattr(s, "s_noise", 1.0) == 1.0] + [hb.Heun(churn=2.0)]
PROCESSES = [hb.VP(), hb.CosineVP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.OU(), hb.Brownian()]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", CONVERGENT, ids=repr)
def test_every_solver_reaches_its_order_on_every_process(solver, process):
    assert hb.reference.observed_order(solver, process, DATA) > solver.order - 0.15


@pytest.mark.parametrize("make", [hb.grids.uniform, hb.grids.quadratic, hb.grids.karras])
@pytest.mark.parametrize(
    "solver", [hb.EulerMaruyama(), hb.DDIM(), hb.Heun(), hb.DPMSolver(3), hb.DPMSolverPP()], ids=repr
)
def test_orders_hold_on_every_grid(solver, make):
    order = hb.reference.observed_order(solver, hb.VP(), DATA, grid=make, t_end=0.05, steps=(80, 160, 320, 640))
    assert order > solver.order - 0.15


@pytest.mark.parametrize("solver", [hb.DPMSolver(2), hb.Ancestral(), hb.Heun()], ids=repr)
def test_orders_are_not_an_accident_of_the_measure(solver):
    """Twice the order would be as wrong as half of it: at most 0.3 above on a generic problem."""
    assert hb.reference.observed_order(solver, hb.OU(), DATA) < solver.order + 0.3


def test_fine_steps_reach_the_exact_law():
    for process in PROCESSES:
        grid = hb.grids.half_log_snr(process, 640)
        assert law_error(hb.DPMSolver(3), process, DATA, grid) < 2e-6
        assert law_error(hb.EulerMaruyama(), process, DATA, grid) < 6e-2


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=repr)
@pytest.mark.parametrize("power", [1, 2, 3])
def test_prescribed_data_isolate_the_quadrature(solver, power):
    p = hb.VP()
    x = torch.tensor([[0.4, -1.0]], dtype=torch.float64)

    def error(n):
        grid = hb.grids.half_log_snr(p, n)
        exact = prescribed_flow(p, power, x, float(grid[0]), float(grid[-1]))
        return float((hb.solve(prescribed_data(p, power), solver, x, grid=grid).x - exact).abs().max())

    order = math.log2(error(100) / error(200))
    assert order > solver.order - 0.15


def test_exact_flow_is_the_gaussian_closed_form():
    for p in (hb.VP(), hb.EDM(), hb.SubVP()):
        law = hb.reference.Gaussian([0.5], [[0.3]])
        x = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64) * p.sigma(p.T)
        s = p.time_at(2.0)
        exact = p.alpha(s) * 0.5 + (law.at(p, s).cov / law.at(p, p.T).cov).sqrt() * (x - p.alpha(p.T) * 0.5)
        torch.testing.assert_close(hb.reference.exact_flow(law.field(p), x, p.T, s), exact, rtol=1e-10, atol=1e-10)


@dataclass(frozen=True)
class Second(hb.Solver):
    """A user's DPM-Solver-2 with one letter to get wrong."""

    slip: str = ""
    order = 2
    evals_per_step = 2
    source = "Lu et al. 2022"

    def step(self, field, x, t, s, draw):
        p = field.process
        lam_t, lam_s = p.half_log_snr(t), p.half_log_snr(s)
        h = lam_s - lam_t
        m = p.time_at(lam_t + h / (3 if self.slip == "midpoint" else 2))
        first = p.sigma({"sigma_s for sigma_m": s, "sigma_t for sigma_m": t}.get(self.slip, m))
        ratio = p.alpha(s if self.slip == "alpha_s for alpha_m" else m) / p.alpha(t)
        u = ratio * x - first * expm1(h / 2) * field.noise(t, x)
        e = field.noise(t if self.slip == "t for m" else m, u)
        last = p.sigma(t if self.slip == "sigma_t for sigma_s" else s)
        growth = expm1(1.01 * h if self.slip == "one per cent" else h)
        return p.alpha(s) / p.alpha(t) * x - last * growth * e


def test_a_users_solver_is_certified():
    verdict = hb.certify(Second())
    assert verdict.passed
    assert verdict.order == pytest.approx(2.0, abs=0.15)
    assert "PASSED: order 2.0" in str(verdict)


SLIPS = [
    "midpoint",
    "sigma_s for sigma_m",
    "sigma_t for sigma_m",
    "alpha_s for alpha_m",
    "t for m",
    "sigma_t for sigma_s",
    "one per cent",
]


@pytest.mark.parametrize("slip", SLIPS)
def test_a_one_letter_error_is_caught_and_the_order_seen_is_said(slip):
    verdict = hb.certify(Second(slip))
    assert not verdict.passed
    assert f"order {verdict.order:.2f} seen, 2 declared" in str(verdict)
    assert "FAILED" in str(verdict)
    if slip in ("sigma_s for sigma_m", "sigma_t for sigma_m"):  # u is O(h^2) off: the order is 2 all the same
        assert verdict.order > 1.85
        assert "a stage is evaluated off the trajectory" in str(verdict)
    else:
        assert verdict.order < 1.6


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=repr)
def test_our_own_stages_lie_where_they_should(solver):
    from halfbridge.solvers.reference.stages import misplaced_stages

    assert misplaced_stages(solver, hb.VP(), hb.grids.half_log_snr(hb.VP(), 8)) == ()


class Third(hb.Solver):
    """DPM-Solver-3 with its second node at 1/2: every formula looks right and the order is 2."""

    order, evals_per_step = 3, 3

    def step(self, field, x, t, s, draw):
        p = field.process
        h = p.half_log_snr(s) - p.half_log_snr(t)
        r1, r2 = 1 / 3, 1 / 2
        m1, m2 = (p.time_at(p.half_log_snr(t) + r * h) for r in (r1, r2))
        eps = field.noise(t, x)
        u1 = p.alpha(m1) / p.alpha(t) * x - p.sigma(m1) * expm1(r1 * h) * eps
        D1 = field.noise(m1, u1) - eps
        u2 = p.alpha(m2) / p.alpha(t) * x - p.sigma(m2) * (
            expm1(r2 * h) * eps + r2 / r1 * (expm1(r2 * h) / (r2 * h) - 1) * D1
        )
        D2 = field.noise(m2, u2) - eps
        return p.alpha(s) / p.alpha(t) * x - p.sigma(s) * (expm1(h) * eps + (expm1(h) / h - 1) / r2 * D2)


def test_a_third_order_solver_with_the_wrong_node_is_seen_to_be_second():
    verdict = hb.certify(Third())
    assert not verdict.passed
    assert verdict.order == pytest.approx(2.0, abs=0.2)


class Understated(hb.Solver):
    """Takes two evaluations, says one."""

    order, evals_per_step = 1, 1

    def step(self, field, x, t, s, draw):
        p = field.process
        field.noise(t, x)
        return p.alpha(s) * field.data(t, x) + p.sigma(s) * field.noise(t, x)


def test_evaluations_are_counted_against_the_declaration():
    verdict = hb.certify(Understated)
    assert not verdict.passed
    assert "3 evaluations a step, declares 1" in str(verdict)


class Forgetful(hb.MultistepSolver):
    """2M with the sign of its correction turned."""

    order, evals_per_step = 2, 1

    def step(self, field, x, t, s, draw, past):
        p = field.process
        h = p.half_log_snr(s) - p.half_log_snr(t)
        data = field.data(t, x)
        D = data if past is None else (1 - h / (2 * past[1])) * data + h / (2 * past[1]) * past[0]
        return p.sigma(s) / p.sigma(t) * x - p.alpha(s) * expm1(-h) * D, (data, h)


def test_a_multistep_sign_error_is_caught():
    verdict = hb.certify(Forgetful())
    assert not verdict.passed
    assert verdict.order == pytest.approx(1.0, abs=0.2)


@dataclass(frozen=True)
class WrongNoise(hb.Solver):
    """The ancestral step with a noise 1 % too large: the mean is right, the variance is not."""

    order = 1
    stochasticity = 1.0

    def step(self, field, x, t, s, draw):
        p = field.process
        r, v = p.transition(s, t)
        return (x + v * field.score(t, x)) / r + 1.01 * math.sqrt(v) * p.sigma(s) / p.sigma(t) * draw()


def test_one_per_cent_of_noise_is_caught():
    verdict = hb.certify(WrongNoise())
    assert not verdict.passed
    assert verdict.order < 0.8


def test_a_users_solver_for_odes_is_certified_on_the_flow():
    """Ralston's method in the problem's own time, which knows no Field."""

    class Ralston(hb.Solver):
        order, evals_per_step = 2, 2
        family, stochasticity = "ode", 0.0
        integrates = (hb.ODE,)
        weight = 3 / 4

        def step(self, ode, x, t, s, draw):
            h = s - t
            k = ode.drift(t, x)
            return x + h * ((1 - self.weight) * k + self.weight * ode.drift(t + 2 / 3 * h, x + 2 / 3 * h * k))

    class Slip(Ralston):
        weight = 0.74

    processes = (hb.VP(), hb.OU())
    assert hb.certify(Ralston(), processes=processes).order == pytest.approx(2.0, abs=0.15)
    assert not hb.certify(Slip(), processes=processes).passed


def test_a_multistep_solver_forgets_what_nobody_reads():
    """The last step, and the one before a step that ends at the data, remember nothing."""
    p = hb.VP()
    kept = [step.past is not None for step in hb.plan(hb.DPMSolverPP(), p, [1.0, 0.7, 0.4, 0.1]).steps]
    assert kept == [True, True, False]
    kept = [step.past is not None for step in hb.plan(hb.DPMSolverPP(), p, [1.0, 0.7, 0.4, 0.0]).steps]
    assert kept == [True, False, False]


def test_certify_refuses_what_has_no_exact_law():
    class Clipped(hb.Solver):
        def step(self, field, x, t, s, draw):
            return field.data(t, x).clamp(-1, 1)

    with pytest.raises(hb.NotLinear, match="clamp"):
        hb.certify(Clipped())
    with pytest.raises(ValueError, match="no order to certify"):
        hb.certify(hb.PredictorCorrector(hb.Ancestral(), hb.Langevin()))


def test_stochastic_solvers_converge_to_the_joint_law_they_claim():
    """DDIM(eta) tends to the member l = eta of the family: with another l its cross-covariance does not converge."""

    class Claimed(hb.DDIM):
        stochasticity = 1.0

    assert hb.reference.observed_order(hb.DDIM(0.5), hb.VP(), DATA) > 0.85
    assert hb.reference.observed_order(Claimed(0.5), hb.VP(), DATA) < 0.1


def test_heun_and_the_flow_agree_to_second_order():
    """Heun on the field (nu as clock) and on probability_flow() (the process's own time) end together as n grows."""
    p = hb.VP()
    mixture = hb.reference.GaussianMixture([0.4, 0.6], [[1.0], [-0.5]], 0.2)
    field = mixture.field(p)
    x = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    gaps = []
    for n in (100, 200, 400):
        grid = hb.grids.quadratic(p, n, t_end=0.05)
        one, other = (hb.solve(q, hb.Heun(), x, grid=grid).x for q in (field, field.probability_flow()))
        gaps.append(float((one - other).abs().max()))
    assert np.log2(gaps[0] / gaps[2]) / 2 == pytest.approx(2.0, abs=0.2)
