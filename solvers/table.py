"""A plan as text, like a Butcher tableau, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halfbridge.solvers.algebra import Combine, Evaluate, Op

if TYPE_CHECKING:
    from halfbridge.solvers.plan import Plan, Step

__all__ = ["as_dict", "render"]


def render(plan: Plan) -> str:
    """A header, then for each step its time span with alpha, sigma and lambda at the end, and one line an operation."""
    process = "" if plan.process is None else f" on {plan.process!r}"
    what = f"{plan.predicts} prediction" if plan.predicts else type(plan.problem).__name__
    n = len(plan.steps)
    lines = [
        f"{plan.solver!r}{process}, {what}",
        f"{n} step{'s' * (n != 1)}, {plan.nfe} evaluations, {len(plan.draws)} normals, "
        f"{plan.peak_vectors} state-sized tensors alive at most; source: {plan.solver.source or 'not stated'}",
    ]
    for step in plan.steps:
        lines += ["", _heading(plan, step), *(f"    {_line(op, plan)}" for op in step.ops)]
        if step.past is not None:
            lines.append(f"    kept: {step.past!r}")
    return "\n".join(lines)


def _heading(plan: Plan, step: Step) -> str:
    span = f"step {step.index}   t {step.t:.8g} -> {step.s:.8g}"
    p = plan.process
    if p is None:
        return span
    return f"{span}   alpha {p.alpha(step.s):.8g}   sigma {p.sigma(step.s):.8g}   lambda {p.half_log_snr(step.s):.8g}"


def _line(op: Op, plan: Plan) -> str:
    if isinstance(op, Evaluate):
        return f"{op.out} = {plan.predicts or 'drift'}({op.t:.8g}, {op.x})"
    if isinstance(op, Combine):
        parts = [*op.terms, *([(op.draw.name, op.scale)] if op.draw else [])]
        return f"{op.out} = " + ("  ".join(f"{c:+.10g} {name}" for name, c in parts) or "0")
    draw = f", {op.draw.name}" if op.draw else ""
    return f"{op.out} = {op.label}({', '.join(op.vectors)}{draw})"


def as_dict(plan: Plan) -> dict[str, Any]:
    """Strings, lists and numbers only; coefficients are the float64 values themselves (JSON round-trips them)."""
    return {
        "solver": repr(plan.solver),
        "source": plan.solver.source,
        "process": None if plan.process is None else repr(plan.process),
        "predicts": plan.predicts,
        "grid": [float(t) for t in plan.grid],
        "nfe": plan.nfe,
        "normals": len(plan.draws),
        "peak_vectors": plan.peak_vectors,
        "steps": [_step(step) for step in plan.steps],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "index": step.index,
        "t": step.t,
        "s": step.s,
        "x": step.x,
        "out": step.out,
        "past": _past(step.past),
        "operations": [_operation(op) for op in step.ops],
    }


def _past(past: Any) -> Any:
    if hasattr(past, "_asdict"):
        return {name: _past(value) for name, value in past._asdict().items()}
    return [_past(leaf) for leaf in past] if isinstance(past, tuple) else past


def _operation(op: Op) -> dict[str, Any]:
    if isinstance(op, Evaluate):
        return {"op": "evaluate", "out": op.out, "t": op.t, "x": op.x}
    normal = None if op.draw is None else op.draw.index
    if isinstance(op, Combine):
        terms = [[name, c] for name, c in op.terms]
        return {"op": "combine", "out": op.out, "terms": terms, "normal": normal, "scale": op.scale}
    return {"op": "apply", "out": op.out, "what": op.label, "vectors": list(op.vectors), "normal": normal}
