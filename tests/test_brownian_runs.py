"""Runs on a BrownianPath: every stochastic solver takes it, every grid follows it, shards and resumed runs agree."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import SOLVERS, bounded_field

import halfbridge as hb
from halfbridge.kernels import normal
from halfbridge.solvers.brownian import BrownianPath

P = hb.VP()
FIELD = bounded_field(P, "noise")
GRID = hb.grids.half_log_snr(P, 6)
STOCHASTIC = [s for s in SOLVERS if s.family != "ode"]
LIKE = torch.empty(3, 2, dtype=torch.float64)


def test_twenty_and_forty_steps_follow_one_path():
    """dX = dW: both end at x + W_s - W_t, on grids that run up and down, with and without plan."""
    x = normal((4, 3), 1, dtype=torch.float64)
    sde = hb.SDE(lambda t, x: torch.zeros_like(x), 1.0)
    for start, stop in ((0.0, 1.0), (1.0, 0.001), (37.3, 80.0)):
        want = x + BrownianPath(3).increment(start, stop, x)
        coarse, fine = (
            hb.solve(sde, hb.EulerMaruyama(), x, grid=np.linspace(start, stop, n + 1), seed=BrownianPath(3), save="all")
            for n in (20, 40)
        )
        torch.testing.assert_close(fine.x, want, rtol=0, atol=1e-13)
        torch.testing.assert_close(coarse.trajectory, fine.trajectory[::2], rtol=0, atol=1e-13)
        stepped = hb.solve(
            sde, hb.EulerMaruyama(), x, grid=np.linspace(start, stop, 21), seed=BrownianPath(3), plan=False
        )
        torch.testing.assert_close(stepped.x, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
@pytest.mark.parametrize("plan", [True, False])
def test_the_first_draw_of_a_step_is_its_increment_and_later_ones_are_not(solver, plan):
    path, asked = BrownianPath(4), []

    def spy(draw, t, s, like):
        asked.append((draw, t, s))
        return path(draw, t, s, like)

    x = normal((3, 2), 8, dtype=torch.float64)
    got = hb.solve(FIELD, solver, x, grid=GRID, seed=spy, plan=plan).x
    assert [draw for draw, _, _ in asked] == list(range(1, len(asked) + 1))
    each = len(asked) // 6
    for i, (t, s) in enumerate(itertools.pairwise(GRID)):
        first, *later = asked[each * i : each * (i + 1)]
        assert first[1:] == (t, s)
        assert all(call[1:] == (s, s) for call in later)
    assert torch.equal(got, hb.solve(FIELD, solver, x, grid=GRID, seed=BrownianPath(4), plan=plan).x)


def test_later_draws_and_the_prior_are_the_plain_streams():
    path = BrownianPath(9, 5)
    assert torch.equal(path(3, 0.4, 0.4, LIKE), normal((3, 2), 9, 3, 5, dtype=torch.float64))
    one = hb.sample(hb.Field(hb.EDM(), lambda t, x: x), hb.DDIM(), grid=[80.0, 0.0], shape=(3, 2), seed=BrownianPath(9))
    torch.testing.assert_close(one, 80.0 * normal((3, 2), 9) * (1 - 80.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("solver", [s for s in STOCHASTIC if "batch" not in repr(s)], ids=repr)
def test_a_sample_depends_on_its_global_index_only(solver):
    whole = hb.sample(FIELD, solver, grid=GRID, shape=(7, 3), seed=BrownianPath(5, 2))
    for k, n in ((0, 1), (1, 4), (5, 2)):
        for part in (
            hb.sample(FIELD, solver, grid=GRID, shape=(n, 3), seed=BrownianPath(5, 2), first=k),
            hb.sample(FIELD, solver, grid=GRID, shape=(n, 3), seed=BrownianPath(5, 2 + k)),
        ):
            assert torch.equal(part, whole[k : k + n])


def test_a_given_prior_is_drawn_for_the_paths_samples():
    law = hb.reference.Gaussian([1.0, -1.0], [[2.0, 0.5], [0.5, 1.0]])
    field = bounded_field(hb.Brownian(), "noise")
    options = {"grid": hb.grids.uniform(hb.Brownian(), 3), "prior": law, "dtype": torch.float64}
    whole = hb.sample(field, hb.Ancestral(), shape=(6, 2), seed=BrownianPath(2), **options)
    part = hb.sample(field, hb.Ancestral(), shape=(2, 2), seed=BrownianPath(2, 1), first=3, **options)
    torch.testing.assert_close(part, whole[4:], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
@pytest.mark.parametrize("plan", [True, False])
def test_a_run_on_a_path_continues_bit_for_bit(solver, plan):
    x, states, grid = normal((3, 2), 8), [], np.append(GRID, 0.0)
    whole = hb.solve(FIELD, solver, x, grid=grid, seed=BrownianPath(8), callback=states.append, plan=plan).x
    for state in states[1::2]:
        assert torch.equal(hb.solve(FIELD, solver, state, grid=grid, seed=BrownianPath(8), plan=plan).x, whole)


def test_matrix_noise_draws_from_the_path():
    a = torch.tensor([[1.0, 0.5, -2.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    x = normal((4, 2), 1, dtype=torch.float64)
    sde = hb.SDE(lambda t, x: torch.zeros_like(x), lambda t: a, "matrix")
    got = hb.solve(sde, hb.EulerMaruyama(), x, grid=[0.0, 0.3, 1.0], seed=BrownianPath(3)).x
    w = BrownianPath(3).increment(0.0, 1.0, torch.empty(4, 3, dtype=torch.float64))
    torch.testing.assert_close(got, x + w @ a.T, rtol=1e-13, atol=1e-13)


def errors_by_refinement(sde, x, end, steps, exact):
    """Mean absolute error of Euler-Maruyama on [0, 1] for each number of steps, a row a sample."""
    found = [
        hb.solve(sde, hb.EulerMaruyama(), x, grid=np.linspace(0.0, end, n + 1), seed=BrownianPath(12)).x for n in steps
    ]
    return torch.stack([(y - exact).abs().mean(dim=1) for y in found], dim=1)


def slope(errors, steps):
    """The order between the coarsest and the finest grid, and its standard error by the delta method."""
    mean, span = errors.mean(0), math.log(steps[-1] / steps[0])
    relative = errors[:, 0] / mean[0] - errors[:, -1] / mean[-1]
    return float((mean[0] / mean[-1]).log()) / span, float(relative.std()) / math.sqrt(len(errors)) / span


def test_euler_maruyama_has_strong_order_one_half_for_multiplicative_noise():
    """Geometric Brownian motion: X_1 = exp((mu - sigma^2/2) + sigma W_1), from the same path."""
    mu, sigma, steps = 0.3, 0.8, (16, 64, 256)
    x = torch.ones(3000, 1, dtype=torch.float64)
    sde = hb.SDE(lambda t, x: mu * x, lambda t, x: sigma * x, "diagonal")
    exact = torch.exp(mu - sigma**2 / 2 + sigma * BrownianPath(12).increment(0.0, 1.0, x))
    order, error = slope(errors_by_refinement(sde, x, 1.0, steps, exact), steps)
    assert error < 0.02
    assert abs(order - 0.5) < 4 * error + 0.03  # 0.03: what 16 steps are away from the limit


def test_euler_maruyama_has_strong_order_one_for_additive_noise():
    """dX = -X^3 dt + dW against 4096 steps of the same path, whose own error is 1/32 of the finest grid's."""
    steps = (16, 64, 128)
    x = torch.zeros(500, 1, dtype=torch.float64)
    sde = hb.SDE(lambda t, x: -(x**3), 1.0)
    fine = hb.solve(sde, hb.EulerMaruyama(), x, grid=np.linspace(0.0, 1.0, 4097), seed=BrownianPath(12)).x
    order, error = slope(errors_by_refinement(sde, x, 1.0, steps, fine), steps)
    assert error < 0.03
    assert abs(order - 1.0) < 4 * error + 0.06  # 0.06: the reference's error, and that of 16 steps


def test_first_is_refused_for_a_noise_object_that_cannot_know_it():
    def noise(draw, t, s, like):
        return torch.zeros_like(like)

    with pytest.raises(ValueError, match="first = 3"):
        hb.solve(FIELD, hb.Ancestral(), torch.ones(2, 2), grid=GRID, seed=noise, first=3)
    with pytest.raises(ValueError, match="first = 3"):
        hb.sample(FIELD, hb.DDIM(), grid=GRID, shape=(2, 2), seed=noise, first=3)
