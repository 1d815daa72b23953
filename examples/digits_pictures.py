"""The pictures of the digits experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

__all__ = ["Chain", "classes", "heading", "loss", "path", "plain", "samples", "scores", "sheet"]

INK, QUIET, CARD = "#1f2328", "#6e7781", "#dfe3e8"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Of Okabe and Ito's, which colour-blind readers tell apart."""
DPI, TILE, DOTS = 150, 10, 4
"""A digit with its gap is TILE pixels wide, and each pixel DOTS dots."""


class Chain(NamedTuple):
    """A run of a solver, (times, digits, 1, 8, 8) each."""

    times: Sequence[float]
    states: torch.Tensor
    seen: torch.Tensor
    """The data predictions at the states."""


def samples(
    found: Mapping[tuple[str, int], torch.Tensor],
    names: Sequence[str],
    budgets: Sequence[int],
    real: torch.Tensor,
    path: Path,
) -> None:
    """A row for each solver and a block of columns for each budget; real digits above. All start from the same noise."""
    rows = [torch.cat([real] * len(budgets))] + [torch.cat([found[name, b][:10] for b in budgets]) for name in names]
    figure, ax = sheet(torch.stack(rows), 10, left=1.1, head=0.35)
    for b, budget in enumerate(budgets):
        heading(ax, b * (10 * TILE + TILE // 2), f"{budget} evaluations")
    for k, name in enumerate(["real digits", *names]):
        ax.text(-4.0, k * TILE + 3.5, name, ha="right", va="center", fontsize=9, color=INK if k else QUIET)
    figure.savefig(path)


def classes(columns: Sequence[torch.Tensor], names: Sequence[str], path: Path) -> None:
    """Blocks of six digits of each class, a column a class."""
    rows = [torch.cat([images[10 * k : 10 * k + 10] for images in columns]) for k in range(6)]
    figure, ax = sheet(torch.stack(rows), 10, left=0.12, head=0.35)
    for b, name in enumerate(names):
        heading(ax, b * (10 * TILE + TILE // 2), name)
    figure.savefig(path)


def path(chain: Chain, path: Path) -> None:
    """For each of five digits its states and below them what the network sees in them."""
    rows = []
    for k in range(0, chain.states.shape[1], 2):
        rows += [chain.states[:, k], chain.seen[:, k]]
    figure, ax = sheet(torch.stack(rows), len(chain.times), left=1.1, head=0.35)
    for i, t in enumerate(chain.times):
        ax.text(i * TILE + 3.5, -3.0, f"{t:.1g}".lstrip("0"), ha="center", va="bottom", fontsize=8, color=QUIET)
    ax.text(-4.0, -3.0, "t =", ha="right", va="bottom", fontsize=8, color=QUIET)
    for k in range(len(rows)):
        ax.text(-4.0, k * TILE + 3.5, ("state", "seen in it")[k % 2], ha="right", va="center", fontsize=8, color=INK)
    figure.savefig(path)


def loss(training: Mapping[str, Any], path: Path) -> None:
    """The mean of the last 100 batches' losses, and the averaged network's loss on the held-out digits."""
    figure = Figure(figsize=(6.4, 3.6), dpi=DPI, facecolor="white", layout="constrained")
    ax = figure.subplots()
    for key, colour, marker, name in (
        ("loss", COLOURS[0], None, "training, with dropout and lost classes"),
        ("held_out_loss", COLOURS[1], "o", "held out, averaged network"),
    ):
        if training[key]:
            steps, values = zip(*training[key], strict=True)
            ax.plot(steps, values, color=colour, lw=1.6, marker=marker, ms=4, label=name)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(ScalarFormatter())
    ax.set_xlabel("step", color=INK)
    ax.set_ylabel("squared error of the noise, a pixel", color=INK)
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    plain(ax)
    figure.savefig(path)


def scores(runs: Sequence[Mapping[str, Any]], real: Mapping[str, Any], path: Path) -> None:
    """Accuracy, energy distance and sliced W2 against evaluations; grey is what real digits give."""
    figure = Figure(figsize=(11.0, 3.5), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(1, 3)
    names = list(dict.fromkeys(row["solver"] for row in runs))
    titles = {
        "accuracy": "Recognised as asked",
        "energy": "Energy distance to held-out digits",
        "sliced_w2": "Sliced W2 to held-out digits",
    }
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            mine = [row for row in runs if row["solver"] == name]
            ax.plot(
                [r["evaluations"] for r in mine],
                [r[key] for r in mine],
                color=colour,
                marker="o",
                ms=4.5,
                lw=1.6,
                label=name,
            )
        if key == "accuracy":
            ax.axhline(real[key], color=QUIET, lw=1.2, ls=(0, (4, 3)), label="real digits")
        else:
            mean, std, _ = real["splits"][key]
            ax.axhspan(mean - 2 * std, mean + 2 * std, color=CARD, label="real digits, 2 std", zorder=0)
        ax.set_xscale("log")
        ax.set_xticks(sorted({row["budget"] for row in runs}))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.minorticks_off()
        ax.set_title(title, loc="left", fontsize=10, color=INK)
        ax.set_xlabel("evaluations", color=INK)
        plain(ax)
    axes[0].legend(frameon=False, fontsize=8.5, labelcolor=INK)
    axes[1].legend(frameon=False, fontsize=8.5, labelcolor=INK)
    figure.savefig(path)


def sheet(images: torch.Tensor, block: int, *, left: float, head: float) -> tuple[Figure, Axes]:
    """images (rows, columns, 1, 8, 8) in inks on a card, half a digit between blocks of `block` columns. In inches: the
    room to the left and above."""
    rows, columns = images.shape[:2]
    gap = TILE - 8
    card = np.full((rows * TILE - gap, columns * TILE + (columns - 1) // block * (TILE // 2) - gap), np.nan)
    for i in range(rows):
        for k in range(columns):
            x = k * TILE + k // block * (TILE // 2)
            card[i * TILE : i * TILE + 8, x : x + 8] = images[i, k, 0].double().clamp(-1.0, 1.0).numpy()
    high, wide = (n * DOTS / DPI for n in card.shape)
    full = (left + wide + 0.12, head + high + 0.12)
    figure = Figure(figsize=full, dpi=DPI, facecolor="white")
    ax = figure.add_axes((left / full[0], 0.12 / full[1], wide / full[0], high / full[1]))
    shades = colormaps["gray_r"].with_extremes(bad=CARD)
    ax.imshow(np.ma.masked_invalid(card), cmap=shades, vmin=-1.0, vmax=1.0, interpolation="nearest")
    ax.set_axis_off()
    return figure, ax


def heading(ax: Axes, x: float, text: str) -> None:
    ax.text(x - 0.5, -3.0, text, ha="left", va="bottom", fontsize=9, color=QUIET)


def plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK, labelsize=9, which="both")
