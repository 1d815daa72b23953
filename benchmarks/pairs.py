"""Two functions timed turn by turn, so that whatever else the machine does weighs on both, and where that was."""

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
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
    """Versions, processor and commit, on one line."""
    found = []
    for package in ("torch", "numba", "numpy"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip() or "none"
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{', '.join(found)}, python {sys.version.split()[0]}, {processor}, commit {commit}"
