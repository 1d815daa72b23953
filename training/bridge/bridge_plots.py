"""Pictures of a run: monitors and losses over the half-bridges, and what the chains end in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbridge.training import pictures
from halfbridge.training.bridge.monitors import DISTANCES, Monitor
from halfbridge.training.durable import write_file

__all__ = ["check_plots", "plot_monitors", "plot_samples"]

INK, COLOURS = "#1f2328", {"backward": "#0072b2", "forward": "#d55e00"}
WIDE = 10.0  # path energies further apart than this are drawn on a log axis
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
    """Five panels: both marginal errors in both distances with their floors, KL between iterates, path energy, and the losses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 7.2), dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels: dict[str, Any] = figure.subplot_mosaic(
        [["energy_distance", "sliced_w2", "kl"], ["path_energy", "loss", "loss"]]
    )
    for way, end in (("backward", "start"), ("forward", "end")):
        mine = [row for row in rows if row.direction == way]
        at, colour = [row.iterate for row in mine], COLOURS[way]
        for name in DISTANCES:
            values = [getattr(row, f"{end}_{name}") for row in mine]
            panels[name].plot(at, values, "o-", color=colour, label=f"at the {end}, {way} chain")
            panels[name].axhline(floors[f"{end}_{name}"], color=colour, linestyle=":", linewidth=1)
        for name in ("kl", "path_energy"):
            y, bars = ([getattr(row, field) for row in mine] for field in (name, f"{name}_error"))
            panels[name].errorbar(at, y, yerr=bars, fmt="o-", color=colour, label=way)
    for name, title in zip(DISTANCES, ("energy distance", "sliced W2"), strict=True):
        # that of two samples of one law may be below 0
        panels[name].set_title(f"{title} to the end laws (dotted: two samples of them)")
        panels[name].set_ylim(bottom=min(0.0, panels[name].get_ylim()[0]))
    panels["kl"].set(title="KL to the iterate two before, nats", yscale="log")
    panels["path_energy"].set_title("path energy")
    energies = [row.path_energy for row in rows]
    if min(energies) > 0 and max(energies) > WIDE * min(energies):
        panels["path_energy"].set_yscale("log")
    else:
        panels["path_energy"].set_ylim(bottom=0.0)
    _losses(panels["loss"], rows, losses)
    for name, axes in panels.items():
        if name != "loss":
            axes.set_xlabel("half-bridges done", color=INK)
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.title.set_fontsize(10)
        axes.tick_params(colors=INK, labelsize=9)
        if axes.get_legend_handles_labels()[0]:  # no loss of a half-bridge that was not trained
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
