"""Pictures of samples: a grid of images, points in the plane beside the data, a histogram of anything else."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from halfbridge.training.durable import write_file

__all__ = ["draw", "grid"]

INK, DATA, SAMPLES, CARD = "#1f2328", "#9aa4ae", "#0072b2", "#dfe3e8"
SIDE = 640
"""About the width of a picture, in pixels: small images are enlarged by a whole factor."""


def draw(
    samples: torch.Tensor, path: Path, *, data: torch.Tensor | None = None, range: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Write a PNG of samples (n, *shape), and return its pixels (height, width, 3).

    Images of 1 or 3 channels (or of 2 and 4, whose first is shown): `grid`. Points in the plane: a scatter, the first of
    `data` as many beside them in grey. Else a histogram of the first coordinate, with the data's.
    range: the values shown black and white, default (-1, 1).
    Raises ImportError, naming the extra, where pillow (images) or matplotlib is not installed.
    """
    if samples.ndim == 4:
        pixels = grid(samples, range=range or (-1.0, 1.0))
        _save(pixels, path)
        return pixels
    return _plot(samples, data, path)


def grid(
    images: torch.Tensor, *, range: tuple[float, float] = (-1.0, 1.0), columns: int | None = None
) -> NDArray[np.uint8]:
    """Images (n, channels, height, width) side by side, row by row, as pixels (., ., 3).

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


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "pictures of images need pillow: pip install 'halfbridge[train]', or sample_every=0"
        ) from error
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    _write(path, file)


def _plot(samples: torch.Tensor, data: torch.Tensor | None, path: Path) -> NDArray[np.uint8]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures of points need matplotlib: pip install 'halfbridge[train]', or sample_every=0"
        ) from error
    clouds = [(samples, SAMPLES, f"{len(samples)} samples")]
    if data is not None:
        clouds.insert(0, (data[: len(samples)], DATA, "data"))
    figure = Figure(
        figsize=(6.4, 6.4 if samples[0].shape == (2,) else 4.0), dpi=100, facecolor="white", layout="constrained"
    )
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    points = [(cloud.detach().double().cpu().flatten(1).numpy(), colour, name) for cloud, colour, name in clouds]
    if samples[0].shape == (2,):
        for cloud, colour, name in points:
            size = float(np.clip(4000.0 / len(cloud), 2.0, 30.0))
            axes.scatter(cloud[:, 0], cloud[:, 1], s=size, color=colour, alpha=0.7, linewidths=0, label=name)
        axes.set_aspect("equal", adjustable="datalim")
    else:
        low, high = np.percentile(np.concatenate([cloud[:, 0] for cloud, _, _ in points]), [0.0, 100.0])
        edges = np.linspace(low, high if high > low else low + 1.0, 41).tolist()
        for cloud, colour, name in points:
            axes.hist(cloud[:, 0], edges, density=True, color=colour, alpha=0.6, label=name)
        axes.set_xlabel(f"first of {points[0][0].shape[1]} coordinates", color=INK)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right", markerscale=1.5)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    _write(path, file)
    return pixels


def _write(path: Path, file: io.BytesIO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, file.getvalue())
