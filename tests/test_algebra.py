"""Symbols: what a step may do to a vector, and how often a normal is drawn."""

import math

import numpy as np
import pytest
import torch

import halfbridge as hb
from halfbridge.solvers.algebra import Combine, NotLinear, Trace

GRID = np.array([1.0, 0.5, 0.1])
NONLINEAR = {
    "exp": lambda v: torch.exp(v),
    "power": lambda v: v**2,
    "product": lambda v: v * v,
    "numpy": lambda v: np.exp(v),
    "numpy dot": lambda v: np.dot(np.ones(2), v),
    "norm": lambda v: v.norm(),
    "clamp": lambda v: v.clamp(0, 1),
    "abs": lambda v: abs(v),
    "constant": lambda v: v + 1.0,
    "tensor": lambda v: v + torch.ones(2),
    "scaled by a tensor": lambda v: torch.ones(2) * v,
    "scaled by an array": lambda v: np.ones(2) * v,
    "branch": lambda v: v if v > 0 else -v,
    "truth": lambda v: 2 * v if v else v,
    "index": lambda v: v[0],
    "quotient": lambda v: 1.0 / v,
    "torch quotient": lambda v: torch.tensor(1.0) / v,
    "matrix": lambda v: v @ v,
    "random": lambda v: v + torch.randn_like(v),
    "shape": lambda v: v.shape,
    "gradient scale": lambda v: torch.tensor(2.0, requires_grad=True) * v,
    "remainder": lambda v: v % 1.0,
    "remainder of a number": lambda v: 1.0 % v,
    "floor": lambda v: v // 1,
    "equality": lambda v: torch.where(v == 0, 1.0, v),
    "inequality": lambda v: (v != v).any(),
    "membership": lambda v: v if 0 in v else -v,
    "array": lambda v: np.asarray(v),
    "rounding": lambda v: round(v),
    "linear layer": lambda v: torch.nn.functional.linear(v, torch.eye(2)),
}
LINEAR = {
    "float": lambda v: 2.0 * v,
    "float on the right": lambda v: v * 2.0,
    "numpy scalar": lambda v: np.float64(2.0) * v,
    "numpy scalar on the right": lambda v: v * np.float64(2.0),
    "numpy 0-dim": lambda v: np.array(2.0) * v,
    "tensor scalar": lambda v: torch.tensor(2.0, dtype=torch.float64) * v,
    "tensor scalar on the right": lambda v: v * torch.tensor(2.0),
    "torch.mul": lambda v: torch.mul(v, 2.0),
    "division": lambda v: v / 0.5,
    "numpy division": lambda v: v / np.float64(0.5),
    "sum": lambda v: sum([v, v]),
    "difference": lambda v: 3 * v - v,
    "negated": lambda v: v + (0 - (-v)),
    "torch.add": lambda v: torch.add(v, v),
}


class Quirk(hb.Solver):
    """Euler's method with a step of its own making inside."""

    def __init__(self, quirk):
        self.quirk = quirk

    def step(self, field, x, t, s, draw):
        return x + (s - t) * self.quirk(field.flow(t, x))


@pytest.mark.parametrize("name", NONLINEAR)
def test_what_is_not_linear_is_refused_with_the_operation_named(name):
    with pytest.raises(NotLinear, match="step is not a linear combination"):
        hb.plan(Quirk(NONLINEAR[name]), hb.VP(), GRID)


@pytest.mark.parametrize("name", LINEAR)
def test_every_way_to_double_a_vector_gives_the_same_coefficients(name):
    plain, other = (hb.plan(Quirk(f), hb.VP(), GRID).to_dict() for f in (lambda v: 2 * v, LINEAR[name]))
    for ours, theirs in zip(plain["steps"], other["steps"], strict=True):
        assert dict(theirs["operations"][-1]["terms"]) == pytest.approx(
            dict(ours["operations"][-1]["terms"]), rel=1e-15
        )


def test_a_refused_step_still_runs_on_tensors():
    field = hb.Field(hb.VP(), lambda t, x: x)
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    clipped = hb.solve(field, Quirk(lambda v: v.clamp(-1.0, 1.0)), x, grid=GRID)
    free = hb.solve(field, Quirk(lambda v: v), x, grid=GRID)
    assert clipped.nfe == 2
    assert not torch.equal(clipped.x, free.x)


def test_the_error_names_the_operation():
    with pytest.raises(NotLinear, match=r"step is not a linear combination: exp"):
        hb.plan(Quirk(NONLINEAR["exp"]), hb.VP(), GRID)
    with pytest.raises(NotLinear, match=r"numpy\.exp"):
        hb.plan(Quirk(NONLINEAR["numpy"]), hb.VP(), GRID)
    with pytest.raises(NotLinear, match=r"\.clamp"):
        hb.plan(Quirk(NONLINEAR["clamp"]), hb.VP(), GRID)


def test_infinite_coefficients_are_refused():
    with pytest.raises(ValueError, match="coefficient of the step is inf"):
        hb.plan(Quirk(lambda v: math.inf * v), hb.VP(), GRID)


class Noisy(hb.Solver):
    def __init__(self, body):
        self.body = body

    def step(self, field, x, t, s, draw):
        return self.body(field, x, t, s, draw)


def combines(solver, n=1):
    plan = hb.plan(solver, hb.VP(), np.linspace(1.0, 0.2, n + 1))
    return plan, [op for step in plan.steps for op in step.ops if isinstance(op, Combine)]


def test_a_noisy_state_used_twice_draws_its_normal_once():
    def body(field, x, t, s, draw):
        y = x + 0.5 * draw()
        return 2 * y - field.noise(t, y)

    plan, ops = combines(Noisy(body))
    assert sum(op.draw is not None for op in ops) == 1
    assert len(plan.draws) == 1


def test_a_noisy_sum_used_once_is_one_combination():
    _, ops = combines(Noisy(lambda field, x, t, s, draw: 0.5 * (x + 0.1 * draw()) - 0.2 * field.noise(t, x)))
    (op,) = ops
    assert dict(op.terms) == pytest.approx({"x0": 0.5, "e1": -0.2})
    assert op.scale == pytest.approx(0.05)


def test_two_normals_of_a_step_are_two_kernel_calls_and_keep_their_coefficients():
    plan, ops = combines(Noisy(lambda field, x, t, s, draw: x + 0.3 * draw() + 0.4 * draw()))
    assert [op.scale for op in ops] == [0.3, 0.4]
    assert [draw.index for draw in plan.draws] == [1, 2]


def test_one_normal_may_enter_two_vectors():
    """u = x + z and the result x - z + eps(u): the same z in both, with either sign."""

    def body(field, x, t, s, draw):
        z = draw()
        return x - z + field.noise(t, x + z)

    field = hb.Field(hb.VP(), lambda t, x: 0.25 * x)
    x = torch.zeros(2, 3, dtype=torch.float64)
    grid = np.array([1.0, 0.5])
    z = hb.kernels.normal((2, 3), 7, 1, dtype=torch.float64)
    torch.testing.assert_close(hb.solve(field, Noisy(body), x, grid=grid, seed=7).x, -0.75 * z, rtol=1e-15, atol=1e-15)


def test_a_draw_that_is_not_used_is_still_counted():
    """Draw k is the k-th normal the run asks for, used or not: tensors and symbols must agree."""

    def body(field, x, t, s, draw):
        draw()
        return x + draw()

    field = hb.Field(hb.VP(), lambda t, x: x)
    x = torch.zeros(2, 3, dtype=torch.float64)
    grid = np.array([1.0, 0.5])
    run = hb.solve(field, Noisy(body), x, grid=grid, seed=7).x
    assert torch.equal(run, hb.kernels.normal((2, 3), 7, 2, dtype=torch.float64))
    assert torch.equal(run, hb.solve(field, Noisy(body), x, grid=grid, seed=7, plan=False).x)


def test_vectors_of_two_runs_do_not_mix():
    with pytest.raises(NotLinear, match="two different runs"):
        Trace().vector("x0") + Trace().vector("x0")


def test_assignment_and_updates_in_place_run_on_tensors_with_their_own_meaning():
    """`x += e` changes a tensor but would only rebind a symbol: an alias of x would differ between the two."""

    def masked(field, x, t, s, draw):
        y = x + (s - t) * field.flow(t, x)
        y[:, :1] = 0.0
        return y

    def aliased(field, x, t, s, draw):
        y = x
        x += (s - t) * field.flow(t, x)
        return y + 0.0 * x

    field = hb.Field(hb.VP(), lambda t, x: torch.tanh(x))
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    for body in (masked, aliased):
        with pytest.raises(NotLinear):
            hb.plan(Noisy(body), hb.VP(), GRID)
        start = x.clone()
        planned, plain = (hb.solve(field, Noisy(body), start, grid=GRID, plan=plan).x for plan in (True, False))
        assert torch.equal(planned, plain)
        assert torch.equal(start, x)


def test_terms_that_cancel_are_a_zero_vector():
    class Slope(hb.MultistepSolver):
        def step(self, field, x, t, s, draw, past):
            data = field.data(t, x)
            before = data if past is None else past[0]
            return hb.DDIM().step(field, x, t, s, draw) + 0.1 * (data - before), (data, data - before)

    field = hb.Field(hb.VP(), lambda t, x: torch.tanh(x))
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    planned, plain = (hb.solve(field, Slope(), x, grid=[1.0, 0.7, 0.4, 0.1], plan=plan).x for plan in (True, False))
    torch.testing.assert_close(planned, plain, rtol=1e-12, atol=1e-12)
    nothing = hb.solve(field, Noisy(lambda field, x, t, s, draw: x - x), x, grid=GRID).x
    assert torch.equal(nothing, torch.zeros_like(x))
