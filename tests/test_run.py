"""sample and solve: the same samples whatever the batch; saving, resuming, noise objects, checks."""

import itertools

import numpy as np
import pytest
import torch
from cases import SOLVERS, bounded_field
from hypothesis import given, settings
from hypothesis import strategies as st

import halfbridge as hb

P = hb.VP()
FIELD = bounded_field(P, "noise")
GRID = hb.grids.half_log_snr(P, 6)
COUPLED = [
    s for s in SOLVERS if "batch" in repr(s)
]  # norms averaged over the batch: samples depend on their neighbours
FREE = [s for s in SOLVERS if s not in COUPLED]


@pytest.mark.parametrize("solver", FREE, ids=repr)
def test_a_sample_depends_on_its_global_index_only(solver):
    """Elementwise fields have no rounding that depends on the batch: every bit must agree."""
    whole = hb.sample(FIELD, solver, grid=GRID, shape=(7, 3), seed=5)
    parts = [hb.sample(FIELD, solver, grid=GRID, shape=(n, 3), seed=5, first=k) for k, n in ((0, 1), (1, 4), (5, 2))]
    assert torch.equal(torch.cat(parts), whole)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 99), max_size=4, unique=True),
    seed=st.integers(0, 2**64 - 1),
    event=st.sampled_from([(5,), (1, 3, 3), (700,)]),
)
def test_shards_of_any_size_make_the_same_samples(cuts, seed, event):
    """Small states draw all normals of the run at once, large ones in the kernel: no bit may show which."""
    edges = [0, *sorted(cuts), 100]
    grid = hb.grids.half_log_snr(P, 2)
    whole = hb.sample(FIELD, hb.Ancestral(), grid=grid, shape=(100, *event), seed=seed)
    for low, high in itertools.pairwise(edges):
        part = hb.sample(FIELD, hb.Ancestral(), grid=grid, shape=(high - low, *event), seed=seed, first=low)
        assert torch.equal(part, whole[low:high])


def test_the_prior_is_draw_zero_and_the_runs_normals_follow():
    """On one Euler-Maruyama step everything is known: prior_std z0, then g sqrt|s - t| z1."""
    p = hb.OU(theta=0.8, g=1.3)
    grid = np.array([p.T, 4.0])
    z0, z1 = (hb.kernels.normal((4, 2), 3, draw, dtype=torch.float64) for draw in (0, 1))
    x = hb.sample(
        hb.Field(p, lambda t, x: torch.zeros_like(x)),
        hb.EulerMaruyama(),
        grid=grid,
        shape=(4, 2),
        seed=3,
        dtype=torch.float64,
    )
    start = 1.3 / np.sqrt(1.6) * z0
    torch.testing.assert_close(x, (1 + (4.0 - p.T) * -0.8) * start + 1.3 * z1, rtol=1e-14, atol=1e-14)


def test_the_prior_may_be_any_law():
    law = hb.reference.Gaussian([1.0, -1.0], [[2.0, 0.5], [0.5, 1.0]])
    p = hb.Brownian()
    grid = hb.grids.uniform(p, 3)
    field = bounded_field(p, "noise")
    x = hb.sample(field, hb.DDIM(), grid=grid, shape=(5, 2), seed=4, prior=law, dtype=torch.float64)
    want = hb.solve(field, hb.DDIM(), law.sample(5, 4), grid=grid).x
    assert torch.equal(x, want)
    shard = hb.sample(field, hb.DDIM(), grid=grid, shape=(2, 2), seed=4, prior=law, first=3, dtype=torch.float64)
    torch.testing.assert_close(shard, want[3:], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("plan", [True, False])
def test_a_run_continues_from_any_saved_state_bit_for_bit(solver, plan):
    x = hb.kernels.normal((3, 2), 8)
    states = []
    grid = np.append(GRID, 0.0)
    with torch.no_grad():
        whole = hb.solve(FIELD, solver, x, grid=grid, seed=8, callback=states.append, plan=plan)
        assert [s.step for s in states] == list(range(1, len(grid)))
        for state in states:
            saved = type(state)(*(v.clone() if isinstance(v, torch.Tensor) else v for v in state))
            again = hb.solve(FIELD, solver, state, grid=grid, seed=8, plan=plan)
            assert torch.equal(again.x, whole.x)
            assert torch.equal(state.x, saved.x)  # resuming does not write to what was saved
    assert torch.equal(states[-1].x, whole.x)


def test_a_continued_run_counts_only_its_own_evaluations():
    states = []
    hb.solve(FIELD, hb.DPMSolver(3), torch.ones(1, 2), grid=GRID, callback=states.append)
    assert hb.solve(FIELD, hb.DPMSolver(3), states[3], grid=GRID).nfe == 6


def test_a_continued_run_saves_from_where_it_begins():
    states = []
    x = torch.ones(1, 2, dtype=torch.float64)
    full = hb.solve(FIELD, hb.DDIM(), x, grid=GRID, save="all", callback=states.append)
    rest = hb.solve(FIELD, hb.DDIM(), states[2], grid=GRID, save="all")
    assert np.array_equal(rest.times, GRID[3:])
    assert torch.equal(rest.trajectory, full.trajectory[3:])
    ended = hb.solve(FIELD, hb.DDIM(), states[-1], grid=GRID, save="all")
    assert torch.equal(ended.trajectory, full.trajectory[-1:])
    with pytest.raises(ValueError, match="before step 3"):
        hb.solve(FIELD, hb.DDIM(), states[2], grid=GRID, save=[GRID[1]])


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_saving_does_not_change_the_run_and_saves_what_it_says(solver):
    x = hb.kernels.normal((3, 2), 8)
    with torch.no_grad():
        last = hb.solve(FIELD, solver, x, grid=GRID, seed=1)
        full = hb.solve(FIELD, solver, x, grid=GRID, seed=1, save="all")
        some = hb.solve(FIELD, solver, x, grid=GRID, seed=1, save=[GRID[4], GRID[1]])
    assert torch.equal(full.x, last.x)
    assert torch.equal(full.trajectory[0], x)
    assert torch.equal(full.trajectory[-1], last.x)
    assert torch.equal(last.trajectory, last.x[None])
    assert full.trajectory.shape == (7, 3, 2)
    assert np.array_equal(full.times, GRID)
    assert np.array_equal(some.times, GRID[[4, 1]])
    assert torch.equal(some.trajectory, full.trajectory[[4, 1]])
    assert len({tuple(v.flatten().tolist()) for v in full.trajectory}) == 7  # seven different states, not one buffer


def test_gradients_reach_a_saved_trajectory():
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    solution = hb.solve(FIELD, hb.DPMSolver(2), x, grid=GRID, save="all")
    (grad,) = torch.autograd.grad(solution.trajectory[3].sum(), x)
    assert (grad != 0).all()


def test_a_noise_object_drives_the_run():
    asked = []

    def noise(draw, t, s, like):
        asked.append((draw, t, s, tuple(like.shape)))
        return torch.full_like(like, 0.5)

    x = torch.ones(2, 3, dtype=torch.float64)
    got = hb.solve(FIELD, hb.EulerMaruyama(), x, grid=GRID, seed=noise)
    assert asked == [(k + 1, GRID[k], GRID[k + 1], (2, 3)) for k in range(6)]
    again = hb.solve(FIELD, hb.EulerMaruyama(), x, grid=GRID, seed=noise, plan=False)
    torch.testing.assert_close(got.x, again.x, rtol=1e-12, atol=1e-12)


def test_a_deterministic_step_never_draws():
    def never(draw, t, s, like):
        raise AssertionError("a deterministic step asked for a normal")

    grid = np.append(GRID, 0.0)
    for solver in (hb.DDIM(), hb.Heun(), hb.DPMSolver(3), hb.DPMSolverPP(), hb.Heun(churn=9.0, s_min=1e6)):
        for plan in (True, False):
            hb.solve(FIELD, solver, torch.ones(1, 2), grid=grid, seed=never, plan=plan)
    hb.solve(hb.SDE(lambda t, x: -x, 0.0), hb.EulerMaruyama(), torch.ones(1, 2), grid=[0.0, 1.0], seed=never)


def test_general_problems_run_either_way():
    """dx/dt = -x forwards and back by Heun returns to second order; an SDE without noise is its ODE."""
    ode = hb.ODE(lambda t, x: -x)
    x = torch.ones(2, 2, dtype=torch.float64)
    up = np.linspace(0.0, 1.0, 201)
    there = hb.solve(ode, hb.Heun(), x, grid=up).x
    back = hb.solve(ode, hb.Heun(), there, grid=up[::-1].copy()).x
    torch.testing.assert_close(there, x * np.exp(-1.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=0)
    sde = hb.SDE(lambda t, x: -x, 0.0)
    torch.testing.assert_close(
        hb.solve(sde, hb.EulerMaruyama(), x, grid=up).x, hb.solve(ode, hb.EulerMaruyama(), x, grid=up).x
    )


def test_empty_batches_and_scalar_events_run():
    for shape in ((0, 3), (4,), (1, 1, 1, 1)):
        for solver in SOLVERS:
            if solver in COUPLED and shape[0] == 0:
                continue
            assert hb.sample(FIELD, solver, grid=GRID, shape=shape, seed=0).shape == shape


@pytest.mark.parametrize("plan", [True, False])
def test_a_bad_state_is_reported_with_step_time_and_count(plan):
    def fn(t, x):
        return torch.where(torch.arange(x.numel()).reshape(x.shape) < 2, torch.nan, x) if t < 0.6 else x

    field = hb.Field(P, fn)
    grid = np.array([1.0, 0.8, 0.5, 0.2, 0.1])
    with pytest.raises(hb.NonFiniteError, match=r"2 of 6 entries.*(step 2.*t = 0\.5|t = 0\.5.*step 2)"):
        hb.solve(field, hb.DDIM(), torch.ones(2, 3), grid=grid, plan=plan)
    assert hb.solve(field, hb.DDIM(), torch.ones(2, 3), grid=grid, check_finite=False, plan=plan).x.isnan().any()
    with pytest.raises(hb.NonFiniteError, match="initial x"):
        hb.solve(field, hb.DDIM(), torch.full((2, 3), torch.inf), grid=grid, plan=plan)


def test_an_irreproducible_field_is_named_as_such():
    calls = itertools.count()
    field = hb.Field(P, lambda t, x: x * float("nan") if next(calls) == 1 else x)
    with pytest.raises(hb.NonFiniteError, match="second run"):
        hb.solve(field, hb.DDIM(), torch.ones(1, 2), grid=GRID)


def test_progress_counts_steps(capsys):
    hb.solve(FIELD, hb.DDIM(), torch.ones(1, 2), grid=GRID, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_a_prior_that_does_not_fit_the_grid_is_announced():
    with pytest.warns(UserWarning, match=r"starts at t = 0\.5"):
        hb.sample(FIELD, hb.DDIM(), grid=[0.5, 0.1], shape=(1, 2), seed=0)
