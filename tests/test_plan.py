"""A plan is the run: the same numbers as the step on tensors, in the fewest kernel calls and buffers, and as data."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from cases import DETERMINISTIC, PREDICTIONS, PROCESSES, SOLVERS, below_churn_limit, bounded_field, decreasing_grids
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import halfbridge as hb
from halfbridge.solvers.algebra import Apply, Combine, Evaluate

EPS = {torch.float64: 2.2e-16, torch.float32: 1.2e-7, torch.bfloat16: 7.8e-3, torch.float16: 9.8e-4}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_plan_runs_as_the_step_does_on_tensors(data):
    """Any solver, process, grid, parametrisation, float dtype and seed; differences are rounding, amplified at most by the
    coefficients that the plan itself lists."""
    process = data.draw(st.sampled_from(PROCESSES))
    solver = below_churn_limit(data.draw(st.sampled_from(SOLVERS)), process)
    predicts = data.draw(st.sampled_from(PREDICTIONS))
    grid = data.draw(decreasing_grids(process))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    seed = data.draw(st.integers(0, 2**64 - 1))
    shape = data.draw(st.sampled_from([(1, 2), (3, 1), (2, 2, 3), (5,)]))
    field = bounded_field(process, predicts)
    x = (process.sigma(process.T) * hb.kernels.normal(shape, seed, 0, dtype=torch.float64)).to(dtype)
    planned = hb.solve(field, solver, x, grid=grid, seed=seed)
    tensors = hb.solve(field, solver, x, grid=grid, seed=seed, plan=False)
    assert planned.nfe == tensors.nfe
    assert planned.x.dtype == dtype
    size = max(1.0, float(x.abs().max()), float(planned.x.abs().max()))
    scale = amplification(hb.plan(solver, process, grid, predicts)) * size
    assert (planned.x.double() - tensors.x.double()).abs().max() <= 40 * EPS[dtype] * scale


def amplification(plan):
    """How much a rounding error of one operation may grow: the largest coefficient of a step, and the views' 1/alpha, 1/sigma."""
    largest = 1.0
    for step in plan.steps:
        for op in step.ops:
            if isinstance(op, Combine):
                largest = max(largest, sum(abs(c) for _, c in op.terms))
            if isinstance(op, Evaluate):
                p = plan.process
                largest = max(largest, (1 / p.alpha(op.t)) ** 2, (1 / p.sigma(op.t)) ** 2)
    return largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "solver",
    [hb.DDIM(), hb.Ancestral(), hb.DPMSolver(3), hb.PredictorCorrector(hb.Ancestral(), hb.Langevin())],
    ids=repr,
)
def test_half_precision_runs_are_the_float32_run_to_their_own_rounding(solver, dtype):
    p = hb.OU()
    field = bounded_field(p, "data")
    grid = hb.grids.half_log_snr(p, 6, t_end=0.1)
    x = hb.kernels.normal((4, 5), 1)
    got = hb.solve(field, solver, x.to(dtype), grid=grid, seed=1).x
    want = hb.solve(field, solver, x, grid=grid, seed=1).x
    assert got.dtype == dtype
    assert (got.float() - want).abs().max() < 60 * EPS[dtype]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_stage_is_one_combination(solver, predicts):
    """Between two evaluations (or kernels of their own) there is one combination, and one more for what a multistep solver
    remembers when the field does not predict it."""
    p = hb.VP()
    plan = hb.plan(solver, p, hb.grids.half_log_snr(p, 4), predicts)
    for step in plan.steps:
        kinds = [type(op) for op in step.ops]
        stages = kinds.count(Evaluate) + (1 if isinstance(solver, hb.Heun) and solver.churn else 0)
        remembered = step.past is not None and predicts != "data"
        formed = (
            kinds.count(Apply) if predicts in ("data", "velocity") else 0
        )  # a score that is not a multiple of one vector
        assert kinds.count(Combine) == stages - kinds.count(Apply) + remembered + formed
        assert all(len(op.terms) <= 6 for op in step.ops if isinstance(op, Combine))


def test_plan_makes_one_kernel_call_a_stage(monkeypatch):
    from halfbridge.solvers import runner

    calls = []
    real = runner.resolve

    def counting(kernel, *args):
        implementation = real(kernel, *args)
        return lambda *a: calls.append(kernel) or implementation(*a)

    monkeypatch.setattr(runner, "resolve", counting)
    p = hb.VP()
    field = bounded_field(p, "noise")
    for solver, expected in ((hb.DDIM(), 5), (hb.DPMSolver(3), 15), (hb.Heun(), 10), (hb.Ancestral(), 5)):
        calls.clear()
        hb.plan(solver, p, hb.grids.uniform(p, 5)).run(field, torch.ones(2, 3), seed=0)
        assert calls == ["combine"] * expected


class LiveTensors(TorchDispatchMode):
    """Counts tensors of `numel` elements that are alive, by storage."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.alive, self.peak = numel, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.numel:
                storage = tensor.untyped_storage()
                key = storage.data_ptr()
                if key not in self.alive:
                    self.alive[key] = None
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, len(self.alive))
        return result


# state-sized tensors alive at once beside the caller's own x: evaluations and buffers
PEAKS = {
    "DDIM": (hb.DDIM(), 2), "DPM 1": (hb.DPMSolver(1), 2), "EulerMaruyama": (hb.EulerMaruyama(), 2), "Ancestral": (hb.Ancestral(), 2),
    "DPM 2": (hb.DPMSolver(2), 3), "DPM 3": (hb.DPMSolver(3), 4), "Heun": (hb.Heun(), 4), "churn": (hb.Heun(churn=2.0), 4),
    "2M": (hb.DPMSolverPP(), 3), "Langevin": (hb.Langevin(step_size=1e-3), 2),
    "PC": (hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(step_size=1e-3)), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PEAKS)
def test_peak_memory_is_what_the_plan_states_and_minimal(name):
    solver, expected = PEAKS[name]
    p = hb.VP()
    plan = hb.plan(solver, p, hb.grids.half_log_snr(p, 5))
    assert plan.peak_vectors == expected
    field = hb.Field(p, lambda t, x: torch.tanh(x))
    x = torch.ones(64, 1 << 16)  # larger than the chunk of normals that a kernel holds
    gc.collect()
    with torch.no_grad(), LiveTensors(x.numel()) as live:
        plan.run(field, x, seed=0)
    assert live.peak <= expected


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_run_leaves_the_callers_tensors_alone(solver):
    p = hb.VP()
    grid = hb.grids.half_log_snr(p, 4)
    constant = torch.full((2, 3), 0.25)
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    before = x.clone()
    with torch.no_grad():
        hb.solve(hb.Field(p, lambda t, x: constant), solver, x, grid=grid, seed=0)
    assert torch.equal(x, before)
    assert torch.equal(constant, torch.full((2, 3), 0.25))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("alias", ["itself", "a view", "a transposed view"])
def test_a_field_may_return_its_own_input(solver, alias):
    """The update is written over x: an evaluation that shares x's memory must not be read after that."""
    p = hb.OU()
    fn = {"itself": lambda t, x: x, "a view": lambda t, x: x[:], "a transposed view": lambda t, x: x.transpose(1, 2)}[
        alias
    ]
    grid = hb.grids.uniform(p, 4, t_end=1.0)
    x = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(2, 3, 3)
    with torch.no_grad():
        got = hb.solve(hb.Field(p, fn), solver, x, grid=grid, seed=0).x
        want = hb.solve(hb.Field(p, lambda t, x: fn(t, x).clone()), solver, x, grid=grid, seed=0).x
    assert torch.equal(got, want)


@pytest.mark.parametrize("solver", [*DETERMINISTIC, hb.Ancestral(), hb.Heun(churn=1.0), SOLVERS[-2]], ids=repr)
def test_gradients_are_those_of_finite_differences(solver):
    p = hb.VP()
    grid = hb.grids.half_log_snr(p, 4, t_end=0.05)
    weight = torch.tensor([[0.3, -0.2], [0.1, 0.4]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.5, -1.0], [1.5, 0.2]], dtype=torch.float64, requires_grad=True)

    def run(weight, x):
        return hb.solve(hb.Field(p, lambda t, x: torch.tanh(x @ weight)), solver, x, grid=grid, seed=3).x

    assert torch.autograd.gradcheck(run, (weight, x))


def test_gradients_do_not_change_the_result():
    p = hb.VP()
    grid = hb.grids.half_log_snr(p, 6)
    field = bounded_field(p, "noise")
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for solver in SOLVERS:
        with torch.no_grad():
            plain = hb.solve(field, solver, x, grid=grid, seed=5).x
        recorded = hb.solve(field, solver, x.clone().requires_grad_(), grid=grid, seed=5).x
        torch.testing.assert_close(recorded.detach(), plain, rtol=2e-6, atol=2e-6)


def test_nfe_counts_evaluations_to_the_end_of_the_grid():
    p = hb.EDM()
    grid = hb.grids.karras(p, 7, t_end=0)
    calls = []
    field = hb.Field(p, lambda t, x: calls.append(t) or torch.zeros_like(x), "data")
    for solver, nfe in ((hb.Heun(), 13), (hb.DPMSolver(3), 19), (hb.DDIM(), 7), (hb.DPMSolverPP(), 7),
                        (hb.PredictorCorrector(hb.Ancestral(), hb.Langevin(step_size=1.0), 2), 19)):  # fmt: skip
        calls.clear()
        plan = hb.plan(solver, p, grid, "data")
        plan.run(field, torch.ones(1, 2), seed=0)
        assert plan.nfe == nfe == len(calls)


def test_json_holds_the_run():
    """Executing the JSON by hand, with nothing but its numbers, gives the run."""
    p = hb.VP()
    grid = hb.grids.half_log_snr(p, 5)
    field = bounded_field(p, "noise")
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    for solver in (hb.DPMSolver(3), hb.Ancestral(), hb.DPMSolverPP(), hb.Heun(churn=1.0)):
        plan = hb.plan(solver, p, grid)
        record = json.loads(json.dumps(plan.to_dict()))
        values = {"x0": x}
        for step in record["steps"]:
            for op in step["operations"]:
                if op["op"] == "evaluate":
                    values[op["out"]] = field.fn(op["t"], values[op["x"]])
                else:
                    total = sum(c * values[name] for name, c in op["terms"])
                    if op["normal"] is not None:
                        total = total + op["scale"] * hb.kernels.normal((2, 3), 9, op["normal"], dtype=torch.float64)
                    values[op["out"]] = total
        torch.testing.assert_close(values[record["steps"][-1]["out"]], plan.run(field, x, 9), rtol=1e-13, atol=1e-13)
        assert record["nfe"] == plan.nfe
        assert record["grid"] == list(map(float, grid))


def test_the_table_shows_times_levels_and_coefficients():
    p = hb.VP()
    text = str(hb.plan(hb.DPMSolver(2), p, np.array([1.0, 0.5, 0.1])))
    assert "DPMSolver(order=2) on VP(beta_min=0.1, beta_max=20.0), noise prediction" in text
    assert "2 steps, 4 evaluations, 0 normals" in text
    for name, value in (("alpha", p.alpha(0.5)), ("sigma", p.sigma(0.5)), ("lambda", p.half_log_snr(0.5))):
        assert f"{name} {value:.8g}" in text
    r = p.alpha(0.5) / p.alpha(1.0)
    assert f"x1 = {r:+.10g} x0" in text


def test_a_plan_is_for_one_prediction_process_and_kind_of_problem():
    p = hb.VP()
    grid = np.array([1.0, 0.5])
    plan = hb.plan(hb.DDIM(), p, grid, "noise")
    with pytest.raises(ValueError, match="predicts 'data'"):
        plan.run(bounded_field(p, "data"), torch.ones(1, 2))
    with pytest.raises(ValueError, match="beta_max=10"):
        plan.run(bounded_field(hb.VP(beta_max=10.0), "noise"), torch.ones(1, 2))
    with pytest.raises(TypeError, match="plan of Field problems"):
        plan.run(hb.ODE(lambda t, x: x), torch.ones(1, 2))
