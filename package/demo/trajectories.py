"""The picture of a probability flow: a mixture in the plane from noise to data, with its score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from halfbridge.kernels import normal
from halfbridge.solvers import grids
from halfbridge.solvers.dpm import DPMSolver
from halfbridge.solvers.processes import VP
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.run import solve

__all__ = ["draw"]

INK, QUIET = "#1f2328", "#6e7781"
MEANS = [[-1.5, 0.9], [1.4, 1.3], [0.3, -1.5], [1.9, -0.7], [-1.3, -1.1]]
WEIGHTS = [0.3, 0.25, 0.2, 0.1, 0.15]
STD = 0.22
REACH = 3.1
TIMES = (1.0, 0.3, 0.13, 0.02)


def draw(path: Path, seed: int, starts: int = 60, steps: int = 160) -> None:
    """Panels at falling times: density shaded, score as arrows, and the paths of the same starts up to that time."""
    process = VP()
    law = GaussianMixture(torch.tensor(WEIGHTS, dtype=torch.float64), torch.tensor(MEANS, dtype=torch.float64), STD**2)
    field = law.field(process)
    grid = np.union1d(grids.half_log_snr(process, steps), [t for t in TIMES if t < process.T])[::-1].copy()
    x = normal((starts, 2), seed, dtype=torch.float64)
    paths = solve(field, DPMSolver(order=3), x, grid=grid, save="all").trajectory.numpy()

    figure = Figure(figsize=(16.0, 4.75), dpi=150, facecolor="white")
    axes = figure.subplots(1, len(TIMES))
    figure.subplots_adjust(left=0.008, right=0.992, top=0.865, bottom=0.015, wspace=0.025)
    fine, coarse = _plane(161), _plane(19)
    for ax, t in zip(axes, TIMES, strict=True):
        density = law.at(process, t).log_prob(fine.reshape(-1, 2)).exp().reshape(fine.shape[:2]).numpy()
        ax.imshow(
            (density / density.max()) ** 0.5,
            cmap="Blues",
            vmax=1.5,
            extent=(-REACH, REACH, -REACH, REACH),
            origin="lower",
            interpolation="bicubic",
        )
        score = field.score(t, coarse.reshape(-1, 2)).numpy()
        size = np.linalg.norm(score, axis=1, keepdims=True)
        arrows = score / np.maximum(size, 1e-12) * np.tanh(size * process.sigma(t) / 2.0) ** 0.5
        ax.quiver(
            *coarse.reshape(-1, 2).numpy().T,
            *arrows.T,
            color=QUIET,
            alpha=0.75,
            pivot="mid",
            scale=26,
            width=0.0035,
            headwidth=4,
            headlength=4.5,
            headaxislength=4,
        )
        past = paths[: int(np.searchsorted(-grid, -t)) + 1]
        for path_of_one in np.moveaxis(past, 1, 0):
            ax.plot(*path_of_one.T, color="#d55e00", lw=0.9, alpha=0.7, zorder=3, solid_capstyle="round")
        ax.scatter(*past[-1].T, s=15, color="#d55e00", edgecolor="white", linewidth=0.6, zorder=4)
        ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_color("#d0d7de")
        alpha, sigma = process.alpha(t), process.sigma(t)
        ax.set_title(
            rf"$t = {t:g}$     $\alpha = {alpha:.2f}$,  $\sigma = {sigma:.2f}$", loc="left", fontsize=11, color=QUIET
        )
    figure.suptitle(
        "Probability flow of a mixture of five Gaussians: density (blue), score (arrows), paths from noise (orange)",
        x=0.008,
        ha="left",
        fontsize=13,
        color=INK,
        weight="bold",
    )
    figure.savefig(path)


def _plane(n: int) -> torch.Tensor:
    """(n, n, 2) points of the square."""
    axis = torch.linspace(-REACH, REACH, n, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return torch.stack([x, y], dim=-1)
