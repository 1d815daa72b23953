"""`python -m benchmarks.brownian`: the noise of a run from a BrownianPath, against plain normals and torchsde's Brownians.

One thread, float32, the 50 steps of half_log_snr on VP from T down. "normal" is hb.kernels.normal, a call a step; "interval"
torchsde.BrownianInterval, whose path depends on what is asked; "tree" torchsde.BrownianTree(tol=1e-6), which is one path on
any grid and what k-diffusion's sampler uses. torchsde's are made anew for each turn, as a run would. Rows: milliseconds a step
of ours and of the peer (medians), ours over the peer's with the 20 and 80 % quantiles of paired turns, and the largest error
of 50 steps' sum against the increment over all of them. A path whose steps do not add up is not timed.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torchsde

import halfbridge as hb
from benchmarks.case import refuse_above
from benchmarks.pairs import Pair, interleaved, provenance
from halfbridge.solvers.brownian import BrownianPath
from halfbridge.solvers.engines import TorchsdeNoise

STEPS = 50
SHAPES = ((4, 2), (64, 64), (64, 3072), (4, 3, 256, 256))
ALLOWED = 1e-5


def peers(like: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """What makes a noise object for one run, by name."""
    return {
        "normal": lambda: lambda draw, t, s, like: hb.kernels.normal(like.shape, 3, draw),
        "interval": lambda: TorchsdeNoise(torchsde.BrownianInterval(0.0, 1.0, size=like.shape, entropy=3)),
        "tree": lambda: TorchsdeNoise(torchsde.BrownianTree(0.0, torch.zeros_like(like), 1.0, entropy=3, tol=1e-6)),
    }


def run(make: Callable[[], Any], grid: list[float], like: torch.Tensor) -> None:
    noise = make()
    for k, (t, s) in enumerate(itertools.pairwise(grid)):
        noise(k + 1, t, s, like)


def error(grid: list[float], like: torch.Tensor) -> float:
    path = BrownianPath(3)
    total = sum(path.increment(t, s, like) for t, s in itertools.pairwise(grid))
    return float((total - BrownianPath(3).increment(grid[0], grid[-1], like)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(provenance())
    print(f"{'shape':18s}{'peer':10s}   ours ms    peer ms    ratio  [20 %, 80 %]   error")
    grid = hb.grids.half_log_snr(hb.VP(), STEPS).tolist()
    with hb.kernels.use(hb.kernels.backend()):  # numba from the first call on, where it is installed
        for shape in SHAPES:
            like = torch.empty(shape)
            gap = error(grid, like)
            refuse_above(ALLOWED, gap, f"the sum of {STEPS} increments at {shape}")
            for name, make in peers(like).items():
                turns = max(3, arguments.turns if like.numel() < 1 << 16 else arguments.turns // 2)
                pair = interleaved(
                    lambda x=like: run(lambda: BrownianPath(3), grid, x),  # type: ignore[misc]
                    lambda m=make, x=like: run(m, grid, x),  # type: ignore[misc]
                    turns,
                )
                ours, peer = (tuple(ms / STEPS for ms in side) for side in (pair.ours, pair.peer))
                print(f"{shape!s:18s}{name:10s}{Pair(ours, peer, pair.ratio).row()}   {gap:.1e}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
