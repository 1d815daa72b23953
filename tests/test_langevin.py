"""Correctors: the step sizes of Song et al. 2021 spelled out, and what predictor-corrector does with them."""

import math

import numpy as np
import pytest
import torch

import halfbridge as hb

P = hb.VP()
LAW = hb.reference.GaussianMixture([0.4, 0.6], [[1.0, 0.0, 0.5], [-0.5, 0.3, -1.0]], 0.2)
FIELD = LAW.field(P)
X = torch.tensor([[0.3, -1.2, 0.8], [2.0, 0.1, -0.4]], dtype=torch.float64)
Z = torch.tensor([[1.0, -0.5, 0.2], [-0.3, 0.9, 1.4]], dtype=torch.float64)


def by_hand(x, t, z, snr, factor=1.0, norm="sample"):
    """e = 2 factor (snr |z|/|score|)^2, x + e score + sqrt(2 e) z."""
    score = LAW.field(P, "score").evaluate(t, x)
    z_norm, s_norm = z.norm(dim=1, keepdim=True), score.norm(dim=1, keepdim=True)
    if norm == "batch":
        z_norm, s_norm = z_norm.mean(), s_norm.mean()
    e = 2 * factor * (snr * z_norm / s_norm) ** 2
    return x + e * score + (2 * e).sqrt() * z


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("predicts", ["noise", "score", "data", "velocity"])
@pytest.mark.parametrize("plan", [True, False])
def test_the_snr_step_is_the_papers(norm, predicts, plan):
    """Alone on a grid Langevin corrects at the time reached, whatever the field predicts."""
    got = hb.solve(
        LAW.field(P, predicts), hb.Langevin(snr=0.2, norm=norm), X, grid=[0.6, 0.4], seed=lambda *a: Z, plan=plan
    ).x
    torch.testing.assert_close(got, by_hand(X, 0.4, Z, 0.2, norm=norm), rtol=1e-11, atol=1e-12)


def test_neither_size_means_an_snr_of_016():
    assert hb.Langevin() == hb.Langevin(snr=0.16)
    got = hb.solve(FIELD, hb.Langevin(), X, grid=[0.6, 0.4], seed=lambda *a: Z).x
    torch.testing.assert_close(got, by_hand(X, 0.4, Z, 0.16), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("plan", [True, False])
def test_transition_scales_by_one_minus_beta_of_the_grid(plan):
    """The factor at a level is alpha^2 of the transition from the next lower level, from 0 at the last: 1 - beta_i of
    Song et al., whose chain has 1 - beta = (alpha_i/alpha_(i-1))^2."""
    grid = np.array([0.9, 0.6, 0.4, 0.1])
    x = X
    for t, below in ((0.6, 0.4), (0.4, 0.1), (0.1, 0.0)):
        x = by_hand(x, t, Z, 0.2, factor=(P.alpha(t) / P.alpha(below)) ** 2)
    got = hb.solve(FIELD, hb.Langevin(snr=0.2, transition=True), X, grid=grid, seed=lambda *a: Z, plan=plan).x
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-11)


def test_transition_on_a_ddpm_grid_is_one_minus_beta():
    betas = np.linspace(0.01, 0.3, 6)
    p = hb.DiscreteVP(betas)
    bound = hb.Langevin(transition=True).on(p, np.arange(6.0, 0.0, -1.0))
    for k in range(1, 7):
        assert bound._factor(p, float(k)) == pytest.approx(1 - betas[k - 1], rel=1e-13)


def test_predictor_corrector_predicts_then_corrects_at_the_new_time():
    """Two corrections after an ancestral step, with a normal of its own each."""
    normals = [Z, 0.5 * Z.flip(0), -Z]
    r, v = P.transition(0.4, 0.6)
    score = LAW.field(P, "score").evaluate
    c = math.sqrt(v) * P.sigma(0.4) / P.sigma(0.6)
    x = (X + v * score(0.6, X)) / r + c * normals[0]
    for z in normals[1:]:
        x = by_hand(x, 0.4, z, 0.1)
    solver = hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(snr=0.1), 2)
    got = hb.solve(FIELD, solver, X, grid=[0.6, 0.4], seed=lambda draw, t, s, like: normals[draw - 1])
    torch.testing.assert_close(got.x, x, rtol=1e-11, atol=1e-12)
    assert got.nfe == solver.evals_per_step == 3


def test_no_correction_is_the_predictor_and_no_correction_happens_where_the_noise_ends():
    grid = [0.6, 0.4, 0.0]
    bare = hb.solve(FIELD, hb.Ancestral(), X, grid=grid, seed=3).x
    none = hb.solve(FIELD, hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(), 0), X, grid=grid, seed=3).x
    assert torch.equal(bare, none)
    corrected = hb.PredictorCorrector(hb.DDIM(), hb.Langevin(snr=0.1))
    states = []
    end = hb.solve(FIELD, corrected, X, grid=grid, seed=3, callback=states.append).x
    torch.testing.assert_close(end, FIELD.data(0.4, states[0].x), rtol=1e-12, atol=1e-12)


def test_a_multistep_predictor_remembers_through_corrections():
    """2M inside PC: its past is the data prediction at the corrected state."""
    solver = hb.PredictorCorrector(hb.DPMSolverPP(), hb.Langevin(step_size=0.01))
    grid = [0.8, 0.6, 0.4, 0.2]
    states = []
    hb.solve(FIELD, solver, X, grid=grid, seed=1, callback=states.append)
    torch.testing.assert_close(states[1].past.data, FIELD.data(0.6, states[0].x), rtol=1e-12, atol=1e-12)
    assert states[1].past.h == pytest.approx(P.half_log_snr(0.4) - P.half_log_snr(0.6), rel=1e-14)


def test_langevin_leaves_the_target_invariant_as_the_step_shrinks():
    """Variance of N(0, c) after one step of size e from N(0, c): (1 - e/c)^2 c + 2 e = c + e^2/c, no first-order term."""
    p, law = hb.OU(), hb.reference.Gaussian([0.0], [[0.5]])
    t = 0.7
    c = float(law.at(p, t).cov)
    for e in (0.1, 0.01):
        end = hb.reference.law_of(hb.Langevin(step_size=e), p, [0.8, t], law, start=law.at(p, t))
        assert float(end.cov) - c == pytest.approx(e**2 / c, rel=1e-9)


def test_any_object_with_correct_is_a_corrector():
    class Shrink:
        evals_per_step = 0

        def correct(self, field, x, t, draw):
            return 0.5 * x

    x = hb.solve(FIELD, hb.PredictorCorrector(hb.DDIM(), Shrink()), X, grid=[0.6, 0.4]).x
    torch.testing.assert_close(x, 0.5 * hb.solve(FIELD, hb.DDIM(), X, grid=[0.6, 0.4]).x)
