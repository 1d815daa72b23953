"""The pictures: both directions of a bridge, trajectories, monitors, and few steps against score-based models."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from torch import Tensor

from halfbridge.training.bridge import BridgeFit
from plane.laws import Case, Drawn, draw
from plane.models import FIRST, Row, Trained
from plane.settings import Settings

INK, QUIET, PALE = "#1f2328", "#6e7781", "#c4cad1"
WAYS = {"backward": "#0072b2", "forward": "#d55e00"}
MOONS = ("#0072b2", "#d55e00")
"""Okabe and Ito's colours, which colour-blind readers tell apart."""
DPI = 130
REACH = 3.3
"""Pictures show [-REACH, REACH]^2."""


class Carried(NamedTuple):
    """Points of one end law and where a bridge carries them: states (k, n, 2), the first the points themselves."""

    law: str
    to: str
    source: Drawn
    states: Tensor
    times: list[float]


def carried(fit: BridgeFit, case: Case, s: Settings, seed: int, looks: int = 5) -> list[Carried]:
    """Both directions, forward first, at equally spaced times."""
    T = fit.reference.times[-1]
    times = torch.linspace(0.0, T, looks, dtype=torch.float64)
    out = []
    for law, to, at in ((case.start, "end", times), (case.end, "start", times.flip(0))):
        source = draw(law, s.shown, seed + 5 * FIRST)
        states = fit.trajectories(source.points, seed + 5 * FIRST, to=to, times=at, last_noise=False)
        out.append(Carried(law, case.end if to == "end" else case.start, source, states, at.tolist()))
    return out


def translations(title: str, ways: Sequence[Carried], s: Settings, seed: int, path: Path) -> None:
    """A row a direction: the way of the points in snapshots, in the colours of their beginning, and the law aimed at."""
    columns = len(ways[0].times) + 1
    figure = Figure(figsize=(2.45 * columns, 5.7), dpi=DPI, facecolor="white")
    grid = figure.subplots(2, columns)
    figure.subplots_adjust(left=0.008, right=0.992, bottom=0.012, top=0.86, wspace=0.05, hspace=0.2)
    for axes, way in zip(grid, ways, strict=True):
        colours = coloured(way.law, way.source.part)
        order = np.random.default_rng(0).permutation(len(colours))
        for ax, x, t in zip(axes, way.states, way.times, strict=False):
            _points(ax, x[order], colours[order])
            ax.set_title(f"t = {t / max(way.times):g} T", fontsize=9.5, color=QUIET, pad=4)
        axes[0].set_title(way.law, fontsize=9.5, color=INK, weight="bold", pad=4)
        axes[-2].set_title(f"carried to {way.to}", fontsize=9.5, color=INK, weight="bold", pad=4)
        _points(axes[-1], draw(way.to, s.shown, seed + 6 * FIRST).points, QUIET)
        axes[-1].set_title(f"{way.to}, fresh data", fontsize=9.5, color=QUIET, pad=4)
    figure.suptitle(f"{title}, both directions", x=0.01, y=0.975, ha="left", fontsize=13, color=INK, weight="bold")
    figure.text(0.01, 0.915, "a point keeps the colour of its beginning", fontsize=9.5, color=QUIET)
    figure.savefig(path)


def trajectories(bridges: Sequence[Trained], s: Settings, seed: int, path: Path) -> None:
    """A column a bridge, forward above, backward below: lines from the beginning (ring) to the end (dot)."""
    figure = Figure(figsize=(4.0 * len(bridges), 8.5), dpi=DPI, facecolor="white")
    grid = figure.subplots(2, len(bridges), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.955, wspace=0.04, hspace=0.09)
    for column, one in zip(grid.T, bridges, strict=True):
        for ax, law, to in zip(column, (one.case.start, one.case.end), ("end", "start"), strict=True):
            source = draw(law, s.lines, seed + 7 * FIRST)
            states = one.fit.trajectories(source.points, seed + 7 * FIRST, to=to, last_noise=False)
            colours, lines = coloured(law, source.part), states.transpose(0, 1).numpy()
            ax.add_collection(LineCollection(list(lines), colors=colours, linewidths=0.7, alpha=0.55))
            first, last = (0, -1) if to == "end" else (-1, 0)
            ax.scatter(*lines[:, first].T, s=13, facecolors="white", edgecolors=colours, linewidths=0.9, zorder=3)
            ax.scatter(*lines[:, last].T, s=13, c=colours, linewidths=0, zorder=4)
            _frame(ax)
            other = one.case.end if to == "end" else one.case.start
            ax.set_title(f"{law} → {other}", fontsize=11, color=INK, weight="bold", loc="left", pad=6)
    figure.savefig(path)


def monitors(bridges: dict[str, dict[str, Any]], path: Path) -> None:
    """A column a bridge of results.json: errors at both ends with their floors, KL between iterates of one
    direction, energy, losses."""
    figure = Figure(figsize=(3.7 * len(bridges), 11.0), dpi=DPI, facecolor="white", layout="constrained")
    grid = figure.subplots(5, len(bridges), squeeze=False, sharex="col", sharey="row")
    for column, (name, one) in zip(grid.T, bridges.items(), strict=True):
        sliced, energy, kl, work, loss = column
        for way, end in (("backward", "start"), ("forward", "end")):
            rows = [row for row in one["monitors"] if row["direction"] == way]
            at = [row["iterate"] for row in rows]
            style = {"color": WAYS[way], "label": f"at the {end}, by the {way} chain", "marker": "o", "ms": 4}
            for ax, what in ((sliced, "sliced_w2"), (energy, "energy_distance")):
                ax.plot(at, [row[f"{end}_{what}"] for row in rows], **style)
            sliced.axhline(one["law_floors"][end][0], color=WAYS[way], ls=":", lw=1.2)
            for ax, what in ((kl, "kl"), (work, "path_energy")):
                known = [row for row in rows if row[what] is not None]
                ax.errorbar([row["iterate"] for row in known], [row[what] for row in known],
                            yerr=[row[f"{what}_error"] for row in known], **{**style, "label": way})  # fmt: skip
            for row, means in zip(one["monitors"], one["losses"], strict=True):
                if row["direction"] == way:
                    place = row["iterate"] - 1 + (np.arange(len(means)) + 0.5) / max(len(means), 1)
                    loss.plot(place, means, color=WAYS[way], lw=1.2)
        sliced.set_title(name, fontsize=12, color=INK, weight="bold", loc="left", pad=8)
        energy.axhline(0.0, color=PALE, lw=1.0, zorder=0)
        energy.set_yscale("symlog", linthresh=1e-3)
        kl.set_yscale("log")
        loss.set_xlabel("half-bridges done", color=INK)
        loss.xaxis.get_major_locator().set_params(integer=True)
    names = ("sliced W2 (dotted: floor)", "energy distance (floor 0)", "KL to the iterate\ntwo before, nats",
             "path energy, nats", "loss")  # fmt: skip
    for axes, name in zip(grid, names, strict=True):
        axes[0].set_ylabel(name, color=INK)
    grid[0, 0].legend(frameon=False, fontsize=8.5, labelcolor=INK)
    grid[2, 0].legend(frameon=False, fontsize=8.5, labelcolor=INK)
    for row in grid[:2]:
        row[0].set_ylim(min(0.0, row[0].get_ylim()[0]), None)
    _plain(grid.ravel())
    figure.savefig(path)


def few_steps(few: dict[str, dict[str, dict[str, float]]], floor: dict[str, float], path: Path) -> None:
    """Distances to data against the number of steps, a line a sampler."""
    figure = Figure(figsize=(11.5, 4.6), dpi=DPI, facecolor="white", layout="constrained")
    counts = [int(n) for n in few]
    distances = {"sliced_w2": "sliced W2", "energy": "energy distance"}
    for ax, (what, title) in zip(figure.subplots(1, 2), distances.items(), strict=True):
        names = next(iter(few.values()))
        for k, name in enumerate(names):
            y, bars = ([few[str(n)][name][key] for n in counts] for key in (what, f"{what}_se"))
            at = [n * 1.025 ** (k - (len(names) - 1) / 2) for n in counts]  # side by side
            ax.errorbar(at, y, yerr=bars, label=name, capsize=2, **_style(name))
        low = floor[what]
        if low > 0:
            ax.axhline(low, color=PALE, lw=5, zorder=0, label="fresh data")
        ax.set(xscale="log", xticks=counts, xticklabels=[str(n) for n in counts])
        if what == "energy":
            ax.set_yscale("symlog", linthresh=1e-3)  # it is unbiased, and may be below 0
            values = [
                row[what] + side * row[f"{what}_se"]
                for rows in few.values()
                for row in rows.values()
                for side in (-1, 1)
            ]
            ax.set_ylim(min(0.0, *values) - 2e-4, 1.5 * max(values))
        else:
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        for formatted in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            formatted(FormatStrFormatter("%g"))
        ax.tick_params(which="both", labelsize=9)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("steps N, each one evaluation of a network", color=INK)
        ax.set_title(f"{title} to fresh data", loc="left", fontsize=11.5, color=INK, weight="bold")
    _plain(figure.axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    figure.savefig(path)


def few_samples(rows: dict[int, Sequence[Row]], case: Case, s: Settings, seed: int, path: Path) -> None:
    """A row for each N, a column for each sampler."""
    names = [row.name for row in next(iter(rows.values()))]
    figure = Figure(figsize=(2.35 * len(names), 2.5 * len(rows) + 0.2), dpi=DPI, facecolor="white")
    grid = figure.subplots(len(rows), len(names), squeeze=False)
    figure.subplots_adjust(left=0.028, right=0.995, bottom=0.01, top=0.93, wspace=0.05, hspace=0.05)
    for axes, (n, samplers) in zip(grid, rows.items(), strict=True):
        axes[0].text(-0.08, 0.5, f"N = {n}", transform=axes[0].transAxes, rotation=90, va="center", ha="center", fontsize=11,
                     color=INK, weight="bold")  # fmt: skip
        for ax, row in zip(axes, samplers, strict=True):
            _points(ax, row.sampler(s.shown, seed + FIRST), MOONS[0])
            if ax in grid[0]:
                ax.set_title(row.name, fontsize=9, color=INK, pad=5)
    figure.savefig(path)


def coloured(law: str, part: Tensor) -> Any:
    """RGB of each point, (n, 3)."""
    values = part.numpy()
    if law == "moons":
        return matplotlib.colors.to_rgba_array(np.array(MOONS)[values.astype(int)])[:, :3]
    if law == "swiss roll":
        return matplotlib.colormaps["viridis"](0.92 * values)[:, :3]
    return np.array([colorsys.hls_to_rgb(v % 1.0, 0.47, 0.78) for v in values])


def _points(ax: Axes, x: Tensor, colours: Any) -> None:
    ax.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=1.6, c=colours, alpha=0.55, linewidths=0, rasterized=True)
    _frame(ax)


def _frame(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[])
    ax.spines[:].set_color("#dfe3e8")


def _plain(axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(True, which="major", color="#eef0f2", zorder=0)
        ax.set_axisbelow(True)


def _style(name: str) -> dict[str, Any]:
    colours = {"DSB": "#d55e00", "first half-bridge": "#0072b2", "short": "#009e73", "long": "#7a5195"}
    colour = next(value for key, value in colours.items() if key in name)
    second = "wide" in name or "DPM" in name
    return {"color": colour, "ls": "--" if second else "-", "marker": "s" if second else "o", "ms": 5, "lw": 1.6}
