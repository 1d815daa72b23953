"""A run as one graph: traced whole by torch.compile, or recorded once and replayed with other numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

import halfbridge as hb
from halfbridge.kernels import use
from halfbridge.solvers import whole

VP = hb.VP()
SOLVERS = [
    hb.DDIM(), hb.DDIM(eta=0.5), hb.Ancestral(), hb.EulerMaruyama(), hb.Heun(churn=4.0), hb.DPMSolver(order=3),
    hb.DPMSolverPP(), hb.Langevin(transition=True), hb.PredictorCorrector(hb.ReverseDiffusion(), hb.Langevin(snr=0.1)),
]  # fmt: skip


class Net(torch.nn.Module):
    """Small, smooth, and a function of its label."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = torch.nn.Parameter(torch.randn(3, 8, generator=generator, dtype=torch.float64))
        self.outer = torch.nn.Parameter(torch.randn(8, 2, generator=generator, dtype=torch.float64) / 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (torch.cat([x, t[:, None]], 1) @ self.inner).tanh() @ self.outer


def field() -> hb.Field:
    return hb.nets.as_field(Net(), VP)


def state(seed: int = 1, batch: int = 5) -> Tensor:
    return hb.kernels.normal((batch, 2), seed, dtype=torch.float64)


def planned(solver: hb.Solver, grid: Any = hb.grids.half_log_snr, steps: int = 4) -> hb.Plan:
    return hb.plan(solver, VP, grid(VP, steps))


def compiled(f: Any, backend: Any = "aot_eager") -> Any:
    torch._dynamo.reset()
    return torch.compile(f, fullgraph=True, backend=backend)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_compiled_run_is_one_graph_and_the_same_run(solver: hb.Solver) -> None:
    f, plan, x = field(), planned(solver), state()
    run = compiled(lambda x: plan.run(f, x, 2**63 + 5, first=9))
    with torch.no_grad():
        assert torch.allclose(run(x), plan.run(f, x, 2**63 + 5, first=9), rtol=1e-13, atol=1e-13)


def test_a_second_plan_through_the_same_code_is_compiled_whole_too() -> None:
    f, x = field(), state()
    run = compiled(lambda plan, x, seed: plan.run(f, x, seed))
    for grid in (hb.grids.uniform, hb.grids.half_log_snr):
        for seed in (3, 2**64 - 1):
            plan = planned(hb.PredictorCorrector(hb.Ancestral(), hb.Langevin()), grid, 2)
            with torch.no_grad():
                assert torch.allclose(run(plan, x, seed), plan.run(f, x, seed), rtol=1e-13, atol=1e-13)


def test_the_coefficients_of_a_second_plan_are_constants_of_its_graph_too() -> None:
    f, x, graphs = field(), state(), []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    run = compiled(lambda plan: plan.run(f, x, 3), keep)
    for grid in (hb.grids.uniform, hb.grids.half_log_snr):
        plan = planned(hb.PredictorCorrector(hb.Ancestral(), hb.Langevin()), grid, 2)
        with torch.no_grad():
            assert torch.allclose(run(plan), plan.run(f, x, 3), rtol=1e-13, atol=1e-13)
        numbers = [c for step in plan.program.steps for n in step for c in n.coefficients]
        nodes = [n for n in graphs[-1].graph.nodes if n.target is torch.ops.halfbridge.combine.default]
        assert [c for n in nodes for c in n.args[1]] == numbers


def test_gradients_flow_through_a_compiled_run() -> None:
    net, plan, x = Net(), planned(hb.Ancestral(), steps=2), state()
    f = hb.nets.as_field(net, VP)

    def loss(x: Tensor) -> Tensor:
        return plan.run(f, x, 3).square().sum()

    found = [torch.autograd.grad(run(x), list(net.parameters())) for run in (loss, compiled(loss))]
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_the_default_compiler_gives_the_same_run() -> None:
    f, plan, x = field(), planned(hb.Ancestral(), steps=1), state()
    with torch.no_grad():
        run = compiled(lambda x: plan.run(f, x, 3), "inductor")
        assert torch.allclose(run(x), plan.run(f, x, 3), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("problem", "x", "seed", "error"),
    [
        (field(), state(), None, "draws 2 normals; pass an int"),
        (hb.ODE(lambda t, x: -x), state(), 3, "plan of Field problems, got ODE"),
        (field(), state().long(), 3, "must be floating point"),
        (field(), state(), -1, "`seed` = -1 is outside"),
    ],
)
def test_a_compiled_run_refuses_what_a_run_refuses(problem: Any, x: Tensor, seed: Any, error: str) -> None:
    plan = planned(hb.Ancestral(), steps=2)
    torch._dynamo.reset()
    for run in (
        plan.run,
        torch.compile(plan.run, backend="aot_eager"),
    ):  # fullgraph would wrap the error in one of its own
        with pytest.raises((TypeError, ValueError), match=error):
            run(problem, x, seed)


def test_noise_objects_and_sde_diffusions_are_traced_too() -> None:
    sde = hb.SDE(lambda t, x: -x, lambda t, x: 1 + 0.1 * x.sin(), noise="diagonal")
    x = state()
    for problem in (sde, hb.SDE(lambda t, x: -x, 0.7)):
        plan = hb.plan(hb.EulerMaruyama(), problem, [0.0, 0.4, 1.0])
        for seed in (7, lambda draw, t, s, like: torch.full_like(like, 0.1 * draw)):
            run = compiled(lambda x, plan=plan, problem=problem, seed=seed: plan.run(problem, x, seed))
            assert torch.allclose(run(x), plan.run(problem, x, seed), rtol=1e-14, atol=1e-14)


def test_a_matrix_diffusion_asks_for_noise_of_its_own_shape() -> None:
    sde = hb.SDE(lambda t, x: -x, lambda t: torch.ones(2, 3, dtype=torch.float64), noise="matrix")
    plan, x = hb.plan(hb.EulerMaruyama(), sde, [0.0, 0.4, 1.0]), state()
    with torch.no_grad():
        for got in (whole.run_whole(plan, sde, x, whole.PlanNumbers(7, 3, x)), plan.capture(sde, x, 7, 3).replay()):
            assert torch.allclose(got, plan.run(sde, x, 7, 3), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_replay_has_the_new_state_seed_and_grid_and_nothing_of_the_old(solver: hb.Solver, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    f, old, new = field(), planned(solver), planned(solver, hb.grids.uniform)
    if isinstance(solver, hb.Heun):
        assert old.to_dict() != new.to_dict()
    x, y = state(1), state(2)
    with torch.no_grad(), use(backend):
        capture = old.capture(f, x, seed=3)

        def same(got: Tensor, want: Tensor) -> bool:
            return torch.allclose(got, want, rtol=1e-12, atol=1e-12)

        assert same(capture.replay(), old.run(f, x, 3))
        assert same(capture.replay(y, seed=2**64 - 1, first=2**40), old.run(f, y, 2**64 - 1, 2**40))
        assert same(capture.replay(plan=new), new.run(f, y, 2**64 - 1, 2**40))
        assert same(capture.replay(x, seed=3, first=0, plan=old), old.run(f, x, 3))


def test_a_captured_run_reads_every_number_from_its_memory() -> None:
    f, x = field(), state()
    capture = planned(hb.Ancestral()).capture(f, x, seed=3)
    with torch.no_grad():
        before = capture.replay()
        for memory in (capture._numbers.table, capture._numbers.times, capture._numbers.counters):
            kept = memory.clone()
            for i in range(memory.numel()):
                if memory is capture._numbers.counters and i % 3 == 2:
                    continue  # `first`, whose neighbours are other samples: looked at above
                memory.view(-1)[i] += 1
                assert not torch.equal(capture.replay(), before)
                memory.copy_(kept)
        assert torch.equal(capture.replay(), before)


def test_replays_do_not_share_memory_with_each_other_or_the_caller() -> None:
    f, x = field(), state()
    capture = planned(hb.DDIM()).capture(f, x)
    first = capture.replay()
    kept = first.clone()
    x.zero_()
    capture.replay(state(2))
    assert torch.equal(first, kept)


def test_bad_captures_and_replays_say_why() -> None:
    f, x, plan = field(), state(), planned(hb.Ancestral())
    with pytest.raises(ValueError, match="seed = None, but the run draws 4 normals"):
        plan.capture(f, x)
    with pytest.raises(TypeError, match="noise object, whose normals a captured run could not make anew"):
        plan.capture(f, x, seed=lambda *a: x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the plan was made for"):
        plan.capture(hb.Field(hb.VE(), lambda t, x: x), x, seed=1)
    capture = plan.capture(f, x, seed=1)
    with pytest.raises(ValueError, match=r"x has shape torch.Size\(\[4, 2\]\) but the run was captured for"):
        capture.replay(state(batch=4))
    with pytest.raises(ValueError, match="operations differ from step 4 on, capture that plan instead"):
        capture.replay(plan=planned(hb.Ancestral(), steps=5))
    with pytest.raises(ValueError, match="`seed` = -1 is outside"):
        capture.replay(seed=-1)
    corrected = planned(hb.Langevin(snr=0.1)).capture(f, x, seed=1)
    for solver in (hb.Langevin(snr=0.4), hb.Langevin(snr=0.1, norm="batch"), hb.DDIM()):
        with pytest.raises(ValueError, match=r"the captured run is of Langevin\(snr=0.1"):
            corrected.replay(plan=planned(solver))
    for other in (
        hb.plan(hb.Ancestral(), hb.VE(), hb.grids.karras(hb.VE(), 4)),
        hb.plan(hb.Ancestral(), VP, plan.grid, "score"),
    ):
        with pytest.raises(ValueError, match="the plan was made for"):
            capture.replay(plan=other)
    sdes = [hb.SDE(lambda t, x: -x, lambda t, x, c=c: c + 0.1 * x.sin(), noise="diagonal") for c in (1, 2)]
    runs = [hb.plan(hb.EulerMaruyama(), sde, [0.0, 0.4, 1.0]) for sde in sdes]
    with pytest.raises(ValueError, match="the plan holds the diffusion of the SDE it was made for"):
        runs[0].capture(sdes[0], x, seed=1).replay(plan=runs[1])


def test_a_refused_replay_changes_nothing() -> None:
    f, x, plan = field(), state(), planned(hb.Ancestral())
    capture = plan.capture(f, x, seed=1)
    before = capture.replay()
    for wrong in (
        {"plan": planned(hb.DDIM())},
        {"seed": -1},
        {"first": -1, "plan": planned(hb.Ancestral(), hb.grids.uniform)},
    ):
        with pytest.raises(ValueError):
            capture.replay(state(2), **wrong)
        assert torch.equal(capture.replay(first=0), before)


def test_replays_from_a_state_with_a_gradient_record_nothing() -> None:
    capture = planned(hb.Ancestral()).capture(field(), state(), seed=1)
    out = capture.replay(state(2).requires_grad_())
    assert not out.requires_grad
    assert not capture._x.requires_grad
