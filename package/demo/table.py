"""The demo's tables: markdown to read, CSV with every number."""

from __future__ import annotations

import csv
from pathlib import Path

from halfbridge.demo.methods import METHODS, Method
from halfbridge.demo.settings import Settings
from halfbridge.demo.trial import Cell, Trial

__all__ = ["render", "write_csv"]


def render(trials: list[Trial], settings: Settings) -> str:
    """Two tables for each field: error to the flow for the ODE solvers, energy distance for the others."""
    lines = ["# halfbridge demo: solver x evaluations of the field", ""]
    for trial in trials:
        lines += [
            f"## On {trial.target.name}",
            "",
            f"Solvers of the probability flow: RMS error per pixel to the exact flow of the same {settings.starts} "
            f"starts (known to {trial.reference_error:.0e}). Grids uniform in lambda.",
            "",
            *_grid(trial, settings, True),
            "",
            f"Stochastic solvers: energy distance of {settings.samples} samples from {settings.fresh} exact draws. Two "
            f"sets of exact draws differ by {trial.floor:.2g}; `=` is no further off. For comparison, the ends of the "
            f"field's exact flow: {_distance(trial.flow_distance, trial.floor)}. Grids uniform in sqrt(t).",
            "",
            *_grid(trial, settings, False),
            "",
        ]
    lines.append(f"The last column is the time of the run with most evaluations, {settings.samples} samples.")
    return "\n".join(lines)


def _grid(trial: Trial, settings: Settings, deterministic: bool) -> list[str]:
    head = ["solver", "order", *(f"{b} evals" for b in settings.budgets), "time"]
    rows = []
    for method in METHODS:
        if method.deterministic != deterministic:
            continue
        cells = trial.cells[method.name]
        last = next((c for c in reversed(cells) if c is not None), None)
        rows.append(
            [
                method.name,
                str(method.solver.order) if method.solver.order else "-",
                *(_value(c, trial.floor) for c in cells),
                "-" if last is None else f"{last.seconds:.2f} s",
            ]
        )
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        name, *values = row
        numbers = (text.rjust(w) for text, w in zip(values, widths[1:], strict=True))
        return "| " + " | ".join([name.ljust(widths[0]), *numbers]) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [line(head), rule, *map(line, rows)]


def _value(cell: Cell | None, floor: float) -> str:
    if cell is None:
        return "-"
    if cell.error == cell.error:
        return _short(cell.error)
    return _distance(cell.distance, floor)


def _distance(distance: float, floor: float) -> str:
    return "=" if distance <= floor else _short(distance)


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}" if value >= 0.995 else f"{value:.2g}"


def write_csv(trials: list[Trial], path: Path) -> None:
    """One row a run: errors are empty for stochastic solvers."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "field",
                "solver",
                "order",
                "budget",
                "steps",
                "evaluations",
                "rms_error",
                "median_error",
                "energy_distance",
                "floor",
                "seconds",
            ]
        )
        for trial in trials:
            for method in METHODS:
                for cell in trial.cells[method.name]:
                    if cell is not None:
                        writer.writerow([trial.target.name, *_row(method, cell, trial.floor)])


def _row(method: Method, cell: Cell, floor: float) -> list[object]:
    errors = [f"{e:.6g}" if e == e else "" for e in (cell.error, cell.median)]
    counts = [method.name, method.solver.order, cell.budget, cell.steps, cell.evaluations]
    return [*counts, *errors, f"{cell.distance:.6g}", f"{floor:.6g}", f"{cell.seconds:.4f}"]
