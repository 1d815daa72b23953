"""`python -m benchmarks.plan`: running a plan against the loop that a user would write by hand, and the cost of planning.

The loops keep their coefficients in a list and compute out of place, with torch.randn_like for noise. Both see the same field
at shape (1, 2), one thread, without gradients and finite checks. Rows: solver, microseconds a step of each (medians), the ratio
of paired turns with its 20 and 80 % quantiles, the largest difference of the results, microseconds a step to make the plan.
A plan that differs from its loop is not timed; stochastic solvers draw other normals than torch does, so theirs is not compared.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import halfbridge as hb
from benchmarks.pairs import interleaved, provenance
from halfbridge.kernels.dispatch import available
from halfbridge.solvers.algebra import Evaluate

ALLOWED = 1e-4
Rows = list[list[float]]


def fn(t: float, x: Tensor) -> Tensor:
    return torch.tanh(x)


def ddim(x: Tensor, rows: Rows) -> Tensor:
    for t, a, b in rows:
        x = a * x + b * fn(t, x)
    return x


def ancestral(x: Tensor, rows: Rows) -> Tensor:
    for t, a, b, c in rows:
        x = a * x + b * fn(t, x) + c * torch.randn_like(x)
    return x


def dpm_3(x: Tensor, rows: Rows) -> Tensor:
    for t, a, b, m1, c, d, e, m2, f, g, h in rows:
        eps = fn(t, x)
        eps_1 = fn(m1, a * x + b * eps)
        eps_2 = fn(m2, c * x + d * eps + e * eps_1)
        x = f * x + g * eps + h * eps_2
    return x


LOOPS: tuple[tuple[str, hb.Solver, Callable[[Tensor, Rows], Tensor]], ...] = (
    ("DDIM", hb.DDIM(), ddim),
    ("DPM-Solver-3", hb.DPMSolver(3), dpm_3),
    ("Ancestral", hb.Ancestral(), ancestral),
    ("  with numba", hb.Ancestral(), ancestral),  # which a process loads after a few hundred small runs
)


def coefficients(plan: hb.Plan) -> Rows:
    """The numbers of each step in the order of its operations: times of evaluations, coefficients of combinations."""
    rows: Rows = []
    for step in plan.steps:
        rows.append([])
        for op in step.ops:
            if isinstance(op, Evaluate):
                rows[-1].append(op.t)
            else:
                rows[-1] += [c for _, c in op.terms] + ([op.scale] if op.draw else [])  # type: ignore[union-attr]
    return rows


def planning_time(solver: hb.Solver, process: hb.Process, grid: object) -> float:
    start = time.perf_counter()
    _ = hb.plan(solver, process, grid).program  # type: ignore[arg-type]
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--turns", type=int, default=201)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(provenance())
    process = hb.VP()
    grid = hb.grids.half_log_snr(process, arguments.steps)
    field = hb.Field(process, fn)
    x = torch.tensor([[0.3, -0.2]])
    print(f"{'solver':12s}{'plan us':>10s} {'loop us':>10s}    ratio  [20 %, 80 %]   difference   planning us")
    with torch.no_grad():
        for name, solver, loop in LOOPS:
            if name.endswith("numba"):
                if "numba" not in available():
                    continue
                with hb.kernels.use("numba"):
                    hb.kernels.combine([hb.kernels.normal((1, 2), 0)], [1.0])
            plan = hb.plan(solver, process, grid)
            rows, seed = coefficients(plan), 0 if plan.draws else None
            gap = float((plan.run(field, x, seed) - loop(x, rows)).abs().max())
            if not plan.draws and gap > ALLOWED:
                raise RuntimeError(f"{solver!r} differs from its loop by {gap:.2g} (allowed: {ALLOWED:g})")
            pair = interleaved(
                lambda p=plan, s=seed: p.run(field, x, s, checks=False), lambda f=loop, r=rows: f(x, r), arguments.turns
            )  # type: ignore[misc]
            planning = min(planning_time(solver, process, grid) for _ in range(5)) / arguments.steps * 1e6
            ours, peer = (1e3 * times[1] / arguments.steps for times in (pair.ours, pair.peer))
            low, middle, high = pair.ratio
            print(
                f"{name:12s}{ours:10.2f} {peer:10.2f} {middle:8.2f}  [{low:.2f}, {high:.2f}]   "
                f"{'random' if plan.draws else f'{gap:.1e}':>10s} {planning:13.1f}"
            )


if __name__ == "__main__":
    main()
