"""`python -m benchmarks.kernels` (or `halfbridge bench kernels`): every kernel against eager torch and the memory floor.

On a CPU: the path that runs there against the plain torch expression, turn by turn. On a GPU: the Triton kernel, also as a
CUDA graph, against eager torch and torch.compile: the device's time with cold caches, and the host's of calls in a row, where
launches cost. The floor is the time a triad takes to move the bytes that the kernel must move, at the bandwidth measured in the
same run. A kernel whose result is off stops the run.

Rows go to kernels.csv in the output folder as they are made, and a plot of them beside it.
"""

import argparse
import csv
import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import gpu_timing
from benchmarks.case import KERNELS, Case, load_backend, timed
from benchmarks.pairs import provenance
from benchmarks.triad import measure


@dataclass(frozen=True)
class Row:
    """One form of one case: microseconds (median, 20 and 80 % quantiles), and how they compare."""

    kernel: str
    case: str
    form: str  # ours, eager; on a GPU also graph (ours, captured) and compile (torch.compile of the eager expression)
    backend: str  # that ran: the reference for a kernel that no other has for that device
    device: str
    microseconds: float  # on a GPU its own time, with cold caches
    q20: float
    q80: float
    gigabytes_per_second: float
    of_eager: float  # time over eager's: on a CPU the median of paired turns
    of_floor: float  # time over that of moving the bytes at the measured bandwidth
    in_a_row: float  # microseconds of a call by the host's clock, launches included; on a CPU the same again
    in_a_row_of_eager: float
    error: float
    error_unit: str
    versions: str


def rows(device: str, only: tuple[str, ...] = KERNELS) -> Iterator[Row]:
    """The rows of those kernels, one after another."""
    where, versions = name_of(device), provenance()
    load_backend(device)
    speed = gpu_timing.bandwidth() if device == "cuda" else cpu_bandwidth()
    for kernel in only:
        for case in importlib.import_module(f"benchmarks.{kernel}").cases(device):
            backend = case.backend(device)
            for form, (low, middle, high), ratio, *row in (on_gpu if device == "cuda" else on_cpu)(case):
                yield Row(
                    kernel, case.label, form, backend if form in ("ours", "graph") else "torch", where,
                    middle, low, high, case.bytes / middle / 1e3, ratio, middle * 1e-6 * speed / max(case.bytes, 1),
                    *row, case.error, case.unit, versions,
                )  # fmt: skip


class Timed(NamedTuple):
    """Microseconds of one form, quantiles 0.2, 0.5, 0.8; over eager's; a call of many in a row; over eager's."""

    form: str
    times: tuple[float, float, float]
    of_eager: float
    in_a_row: float
    in_a_row_of_eager: float


def cpu_bandwidth() -> float:
    """Bytes per second of the triad from main memory, on torch's threads."""
    return measure(10_000_000, torch.float32, torch.get_num_threads()).gigabytes_per_second * 1e9


def on_cpu(case: Case) -> Iterator[Timed]:
    pair = timed(case)
    for form, milliseconds, ratio in (("ours", pair.ours, pair.ratio[1]), ("eager", pair.peer, 1.0)):
        low, middle, high = (1e3 * t for t in milliseconds)
        yield Timed(form, (low, middle, high), ratio, middle, ratio)


def on_gpu(case: Case) -> Iterator[Timed]:
    forms: dict[str, Callable[[], Any] | None] = {
        "eager": case.peer,
        "ours": case.ours,
        "graph": gpu_timing.as_graph(case.ours),
        "compile": gpu_timing.compiled(case.peer),
    }
    eager = eager_in_a_row = 0.0
    for form, call in forms.items():
        if call is None:
            continue
        low, middle, high = (float(q) for q in np.quantile(gpu_timing.microseconds(call), (0.2, 0.5, 0.8)))
        in_a_row = float(np.median(gpu_timing.in_a_row(call)))
        if form == "eager":
            eager, eager_in_a_row = middle, in_a_row
        yield Timed(form, (low, middle, high), middle / eager, in_a_row, in_a_row / eager_in_a_row)


def name_of(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def plot(found: list[Row], file: Path) -> None:
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
    figure.savefig(file, dpi=130)


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
        f"{'kernel':17s}{'case':34s}{'form':8s}{'us':>11s}  [20 %, 80 %]{'':9s}{'GB/s':>8s}{'/eager':>8s}{'/floor':>8s}"
        f"{'in a row':>11s}{'/eager':>8s}  {'backend':10s} error"
    )
    found = []
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "kernels.csv").open(
        "w", newline="", buffering=1
    ) as file:  # each line is written when it is there
        table = csv.DictWriter(file, [f.name for f in fields(Row)])
        table.writeheader()
        for row in rows(options.device, tuple(options.kernels) or KERNELS):
            found.append(row)
            table.writerow(asdict(row))
            spread = f"[{row.q20:.1f}, {row.q80:.1f}]"
            print(
                f"{row.kernel:17s}{row.case:34s}{row.form:8s}{row.microseconds:11.1f}  {spread:21s}"
                f"{row.gigabytes_per_second:8.1f}{row.of_eager:8.2f}{row.of_floor:8.2f}"
                f"{row.in_a_row:11.1f}{row.in_a_row_of_eager:8.2f}  {row.backend:10s} {row.error:.2g} {row.error_unit}"
            )
    plot(found, options.out / "kernels.png")
    print(f"{options.out / 'kernels.csv'}, {options.out / 'kernels.png'}")


if __name__ == "__main__":
    main()
