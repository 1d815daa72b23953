"""The demo's pictures of samples and of work against precision."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from halfbridge.demo.methods import METHODS
from halfbridge.demo.settings import Settings
from halfbridge.demo.trial import Trial

__all__ = ["samples", "work_precision"]

INK, QUIET, GUIDE, CARD = "#1f2328", "#6e7781", "#a8b0b8", "#dfe3e8"
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#cc79a7", "#009e73", "#e69f00")
"""Okabe and Ito's, which colour-blind readers tell apart."""

DPI = 150
TILE, GAP, BLOCK = 8, 2, 6
"""In pixels of the digits: a digit, the gap between two, the gap between budgets and between kinds of solver."""


def samples(trials: list[Trial], settings: Settings, path: Path) -> None:
    """A row for each solver, a block of columns for each budget; every row starts from the same noise."""
    rows = _rows()
    per_block = next(c.shown.shape[0] for row in trials[0].cells.values() for c in row if c is not None)
    blocks, width = len(settings.budgets), per_block * (TILE + GAP) + BLOCK
    shape = (max(rows.values()) + TILE, blocks * width - BLOCK - GAP)
    panel = 4 * shape[1] / DPI  # inches: 4 dots for each pixel of a digit, so that all are drawn alike
    left, between, head, foot = 1.9, 0.25, 0.62, 0.12
    wide = left + len(trials) * (panel + between)
    high = head + panel * shape[0] / shape[1] + foot
    figure = Figure(figsize=(wide, high), dpi=DPI, facecolor="white")
    axes = figure.subplots(1, len(trials), squeeze=False)[0]
    figure.subplots_adjust(
        left=left / wide, right=1 - between / wide, bottom=foot / high, top=1 - head / high, wspace=between / panel
    )
    for ax, trial in zip(axes, trials, strict=True):
        sheet = np.full(shape, np.nan)
        for b in range(blocks):
            _place(sheet, trial.target.images[b * per_block : (b + 1) * per_block], rows[""], b * width)
            for method in METHODS:
                cell = trial.cells[method.name][b]
                if cell is not None:
                    _place(sheet, cell.shown, rows[method.name], b * width)
        shades = colormaps["gray_r"].with_extremes(bad=CARD)
        ax.imshow(np.ma.masked_invalid(sheet), cmap=shades, vmin=-1.0, vmax=1.0, interpolation="nearest")
        ax.set_axis_off()
        centre = (per_block * (TILE + GAP) - GAP) / 2 - 0.5
        for b, budget in enumerate(settings.budgets):
            ax.text(
                b * width + centre, -3.0, f"{budget} evaluations", ha="center", va="bottom", fontsize=9.5, color=QUIET
            )
        ax.text(-0.5, -10.5, _capital(trial.target.name), ha="left", va="bottom", fontsize=12, color=INK, weight="bold")
    for name, top in rows.items():
        label, colour = (name, INK) if name else ("exact draws", QUIET)
        axes[0].text(-3.5, top + TILE / 2 - 0.5, label, ha="right", va="center", fontsize=9.5, color=colour)
    figure.savefig(path)


def _rows() -> dict[str, int]:
    """The top of each solver's row; "" is the row of exact draws."""
    tops, y = {"": 0}, TILE + BLOCK
    for before, method in zip((None, *METHODS), METHODS, strict=False):
        if before is not None and before.deterministic != method.deterministic:
            y += BLOCK - GAP
        tops[method.name] = y
        y += TILE + GAP
    return tops


def _place(sheet: np.ndarray, images: torch.Tensor, top: int, left: int) -> None:
    for i, image in enumerate(images):
        x = left + i * (TILE + GAP)
        sheet[top : top + TILE, x : x + TILE] = image.squeeze(0).double().clamp(-1.0, 1.0).numpy()


def work_precision(trials: list[Trial], path: Path) -> None:
    """Error of the median start against evaluations, with guides of slope -1, -2 and -3."""
    figure = Figure(figsize=(13.0, 5.6), dpi=DPI, facecolor="white")
    axes = figure.subplots(1, len(trials), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.06, right=0.885, top=0.86, bottom=0.11, wspace=0.36)
    for ax, trial in zip(axes, trials, strict=True):
        _curves(ax, trial)
    bottom = min(e for trial in trials for points in trial.curves.values() for _, e in points)
    for ax, trial in zip(axes, trials, strict=True):
        _guides(ax, trial, bottom)
    axes[0].set_ylabel("error per pixel, median start (pixels span 2)", color=INK)
    figure.suptitle(
        "Error to the exact probability flow, from the same start",
        x=0.06,
        ha="left",
        fontsize=13,
        color=INK,
        weight="bold",
    )
    figure.savefig(path)


def _curves(ax: Axes, trial: Trial) -> None:
    merged: dict[tuple[float, ...], list[str]] = {}
    for name, points in trial.curves.items():
        merged.setdefault(tuple(float(f"{e:.2g}") for _, e in points), []).append(name)
    lines = [(" = ".join(names), trial.curves[names[0]]) for names in merged.values()]
    ends = _spread([math.log10(points[-1][1]) for _, points in lines], 0.2)
    for (name, points), colour, y in zip(lines, COLOURS, ends, strict=False):
        evaluations, errors = zip(*points, strict=True)
        ax.loglog(evaluations, errors, color=colour, lw=2.0, marker="o", ms=4.5, mec="white", mew=0.7, zorder=3)
        ax.annotate(
            name, (evaluations[-1] * 1.09, 10**y), color=colour, va="center", fontsize=9.5, annotation_clip=False
        )
    ax.set_title(_capital(trial.target.name), loc="left", fontsize=10.5, color=QUIET)
    ax.set_xlabel("evaluations of the field", color=INK)
    ticks = [n for n, _ in next(iter(trial.curves.values()))]
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK)
    ax.grid(True, which="major", color="#eef0f2", zorder=0)


def _guides(ax: Axes, trial: Trial, bottom: float) -> None:
    """Slopes -1, -2 and -3, fanning out in the empty corner between the first points and `bottom`."""
    least = min(n for points in trial.curves.values() for n, _ in points)
    top = math.sqrt(bottom * min(points[0][1] for points in trial.curves.values()))
    for order, reach in ((1, 3.6), (2, 3.0), (3, 2.6)):
        end = top * reach**-order
        ax.plot([least, least * reach], [top, end], color=GUIDE, lw=1.1, ls=(0, (4, 3)), zorder=1)
        ax.annotate(f"order {order}", (least * reach * 1.05, end), color=QUIET, fontsize=8.5, va="center")


def _spread(values: list[float], gap: float) -> list[float]:
    """The values moved apart to at least `gap` between neighbours, as little as pushing from the lowest up takes."""
    order = sorted(range(len(values)), key=values.__getitem__)
    out = list(values)
    for low, high in pairwise(order):
        out[high] = max(out[high], out[low] + gap)
    return out


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
