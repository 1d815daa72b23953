"""Two functions timed turn by turn, so that whatever else the machine does weighs on both, and where that was."""

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch


class Pair(NamedTuple):
    """Milliseconds of ours and of the peer, and the ratio of each turn: quantiles 0.2, 0.5, 0.8."""

    ours: tuple[float, float, float]
    peer: tuple[float, float, float]
    ratio: tuple[float, float, float]

    def row(self) -> str:
        low, middle, high = self.ratio
        return f"{self.ours[1]:10.3f} {self.peer[1]:10.3f} {middle:8.2f}  [{low:.2f}, {high:.2f}]"


def interleaved(ours: Callable[[], Any], peer: Callable[[], Any], turns: int, calls: int = 1) -> Pair:
    """`turns` turns of `calls` calls each, the first of every pair alternating, after one turn that is not counted."""
    times = np.empty((turns + 1, 2))
    for i in range(turns + 1):
        for k in ((0, 1), (1, 0))[i % 2]:
            function = (ours, peer)[k]
            start = time.perf_counter()
            for _ in range(calls):
                function()
            times[i, k] = (time.perf_counter() - start) * 1e3 / calls
    times = times[1:]
    ratios = times[:, 0] / times[:, 1]
    quantiles = [np.quantile(column, (0.2, 0.5, 0.8)) for column in (times[:, 0], times[:, 1], ratios)]
    return Pair(*((float(a), float(b), float(c)) for a, b, c in quantiles))


def provenance() -> str:
    """Versions, processor, GPU's driver and the commit of this file, on one line; "-dirty": with changes since."""
    found = []
    for package in ("torch", "triton", "numba", "numpy"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    if torch.cuda.is_available():
        runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
        found.append(f"{runtime}, driver {driver or 'unknown'}")
    commit = said("git", "describe", "--always", "--dirty", "--exclude=*") or "none"
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{', '.join(found)}, python {sys.version.split()[0]}, {processor}, commit {commit}"


def said(*command: str) -> str:
    """What a command prints in this file's folder; nothing where it fails or is not installed."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
