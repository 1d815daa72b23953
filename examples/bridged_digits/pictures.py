"""The pictures of the bridges of digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from digits_pictures import CARD, COLOURS, DPI, INK, QUIET, TILE, heading, plain, sheet
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bridged_digits.few_steps import METHODS

__all__ = ["few_samples", "few_scores", "generated", "generating", "noising", "translations", "ways"]


def noising(paths: torch.Tensor, path: Path) -> None:
    """paths (iterations + 1, N + 1, digits, 1, 8, 8): a block of columns a digit, its times from left to right; a row an
    iterate, the reference's first."""
    rows, times, digits = paths.shape[:3]
    images = paths.transpose(1, 2).reshape(rows, digits * times, 1, 8, 8)
    figure, ax = sheet(images, times, left=1.1, head=0.35)
    for k in range(digits):
        heading(ax, k * (times * TILE + TILE // 2), f"x_0 to x_{times - 1}")
    _names(ax, ["reference", *(f"iteration {i}" for i in range(1, rows))])
    figure.savefig(path)


def generated(real: torch.Tensor, blocks: Sequence[torch.Tensor], names: Sequence[str], path: Path) -> None:
    """Blocks of rows beside each other, (iterations, n, 1, 8, 8): a row an iteration, real digits above."""
    n = blocks[0].shape[1]
    rows = torch.cat([torch.cat([real[None, :n] for _ in blocks], dim=1), torch.cat(list(blocks), dim=1)])
    figure, ax = sheet(rows, n, left=1.1, head=0.35)
    for b, name in enumerate(names):
        heading(ax, b * (n * TILE + TILE // 2), name)
    _names(ax, ["trained on", *(f"iteration {i + 1}" for i in range(len(rows) - 1))])
    figure.savefig(path)


def generating(paths: torch.Tensor, path: Path) -> None:
    """paths (N + 1, n, 1, 8, 8) from noise to digit: a row each, in two blocks."""
    half = paths.shape[1] // 2
    images = torch.cat([paths[:, :half], paths[:, half : 2 * half]]).transpose(0, 1)
    figure, ax = sheet(images, len(paths), left=0.12, head=0.35)
    for b in range(2):
        heading(ax, b * (len(paths) * TILE + TILE // 2), f"x_{len(paths) - 1} to x_0")
    figure.savefig(path)


def translations(found: Mapping[str, Sequence[torch.Tensor]], arrows: Sequence[str], path: Path) -> None:
    """For both ways beside each other the digits, and below them their translations by each method."""
    names, ends = list(found), list(found.values())
    rows = [torch.cat([way[0] for way in ends[0]])] + [torch.cat([way[-1] for way in ways]) for ways in ends]
    n = ends[0][0].shape[1]
    figure, ax = sheet(torch.stack(rows), n, left=1.1, head=0.35)
    for b, arrow in enumerate(arrows):
        heading(ax, b * (n * TILE + TILE // 2), arrow)
    _names(ax, ["held out", *(f"by {name}" for name in names)])
    figure.savefig(path)


def ways(found: Sequence[torch.Tensor], arrows: Sequence[str], n: int, path: Path) -> None:
    """The states (N + 1, ., 1, 8, 8) of n digits of each way on their way."""
    rows = torch.cat([way[:, :n].transpose(0, 1) for way in found], dim=1)
    figure, ax = sheet(rows, len(found[0]), left=0.12, head=0.35)
    for b, arrow in enumerate(arrows):
        heading(ax, b * (len(found[0]) * TILE + TILE // 2), arrow)
    figure.savefig(path)


def few_samples(
    real: torch.Tensor, found: Mapping[tuple[str, int], torch.Tensor], budgets: Sequence[int], path: Path
) -> None:
    """A row a method and a block of columns for each number of steps."""
    n = len(real)
    rows = [torch.cat([real] * len(budgets))] + [torch.cat([found[name, b][:n] for b in budgets]) for name in METHODS]
    figure, ax = sheet(torch.stack(rows), n, left=1.4, head=0.35)
    for b, budget in enumerate(budgets):
        heading(ax, b * (n * TILE + TILE // 2), f"{budget} steps")
    _names(ax, ["held out", *METHODS])
    figure.savefig(path)


def few_scores(told: Mapping[str, Any], path: Path) -> None:
    """Three measures against the steps of sampling; bars are deviations over sampling seeds, grey (two deviations) is what real
    digits give."""
    figure = Figure(figsize=(11.0, 3.5), dpi=DPI, facecolor="white", layout="constrained")
    titles = {
        "energy": "Energy distance to held-out digits",
        "sliced_w2": "Sliced W2 to held-out digits",
        "recognised": "Share recognised",
    }
    for ax, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for name, colour in zip(METHODS, COLOURS, strict=False):
            mine = [row for row in told["rows"] if row["model"] == name]
            y, bars = zip(*(row[key] for row in mine), strict=True)
            at = [row["evaluations"] for row in mine]
            ax.errorbar(at, y, yerr=bars, color=colour, marker="o", ms=4.5, lw=1.6, capsize=3, label=name)
        if key == "recognised":
            ax.axhline(told["real"][key], color=QUIET, lw=1.2, ls=(0, (4, 3)))
            ax.set_ylim(None, 1.0)
        else:
            mean, std = told["real"][key]
            ax.axhspan(mean - 2 * std, mean + 2 * std, color=CARD, label="real digits", zorder=0)
            ax.set_ylim(min(0.0, mean - 2 * std), None)
        ax.set_xticks([row["evaluations"] for row in told["rows"] if row["model"] == METHODS[0]])
        ax.set_title(title, loc="left", fontsize=10, color=INK)
        ax.set_xlabel("steps", color=INK)
        if key == "energy":  # the colours are those of all three
            ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        plain(ax)
    figure.savefig(path)


def _names(ax: Axes, names: Sequence[str]) -> None:
    for k, name in enumerate(names):
        ax.text(-4.0, k * TILE + 3.5, name, ha="right", va="center", fontsize=9, color=INK if k else QUIET)
