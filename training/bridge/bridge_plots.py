"""Pictures of a run: monitors and losses over the half-bridges, and what the chains end in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbridge.training import pictures
from halfbridge.training.bridge.monitors import Monitor
from halfbridge.training.durable import write_file

__all__ = ["check_plots", "plot_monitors", "plot_samples"]

INK, COLOURS = "#1f2328", {"backward": "#0072b2", "forward": "#d55e00"}
SHOWN = 1000  # points of a picture of samples; of images, 64


def check_plots() -> None:
    """ImportError, naming the extra, unless what draws is installed."""
    try:
        import matplotlib
        import PIL
    except ImportError as error:
        raise ImportError(
            "plots = True needs matplotlib and pillow: pip install 'halfbridge[train]', or pass plots=False"
        ) from error
    del matplotlib, PIL


def plot_samples(samples: Tensor, law: Tensor, path: Path) -> None:
    """The far ends of chains beside the law that they are to end in."""
    n = 64 if samples.ndim == 4 else SHOWN
    low, high = (end.item() for end in law.aminmax())
    pictures.draw(samples[:n], path, data=law[:n], range=(low, high) if low < high else (low - 1.0, high + 1.0))


def plot_monitors(rows: list[Monitor], losses: list[Tensor], path: Path, floors: dict[str, float]) -> None:
    """Four panels: both marginal errors with their floors, KL between iterates, path energy, and the losses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 7.2), dpi=100, facecolor="white", layout="constrained")
    canvas, ((errors, kl), (energy, loss)) = FigureCanvasAgg(figure), figure.subplots(2, 2)
    sliced = all(row.start_sliced_w2 == row.start_sliced_w2 for row in rows)
    name = "sliced_w2" if sliced else "energy_distance"
    for way, end in (("backward", "start"), ("forward", "end")):
        mine = [row for row in rows if row.direction == way]
        at = [row.iterate for row in mine]
        column = f"{end}_{name}"
        errors.plot(
            at, [getattr(row, column) for row in mine], "o-", color=COLOURS[way], label=f"at the {end}, {way} chain"
        )
        errors.axhline(floors[column], color=COLOURS[way], linestyle=":", linewidth=1)
        for axes, value, error in ((kl, "kl", "kl_error"), (energy, "path_energy", "path_energy_error")):
            y, bars = ([getattr(row, field) for row in mine] for field in (value, error))
            axes.errorbar(at, y, yerr=bars, fmt="o-", color=COLOURS[way], label=way)
    errors.set(title=f"{name.replace('_', ' ')} to the end laws (dotted: of two samples of them)", ylim=(0.0, None))
    kl.set(title="KL to the iterate of the same direction before, nats", yscale="log")
    energy.set(title="path energy", ylim=(0.0, None))
    _losses(loss, rows, losses)
    for axes in (errors, kl, energy):
        axes.set_xlabel("half-bridges done", color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (errors, kl, energy, loss):
        axes.title.set_fontsize(10)
        axes.tick_params(colors=INK, labelsize=9)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
    file = io.BytesIO()
    canvas.print_png(file)  # type: ignore[no-untyped-call]
    write_file(path, file.getvalue())


def _losses(axes: Any, rows: list[Monitor], losses: list[Tensor]) -> None:
    """Means over 1/100 of each half-bridge's steps."""
    named: set[str] = set()
    for place, (row, values) in enumerate(zip(rows, losses, strict=True)):
        if not len(values):
            continue
        parts = torch.tensor_split(values, min(100, len(values)))
        at = [place + (k + 0.5) / len(parts) for k in range(len(parts))]
        label = None if row.direction in named else row.direction
        named.add(row.direction)
        axes.plot(at, [float(part.mean()) for part in parts], color=COLOURS[row.direction], linewidth=1, label=label)
    axes.set_title("loss")
    axes.set_xlabel("half-bridges", color=INK)
