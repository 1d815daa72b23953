"""Pictures of samples: a grid of images, points in the plane beside the data, a histogram of anything else."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from halfbridge.training.durable import write_file

__all__ = ["check", "draw", "grid"]

INK, DATA, SAMPLES, CARD = "#1f2328", "#9aa4ae", "#0072b2", "#dfe3e8"
SIDE = 640
"""About the width of a picture, in pixels: small images are enlarged by a whole factor."""


def draw(
    samples: torch.Tensor,
    path: Path,
    *,
    data: torch.Tensor | None = None,
    range: tuple[float, float] = (-1.0, 1.0),
    columns: int | None = None,
) -> NDArray[np.uint8]:
    """Write a PNG of samples (n, *shape), and return its pixels (height, width, 3).

    Images, (n, channels, height, width): a `grid`. Points in the plane: a scatter over as many rows of `data`, framed by
    those, so that a stray sample does not make the picture small. Anything else: a histogram of the first coordinate over
    the data's.
    Raises ImportError, naming the extra, where pillow (images) or matplotlib is not installed.
    """
    if samples.ndim == 4:
        pixels = grid(samples, range=range, columns=columns)
        _save(pixels, path)
        return pixels
    return _plot(samples, data, path)


def check(shape: Sequence[int]) -> None:
    """ImportError, as of `draw`, where samples of that shape cannot be drawn."""
    _pillow()
    if len(shape) != 3:
        _matplotlib()


def grid(
    images: torch.Tensor, *, range: tuple[float, float] = (-1.0, 1.0), columns: int | None = None
) -> NDArray[np.uint8]:
    """Images (n, channels, height, width) side by side, row by row, as pixels (., ., 3).

    Three channels are colours; of other numbers the first is shown.
    range: the values that become black and white; what is outside is shown as the nearer of them. columns: default about
    as many as rows. Small images are enlarged by a whole factor, each pixel a square.
    """
    low, high = range
    n, channels, _, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    scale = max(1, SIDE // (columns * (width + 1)))
    shades = ((images.detach().float().cpu() - low) / (high - low) * 255.0).round().clamp(0.0, 255.0)
    shown = shades.nan_to_num(0.0).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    shown = shown if channels == 3 else np.repeat(shown[..., :1], 3, axis=3)
    shown = np.repeat(np.repeat(shown, scale, axis=1), scale, axis=2)
    gap = max(1, scale // 2)
    card = tuple(int(CARD[k : k + 2], 16) for k in (1, 3, 5))
    sheet = np.empty((rows * (shown.shape[1] + gap) + gap, columns * (shown.shape[2] + gap) + gap, 3), dtype=np.uint8)
    sheet[:] = card
    for k, image in enumerate(shown):
        top, left = (gap + place * (size + gap) for place, size in zip(divmod(k, columns), image.shape, strict=False))
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "pictures of images need pillow: pip install 'halfbridge[train]', or sample_every=0"
        ) from error
    return Image


def _matplotlib() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures of points need matplotlib: pip install 'halfbridge[train]', or sample_every=0"
        ) from error
    return Figure, FigureCanvasAgg


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    file = io.BytesIO()
    _pillow().fromarray(pixels).save(file, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, file.getvalue())


def _plot(samples: torch.Tensor, data: torch.Tensor | None, path: Path) -> NDArray[np.uint8]:
    Figure, FigureCanvasAgg = _matplotlib()
    clouds = [(samples, SAMPLES, f"{len(samples)} samples")]
    if data is not None:
        even = torch.linspace(0, len(data) - 1, min(len(samples), len(data)), device=data.device).long()
        clouds.insert(0, (data[even], DATA, "data"))
    points = [(cloud.detach().double().cpu().flatten(1).numpy(), colour, name) for cloud, colour, name in clouds]
    plane = points[0][0].shape[1] == 2
    figure = Figure(figsize=(6.4, 6.4 if plane else 4.0), dpi=100, facecolor="white", layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    low, high = _frame(points[0][0][:, :2] if plane else points[0][0][:, :1])
    for cloud, colour, name in points:
        inside = ((cloud[:, : len(low)] >= low) & (cloud[:, : len(low)] <= high)).all(1)
        label = name if inside.all() else f"{name}, {int((~inside).sum())} outside the picture"
        if plane:
            size = float(np.clip(4000.0 / len(cloud), 2.0, 30.0))
            axes.scatter(cloud[inside, 0], cloud[inside, 1], s=size, color=colour, alpha=0.7, linewidths=0, label=label)
        else:
            edges = np.linspace(low[0], high[0], 41).tolist()
            weights = np.full(int(inside.sum()), 40 / (len(cloud) * (high[0] - low[0])))
            axes.hist(cloud[inside, 0], edges, weights=weights, color=colour, alpha=0.6, label=label)
    if plane:
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    else:
        axes.set_xlabel(f"coordinate 1 of {points[0][0].shape[1]}", color=INK)
        axes.set_ylabel("density", color=INK)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    _save(pixels, path)
    return pixels


def _frame(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner of a square (d = 2) or an interval (d = 1) around the finite points, a quarter of their
    span wider each way."""
    finite = points[np.isfinite(points).all(1)]
    finite = finite if len(finite) else np.zeros((1, points.shape[1]))
    low, high = finite.min(0), finite.max(0)
    half = max(0.75 * float((high - low).max()), 1e-3)
    return (low + high) / 2 - half, (low + high) / 2 + half
