"""The picture of a certificate: errors against steps, log-log, one line a problem."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfbridge.solvers.reference.certify import Certificate

__all__ = ["draw"]


def draw(certificate: Certificate, path: str | Path) -> None:
    """Write the picture to `path`; its suffix says the format. ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib; install it (pip install 'halfbridge[plots]')") from error
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    shown = [f for f in certificate.findings if any(0 < e < math.inf for e in f.study.errors)]
    for i, finding in enumerate(shown):
        points = [(n, e) for n, e in zip(finding.study.steps, finding.study.errors, strict=True) if 0 < e < math.inf]
        label = f"{finding.what}: {finding.study.order:.2f}"
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, color=f"C{i % 10}", label=label)
    steps = sorted({n for f in shown for n in f.study.steps})
    if shown:
        top = max(f.study.errors[0] for f in shown if math.isfinite(f.study.errors[0]))
        slope = [2 * top * (steps[0] / n) ** certificate.declared for n in steps]
        axes.plot(
            steps, slope, color="black", linestyle="--", linewidth=1, label=f"declared order {certificate.declared}"
        )
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.minorticks_off()
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    verdict = "passed" if certificate.passed else "failed"
    axes.set(xlabel="steps", ylabel="relative error", title=f"{certificate.solver}: {verdict}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
