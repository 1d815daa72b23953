"""The pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from exact_bridges.mixtures import Compared
from exact_bridges.relaxation import Way
from halfbridge.training.bridge import Monitor

INK, QUIET, GRID = "#1f2328", "#6e7781", "#eef0f2"
BLUE, RED, GREEN, PURPLE, GOLD = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
"""Okabe and Ito's colours, which colour-blind readers tell apart."""
COLOURS = {"fixed, mean matching": BLUE, "fixed, increments": GOLD, "matched, scalar": PURPLE, "matched, diagonal": RED,
           "matched, full": GREEN}  # fmt: skip
DPI = 150


def relaxation(ways: Sequence[Way], path: Path) -> None:
    """Above trajectories in a band of one standard deviation, below both moments: exact lines, simulated points."""
    figure, axes = _panels(2, len(ways), (13.0, 6.6))
    for (above, below), way, colour in zip(axes.T, ways, (GOLD, BLUE, RED), strict=True):
        t = way.times
        above.plot(t, way.paths, color=colour, lw=0.5, alpha=0.45)
        above.fill_between(t, way.mean - way.std, way.mean + way.std, color=INK, alpha=0.10, lw=0)
        above.plot(t, way.mean, color=INK, lw=1.6)
        above.set_ylim(-3.2, 3.8)
        below.axhline(0.0, color=QUIET, lw=0.8, ls=(0, (4, 3)))
        below.axhline(1.0, color=QUIET, lw=0.8, ls=(0, (4, 3)))
        some = slice(None, None, max(1, len(t) // 10))
        for exact, found, error, what, shade in (
            (way.mean, way.found_mean, way.mean_error, "mean", BLUE),
            (way.std, way.found_std, way.std_error, "standard deviation", RED),
        ):
            below.plot(t, exact, color=shade, lw=1.4, label=f"{what}, exact")
            below.errorbar(
                t[some], found[some], 2.0 * error[some], fmt="o", color=shade, ms=3.5, lw=1.2, capsize=2.5,
                label="simulated ± 2 standard errors",
            )  # fmt: skip
        if way.first_half is not None:
            for curve, shade in zip(way.first_half, (BLUE, RED), strict=True):
                below.plot(
                    t,
                    curve,
                    color=shade,
                    lw=1.1,
                    ls=(0, (1, 1.5)),
                    label="first half-bridge (SGM)" if shade == BLUE else None,
                )
        below.set_ylim(-0.2, 2.2)
        below.set_xlabel("t", color=INK)
        if way.name.endswith("return"):
            for ax in (above, below):
                ax.invert_xaxis()
        worst = max(np.abs(way.mean_z).max(), np.abs(way.std_z).max())
        _title(above, way.name.capitalize(), f"{way.paths.shape[1]} of {way.count} paths; mean ± standard deviation")
        _title(below, "Moments", f"furthest of {2 * len(t)}: {worst:.1f} standard errors")
    axes[1, -1].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left", ncols=1)
    _save(figure, axes, path)


def departures(
    progress: Mapping[str, Sequence[float]],
    chain: int,
    fixed: Mapping[int, Sequence[float]],
    moves: Mapping[str, Mapping[int, float]],
    path: Path,
) -> None:
    """Errors of the coupling over iterations, from the reference and from the bridge; and one iteration's against N."""
    figure, axes = _panels(1, 3, (13.0, 4.4))
    for kind, errors in progress.items():
        axes[0].semilogy(errors, color=COLOURS[kind], lw=1.8, label=kind)
    axes[0].set_ylim(1e-6, 2.0)
    axes[0].set_xlabel("iterations of IPF", color=INK)
    _title(axes[0], "From the reference", f"relative error of the coupling's covariance, N = {chain}")
    axes[0].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower left")
    for i, (n, errors) in enumerate(fixed.items()):
        shade = 0.35 + 0.65 * i / max(1, len(fixed) - 1)
        axes[1].plot(errors, color=BLUE, alpha=shade, lw=1.8)
        axes[1].text(len(errors) - 1, errors[-1], f" N = {n}", fontsize=8.5, color=INK, va="center")
    axes[1].set_xlim(0, 1.17 * (len(next(iter(fixed.values()))) - 1))
    axes[1].set_ylim(0.0, None)
    axes[1].set_xlabel("iterations of IPF", color=INK)
    _title(axes[1], "From the bridge itself", "mean matching, variance 2γ (DSB)")
    for ax in axes[:2]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    away = {kind: over for kind, over in moves.items() if kind != "matched, full"}
    for kind, over in away.items():
        axes[2].loglog(
            list(over), list(over.values()), color=COLOURS[kind], lw=1.8, marker="o", ms=4.5, mec="white", mew=0.7
        )
    still = max(moves["matched, full"].values())
    axes[2].text(
        0.04,
        0.05,
        f"matched, full: below {2 * still:.0e} at every N",
        transform=axes[2].transAxes,
        fontsize=9,
        color=GREEN,
    )
    axes[2].set_xlabel("steps N of the chain", color=INK)
    axes[2].set_xticks(list(moves["matched, full"]), [str(n) for n in moves["matched, full"]])
    axes[2].minorticks_off()
    _title(axes[2], "One iteration from the bridge", "error made, against N")
    _save(figure, axes, path)


def training(rows: Sequence[Monitor], losses: Sequence[Any], floors: Mapping[str, float], path: Path) -> None:
    """Of the bridge between Gaussians: marginal errors and KL between iterates over half-bridges, and the last losses."""
    figure, axes = _panels(1, 3, (13.0, 4.1))
    index = [row.iterate for row in rows]
    for name, colour in (("start", RED), ("end", BLUE)):
        values = np.array([getattr(row, f"{name}_sliced_w2") for row in rows])
        axes[0].semilogy(
            index, values, color=colour, lw=1.8, marker="o", ms=4.0, mec="white", mew=0.6, label=f"law at the {name}"
        )
        axes[0].axhline(floors[f"{name}_sliced_w2"], color=colour, lw=1.0, ls=(0, (4, 3)))
    axes[0].set_xlabel("half-bridges", color=INK)
    for ax in axes[:2]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _title(axes[0], "Sliced W2 to the end laws", "dashed: between two samples of the law")
    axes[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    axes[1].semilogy(index, [row.kl for row in rows], color=GREEN, lw=1.8, marker="o", ms=4.0, mec="white", mew=0.6)
    axes[1].set_xlabel("half-bridges", color=INK)
    _title(axes[1], "KL to the iterate two before", "nats; training noise is its floor")
    for way, colour in (("backward", RED), ("forward", BLUE)):
        mine = [part.numpy() for part, row in zip(losses, rows, strict=True) if row.direction == way]
        last = mine[-1]
        width = max(1, len(last) // 40)
        smooth = last[: len(last) // width * width].reshape(-1, width).mean(1)
        axes[2].plot(np.arange(len(smooth)) * width + width / 2, smooth, color=colour, lw=1.6, label=way)
    axes[2].set_xlabel("step of the last half-bridge", color=INK)
    _title(axes[2], "Loss", f"means over {width} steps; a step's noise alone makes about 1")
    axes[2].legend(frameon=False, fontsize=9, labelcolor=INK)
    _save(figure, axes, path)


def coupling(c: Compared, path: Path) -> None:
    """Heat maps side by side: Sinkhorn's, and the pairs of both directions."""
    figure, axes = _panels(1, 3, (13.0, 4.6))
    size = float(c.edges[1] - c.edges[0]) ** 2
    top = float(c.exact.max()) / size
    maps = {"Sinkhorn": c.exact, "Forward": c.found["end"], "Backward": c.found["start"]}
    for ax, (name, p) in zip(axes, maps.items(), strict=True):
        ax.imshow(
            (p / size).T, origin="lower", extent=(c.edges[0], c.edges[-1]) * 2, cmap="magma_r", vmin=0.0, vmax=top
        )
        ax.set(xlim=(-2.4, 2.4), ylim=(-3.4, 3.4), aspect="auto")
        ax.set_xlabel("x at 0", color=INK)
        to = {"Forward": "end", "Backward": "start"}.get(name)
        below = (
            "density of (x at 0, x at T), on a grid"
            if to is None
            else f"total variation {c.variation(to):.4f}; of a sample {c.floor:.4f}"
        )
        _title(ax, name, below)
    axes[0].set_ylabel("x at T", color=INK)
    _save(figure, axes, path, grid=False)


def drifts(c: Compared, path: Path) -> None:
    """Each drift where the bridge is: the network's over Sinkhorn's."""
    columns = len(c.drifts) // 2
    figure, axes = _panels(2, columns, (13.0, 6.6))
    for ax, d in zip(axes.ravel(), c.drifts, strict=True):
        seen = d.density > 0.01
        exact, found = (np.where(seen, values, np.nan) for values in (d.exact, d.found))
        ax.fill_between(
            d.x, 0.0, d.density / d.density.max(), transform=ax.get_xaxis_transform(), color=INK, alpha=0.07, lw=0
        )
        ax.plot(d.x, exact, color=INK, lw=2.6, alpha=0.55, label="Sinkhorn")
        ax.plot(d.x, found, color=BLUE if d.way == "forward" else RED, lw=1.6, label="networks")
        ax.set_xlabel("x", color=INK)
        _title(
            ax,
            f"{d.way.capitalize()} drift at t = {d.t:g}",
            f"rms error {d.error:.3f} of {d.size:.2f}; shaded: the bridge's law",
        )
    for row in axes:
        row[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    _save(figure, axes, path)


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes if rows > 1 else axes[0]


def _save(figure: Figure, axes: Any, path: Path, grid: bool = True) -> None:
    for ax in np.ravel(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK)
        if grid:
            ax.grid(True, which="major", color=GRID, zorder=0)
            ax.set_axisbelow(True)
    figure.savefig(path)


def _title(ax: Axes, text: str, below: str) -> None:
    ax.set_title(text, loc="left", fontsize=11.5, color=INK, weight="bold", pad=20)
    ax.text(0.0, 1.03, below, transform=ax.transAxes, fontsize=9, color=QUIET)
