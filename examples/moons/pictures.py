"""The pictures: samples, the way to them, and training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moons.measures import NOISE, STRAY, ScoreError, distances

INK, QUIET, GUIDE = "#1f2328", "#6e7781", "#a8b0b8"
UPPER, LOWER = "#0072b2", "#d55e00"
DDPM, NCSN = "#0072b2", "#009e73"
"""Okabe and Ito's colours, which colour-blind readers tell apart."""
DPI = 150
SHOWN = 3000


class Trained(NamedTuple):
    """What the picture of training shows of a model."""

    name: str
    losses: torch.Tensor
    steps_per_epoch: float
    errors: list[ScoreError]


def samples(sets: Sequence[tuple[str, torch.Tensor, dict[str, float]]], path: Path) -> None:
    """A panel a sample, its points in the colour of the nearer moon; strays are ringed."""
    figure = Figure(figsize=(4.3 * len(sets), 3.25), dpi=DPI, facecolor="white")
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.84, wspace=0.04)
    for ax, (name, x, m) in zip(axes, sets, strict=True):
        _scatter(ax, x, 1.6, 0.45)
        far = x[distances(x).amin(dim=1) > STRAY]
        ax.scatter(
            far[:, 0].numpy(), far[:, 1].numpy(), s=22, facecolors="none", edgecolors=INK, linewidths=0.7, zorder=3
        )
        ax.set(xlim=(-1.85, 1.85), ylim=(-1.15, 1.15))
        ax.set_title(name, loc="left", fontsize=12, color=INK, weight="bold", pad=19)
        text = f"sliced W2 {m['sliced_w2']:.4f} ± {m['sliced_w2_sd']:.4f}, upper moon {100 * m['upper']:.1f} %"
        ax.text(0.0, 1.03, text, transform=ax.transAxes, fontsize=9.5, color=QUIET)
    figure.savefig(path)


def paths(rows: Sequence[tuple[str, torch.Tensor, Sequence[str]]], path: Path) -> None:
    """A row a model: the states (k, n, 2) from noise to data, each with its label, and at most SHOWN points of them. A point
    keeps the colour of its end."""
    columns = max(len(labels) for _, _, labels in rows)
    figure = Figure(figsize=(2.3 * columns, 2.62 * len(rows)), dpi=DPI, facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(left=0.035, right=0.995, bottom=0.01, top=0.93, wspace=0.05, hspace=0.16)
    for axes, (name, states, labels) in zip(grid, rows, strict=True):
        ends = distances(states[-1, :SHOWN])
        for ax, x, label in zip(axes, states[:, :SHOWN], labels, strict=True):
            _scatter(ax, x, 1.2, 0.5, ends)
            ax.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1))
            ax.set_title(label, fontsize=9.5, color=QUIET, pad=4)
        axes[0].text(-0.07, 0.5, name, transform=axes[0].transAxes, rotation=90, va="center", ha="center", fontsize=12,
                     color=INK, weight="bold")  # fmt: skip
    figure.savefig(path)


def training(models: Sequence[Trained], path: Path) -> None:
    """Loss against epochs, with the least that any network can have; and how far the networks are from the exact score."""
    figure = Figure(figsize=(13.0, 4.3), dpi=DPI, facecolor="white")
    axes = figure.subplots(1, len(models) + 1)
    figure.subplots_adjust(left=0.05, right=0.985, top=0.84, bottom=0.13, wspace=0.24)
    for ax, model, colour in zip(axes, models, (DDPM, NCSN), strict=False):
        _losses(ax, model, colour)
    axes[0].set_ylabel("loss a dimension", color=INK)
    ax = axes[-1]
    for model, colour in zip(models, (DDPM, NCSN), strict=True):
        nu, excess = binned(model.errors)
        ax.loglog(nu, excess, color=colour, lw=2.0, marker="o", ms=4.5, mec="white", mew=0.7, label=model.name)
    ax.axvline(NOISE, color=GUIDE, lw=1.1, ls=(0, (4, 3)), zorder=0)
    ax.text(NOISE * 1.15, 0.95, "thickness of the moons", transform=ax.get_xaxis_transform(), fontsize=8.5, color=QUIET)
    ax.set_xlabel("noise level σ/α", color=INK)
    _title(ax, "Distance from the exact score", "mean square error of the predicted noise")
    ax.legend(frameon=False, fontsize=9.5, labelcolor=INK)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK)
        ax.grid(True, which="major", color="#eef0f2", zorder=0)
    figure.savefig(path)


def averaged(losses: torch.Tensor, memory: float) -> np.ndarray[Any, Any]:
    """Exponential averages of the losses over about `memory` steps, corrected for their beginning as Adam's are."""
    decay, mean, out = 1.0 - 1.0 / memory, 0.0, []
    for k, loss in enumerate(losses.tolist()):
        mean = decay * mean + (1.0 - decay) * loss
        out.append(mean / (1.0 - decay ** (k + 1)))
    return np.array(out)


def binned(errors: Sequence[ScoreError], bins: int = 18) -> tuple[list[float], list[float]]:
    """(nu, excess), means over bins of log nu where there are more errors than bins."""
    nu, excess = np.array([(e.nu, e.excess) for e in errors]).T
    if len(nu) <= bins:
        return list(nu), list(excess)
    edges = np.linspace(np.log(nu.min()), np.log(nu.max()) + 1e-9, bins + 1)
    place = np.digitize(np.log(nu), edges)
    filled = [place == k for k in range(1, bins + 1) if (place == k).any()]
    return [float(np.exp(np.log(nu[k]).mean())) for k in filled], [float(excess[k].mean()) for k in filled]


def _losses(ax: Axes, model: Trained, colour: str) -> None:
    epochs = np.arange(1, len(model.losses) + 1) / model.steps_per_epoch
    smooth = averaged(model.losses, min(200.0, max(2.0, len(model.losses) / 10)))
    least = float(np.mean([e.least for e in model.errors]))
    ax.plot(epochs, model.losses, color=colour, lw=0.4, alpha=0.25)
    ax.plot(epochs, smooth, color=colour, lw=1.8)
    ax.axhline(least, color=INK, lw=1.1, ls=(0, (4, 3)))
    spread = float(model.losses[len(model.losses) // 2 :].std())
    ax.set_ylim(least - 4.0 * spread, least + 9.0 * spread)
    ax.text(0.98, 0.04, f"least possible {least:.4f}", transform=ax.transAxes, fontsize=9.5, color=INK, ha="right")
    ax.set_xlabel("epochs", color=INK)
    _title(ax, f"Training loss, {model.name}", "of each step, and its exponential average")


def _scatter(ax: Axes, x: torch.Tensor, size: float, alpha: float, coloured_by: torch.Tensor | None = None) -> None:
    near = distances(x) if coloured_by is None else coloured_by
    colours = np.where((near[:, 0] < near[:, 1]).numpy(), UPPER, LOWER)
    ax.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=size, c=colours, alpha=alpha, linewidths=0)
    ax.set_aspect("equal")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("#dfe3e8")


def _title(ax: Axes, text: str, below: str) -> None:
    ax.set_title(text, loc="left", fontsize=11.5, color=INK, weight="bold", pad=20)
    ax.text(0.0, 1.03, below, transform=ax.transAxes, fontsize=9, color=QUIET)
