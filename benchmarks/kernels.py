"""`python -m benchmarks.kernels` (or `halfbridge bench kernels`): every kernel against eager torch and the memory floor.

On a CPU: the path that runs there against the plain torch expression, turn by turn. On a GPU: the Triton kernel, also as a
CUDA graph, against eager torch and torch.compile, all with cold caches. The floor is the time a triad takes to move the bytes
that the kernel must move, at the bandwidth measured in the same run. A kernel whose result is off stops the run.

Rows go to kernels.csv in the output folder, and a plot of them beside it.
"""

import argparse
import csv
import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_timing
from benchmarks.case import KERNELS, Case, timed
from benchmarks.pairs import provenance
from benchmarks.triad import measure
from halfbridge.kernels import backend


@dataclass(frozen=True)
class Row:
    """One form of one case: microseconds (median, 20 and 80 % quantiles), and how they compare."""

    kernel: str
    case: str
    form: str  # ours, eager; on a GPU also graph (ours, captured) and compile (torch.compile of the eager expression)
    backend: str
    device: str
    microseconds: float
    q20: float
    q80: float
    gigabytes_per_second: float
    of_eager: float  # time over eager's: on a CPU the median of paired turns
    of_floor: float  # time over that of moving the bytes at the measured bandwidth
    error: float
    versions: str


def rows(device: str, only: tuple[str, ...] = KERNELS) -> Iterator[Row]:
    """The rows of those kernels, one after another."""
    where, versions = name_of(device), provenance()
    speed = gpu_timing.bandwidth() if device == "cuda" else cpu_bandwidth()
    for kernel in only:
        for case in importlib.import_module(f"benchmarks.{kernel}").cases(device):
            for form, times, ratio in (on_gpu if device == "cuda" else on_cpu)(case):
                low, middle, high = (float(q) for q in np.quantile(times, (0.2, 0.5, 0.8)))
                yield Row(
                    kernel, case.label, form, backend(device) if form in ("ours", "graph") else "torch", where,
                    middle, low, high, case.bytes / middle / 1e3, ratio, middle * 1e-6 * speed / max(case.bytes, 1),
                    case.error, versions,
                )  # fmt: skip


def cpu_bandwidth() -> float:
    """Bytes per second of the triad from main memory, on torch's threads."""
    return measure(10_000_000, torch.float32, torch.get_num_threads()).gigabytes_per_second * 1e9


def on_cpu(case: Case) -> Iterator[tuple[str, Any, float]]:
    pair = timed(case)
    yield "ours", np.array(pair.ours) * 1e3, pair.ratio[1]
    yield "eager", np.array(pair.peer) * 1e3, 1.0


def on_gpu(case: Case) -> Iterator[tuple[str, Any, float]]:
    eager = gpu_timing.microseconds(case.peer)
    forms: dict[str, Callable[[], Any]] = {
        "ours": case.ours,
        "graph": gpu_timing.as_graph(case.ours),
        "compile": torch.compile(case.peer),
    }
    for form, call in forms.items():
        times = gpu_timing.microseconds(call)
        yield form, times, float(np.median(times) / np.median(eager))
    yield "eager", eager, 1.0


def name_of(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def write(found: list[Row], folder: Path) -> None:
    """kernels.csv and kernels.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "kernels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Row)])
        table.writeheader()
        table.writerows(map(asdict, found))
    from matplotlib.figure import Figure

    shown = [r for r in found if r.form != "eager"]
    figure = Figure(figsize=(9, 1 + 0.22 * len(shown)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = [f"{r.kernel} {r.case}" + ("" if r.form == "ours" else f" ({r.form})") for r in shown]
    for axis, values, title in (
        (axes[0], [r.of_eager for r in shown], "time / eager torch"),
        (axes[1], [r.of_floor for r in shown], "time / moving the bytes"),
    ):
        axis.scatter(values, range(len(shown)), s=12, color="tab:blue")
        axis.axvline(1.0, color="grey", linewidth=0.8)
        axis.set(xscale="log", xlabel=title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(shown)), names, fontsize=6)
    axes[0].invert_yaxis()
    figure.suptitle(shown[0].device if shown else "")
    figure.savefig(folder / "kernels.png", dpi=130)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.kernels", description="Kernels against eager torch and the memory floor."
    )
    parser.add_argument(
        "kernels", nargs="*", default=[], metavar="kernel", help=f"of {', '.join(KERNELS)} (default: all)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for the table and the plot")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.kernels) - set(KERNELS)):
        parser.error(f"there is no kernel {unknown[0]!r}; there are {', '.join(KERNELS)}")
    print(provenance(), name_of(options.device), sep="\n")
    print(
        f"{'kernel':17s}{'case':34s}{'form':8s}{'us':>11s}  [20 %, 80 %]{'':9s}{'GB/s':>8s}{'/eager':>8s}{'/floor':>8s}  error"
    )
    found = []
    for row in rows(options.device, tuple(options.kernels) or KERNELS):
        found.append(row)
        spread = f"[{row.q20:.1f}, {row.q80:.1f}]"
        print(
            f"{row.kernel:17s}{row.case:34s}{row.form:8s}{row.microseconds:11.1f}  {spread:21s}"
            f"{row.gigabytes_per_second:8.1f}{row.of_eager:8.2f}{row.of_floor:8.2f}  {row.error:.2g}"
        )
    write(found, options.out)
    print(f"{options.out / 'kernels.csv'}, {options.out / 'kernels.png'}")


if __name__ == "__main__":
    main()
