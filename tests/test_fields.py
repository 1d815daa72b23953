"""Predictions, their views, and the problems a field defines."""

import itertools
import math

import numpy as np
import pytest
import torch
import torchdiffeq
import torchsde
from cases import PREDICTIONS, PROCESSES
from hypothesis import given, settings
from hypothesis import strategies as st

import halfbridge as hb
from halfbridge.solvers.field import view_coefficients

TIMES = [0.01, 0.2, 0.5, 0.9]


def mixture(process, predicts):
    return hb.reference.GaussianMixture([0.3, 0.7], [[0.5, -1.0], [-1.0, 0.4]], 0.3).field(process, predicts)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(("predicts", "view"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_every_view_of_every_prediction_is_the_native_one(process, predicts, view):
    """The mixture forms each prediction natively; views of the others must agree, to the conversion's own condition."""
    x = torch.tensor([[0.3, -0.7], [1.5, 2.0], [-2.0, 0.1]], dtype=torch.float64)
    for share in TIMES:
        t = process.t_min + share * (process.T - process.t_min)
        state = x * math.hypot(process.alpha(t), process.sigma(t))
        got = getattr(mixture(process, predicts)(t, state), view)
        want = mixture(process, view).evaluate(t, state)
        c_x, c_p = view_coefficients(view, predicts, process.alpha(t), process.sigma(t))
        size = (
            1.0
            + abs(c_x) * float(state.abs().max())
            + abs(c_p) * float(mixture(process, predicts).evaluate(t, state).abs().max())
        )
        assert (got - want).abs().max() < 1e-13 * size


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_views_satisfy_the_identities(process, predicts):
    """x = alpha D + sigma eps, score = -eps/sigma, v = alpha eps - sigma D, flow = a x - g^2 score/2."""
    fn = lambda t, x: torch.sin(3 * x) + t  # noqa: E731
    t = process.t_min + 0.4 * (process.T - process.t_min)
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    m = hb.Field(process, fn, predicts)(t, x)
    a, s = process.alpha(t), process.sigma(t)
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(a * m.data + s * m.noise, x, **close)
    torch.testing.assert_close(-m.noise / s, m.score, **close)
    torch.testing.assert_close(a * m.noise - s * m.data, m.velocity, **close)
    torch.testing.assert_close(process.drift_rate(t) * x - process.diffusion(t) ** 2 * m.score / 2, m.flow, **close)
    torch.testing.assert_close(getattr(m, predicts), fn(t, x), rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(alpha=st.floats(1e-3, 1.0), sigma=st.floats(1e-3, 1e3), chain=st.permutations(PREDICTIONS))
def test_conversions_commute(alpha, sigma, chain):
    """Going through any chain of views and back to the first gives the identity (0, 1)."""
    c_x, c_p = 0.0, 1.0
    largest = 1.0
    for here, there in itertools.pairwise([*chain, chain[0]]):
        d_x, d_p = view_coefficients(there, here, alpha, sigma)
        c_x, c_p = d_x + d_p * c_x, d_p * c_p
        largest = max(largest, abs(c_x), abs(c_p), abs(d_x), abs(d_p))
    assert abs(c_x) < 1e-14 * largest**2
    assert abs(c_p - 1.0) < 1e-14 * largest**2


def test_shorthands_are_the_views():
    field = mixture(hb.VP(), "data")
    x = torch.ones(1, 2, dtype=torch.float64)
    for name in (*PREDICTIONS, "flow"):
        assert torch.equal(getattr(field, name)(0.3, x), getattr(field(0.3, x), name))


def test_time_may_be_a_tensor_and_reaches_fn_as_a_float():
    seen = []
    field = hb.Field(hb.VP(), lambda t, x: seen.append(t) or x)
    field(torch.tensor(0.25, dtype=torch.float64), torch.ones(1, 2))
    hb.solve(field, hb.DPMSolver(2), torch.ones(1, 2), grid=[1.0, 0.5])
    assert all(type(t) is float for t in seen)
    assert seen[0] == 0.25


@pytest.mark.parametrize("process", [hb.VP(), hb.SubVP(), hb.EDM(), hb.OU()], ids=repr)
def test_reverse_sde_and_flow_are_the_papers(process):
    """Anderson's drift a x - g^2 score and the flow's half of it; reversed() is the negative drift at T - tau."""
    field = mixture(process, "noise")
    t = 0.3 * process.T
    x = torch.tensor([[0.4, -0.2]], dtype=torch.float64)
    a, g2 = process.drift_rate(t), process.diffusion(t) ** 2
    sde, ode = field.reverse_sde(), field.probability_flow()
    torch.testing.assert_close(sde.drift(t, x), a * x - g2 * field.score(t, x))
    torch.testing.assert_close(ode.drift(t, x), a * x - g2 / 2 * field.score(t, x))
    tau = process.T - t
    torch.testing.assert_close(
        sde.reversed().f(torch.tensor(tau, dtype=torch.float64), x), -sde.drift(t, x), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(ode.reversed()(tau, x), -ode.drift(t, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sde.reversed().g(tau, x), torch.full_like(x, process.diffusion(t)), rtol=1e-9, atol=1e-9)
    assert (sde.reversed().noise_type, sde.reversed().sde_type) == ("diagonal", "ito")


def test_euler_maruyama_on_a_field_is_euler_maruyama_on_its_reverse_sde():
    field = mixture(hb.VP(), "velocity")
    x = torch.ones(3, 2, dtype=torch.float64)
    grid = hb.grids.uniform(hb.VP(), 8)
    one, other = (hb.solve(p, hb.EulerMaruyama(), x, grid=grid, seed=2).x for p in (field, field.reverse_sde()))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_heun_on_the_flow_takes_an_euler_step_where_the_noise_ends():
    """Karras et al. 2022, algorithm 1: with sigma(t) = t that last step is exactly D."""
    p = hb.EDM()
    field = mixture(p, "data")
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    end = hb.solve(field.probability_flow(), hb.Heun(), x, grid=[0.5, 0.0])
    torch.testing.assert_close(end.x, field.data(0.5, x), rtol=1e-13, atol=1e-13)
    assert end.nfe == 1


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "matrix"])
@pytest.mark.parametrize("kind", ["constant", "time", "state"])
def test_every_kind_of_diffusion_multiplies_its_normals(noise, kind):
    """One step from 0 without drift is sqrt(h) g(t, x) z, with g spelled out for each kind."""
    base = {
        "scalar": torch.tensor(0.7, dtype=torch.float64),
        "diagonal": torch.tensor([0.7, -0.2, 0.1], dtype=torch.float64),
        "matrix": torch.tensor([[0.7, 0.1], [0.0, 0.3], [-0.4, 0.2]], dtype=torch.float64),
    }[noise]
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]], dtype=torch.float64)
    weight = {"scalar": (2,), "diagonal": (2, 1), "matrix": (2, 1, 1)}[noise]
    diffusion = {
        "constant": float(base) if noise == "scalar" else base,
        "time": lambda t: (1 + t) * base,
        "state": lambda t, x: (1 + t) * x.norm(dim=1).reshape(weight) * base,
    }[kind]
    factor = {"constant": torch.ones(2), "time": torch.full((2,), 1.5), "state": 1.5 * x.norm(dim=1)}[kind].double()
    z = hb.kernels.normal((2, 2 if noise == "matrix" else 3), 6, 1, dtype=torch.float64)
    moved = z @ base.T if noise == "matrix" else base * z
    sde = hb.SDE(lambda t, x: torch.zeros_like(x), diffusion, noise)
    for plan in (True, False):
        got = hb.solve(sde, hb.EulerMaruyama(), x, grid=[0.5, 0.75], seed=6, plan=plan).x
        torch.testing.assert_close(got, x + 0.5 * factor[:, None] * moved, rtol=1e-13, atol=1e-13)
    if noise != "matrix":
        torch.testing.assert_close(sde.g(0.5, x), (factor[:, None] * base).expand(2, 3))
    else:
        torch.testing.assert_close(sde.g(0.5, x), factor[:, None, None] * base)


def test_our_problems_run_in_torchsde_and_torchdiffeq():
    p = hb.OU()
    law = hb.reference.Gaussian([0.5], [[0.3]])
    field = law.field(p)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    taus = torch.tensor([0.0, p.T - 0.1], dtype=torch.float64)
    end = torchdiffeq.odeint(field.probability_flow().reversed(), x, taus, rtol=1e-10, atol=1e-10)[-1]
    exact = p.alpha(0.1) * 0.5 + (law.at(p, 0.1).cov / law.at(p, p.T).cov).sqrt() * (x - p.alpha(p.T) * 0.5)
    torch.testing.assert_close(end, exact, rtol=1e-7, atol=1e-7)
    start = law.at(p, p.T).sample(4000, 0)
    ends = torchsde.sdeint(field.reverse_sde().reversed(), start, taus, dt=0.02)[-1]
    sd = float(law.at(p, 0.1).cov.sqrt())
    assert abs(float(ends.mean()) - p.alpha(0.1) * 0.5) < 5.5 * sd / math.sqrt(4000) + 0.01  # 0.01: bias of dt = 0.02


def test_a_learned_diffusion_gets_gradients():
    log_g = torch.zeros((), dtype=torch.float64, requires_grad=True)
    sde = hb.SDE(lambda t, x: -x, lambda t: log_g.exp())
    x = hb.solve(sde, hb.EulerMaruyama(), torch.zeros(2, 3, dtype=torch.float64), grid=np.linspace(0, 1, 4), seed=0).x
    (grad,) = torch.autograd.grad(x.sum(), log_g)
    torch.testing.assert_close(grad, x.sum())  # x is linear in g: dx/d log g = x
