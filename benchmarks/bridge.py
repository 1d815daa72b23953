"""`python -m benchmarks.bridge`: diffusion Schrödinger bridges against a plain PyTorch implementation of the same algorithm.

Three tables, each with ours beside the peers, `benchmarks.plain_bridge` with a DataLoader ("loader") and with random rows of the
cache's tensors ("index"); mean matching with fixed variances, the published algorithm, for all.

1. Seconds for an IPF iteration, both half-bridges, of `fit_bridge` and of a peer with the same networks, chain, cache, refresh,
   batch and optimiser: in all, in simulation and in training (which is all the rest), the ratio of paired turns with its 20 and
   80 % quantiles, and how much the peer's calls of the networks, forward and backward, are of ours in all: near 1 there is
   nothing around them left to save. A turn is one run of each.
2. Peak resident memory of a fresh process for each, of a run whose cache is `LARGER` times as large, less what it had before.
3. At equal error, where the algorithms are not the same: `benchmarks.bridge_errors`.

All of it takes some six minutes on a quiet machine. With one thread, the default, the clock is the process's own, so that other
processes count for less; with more it is the wall's, and wants a machine of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.bridge_cases import CASES, WHO, Case, Clock, now, trained
from benchmarks.bridge_errors import show_errors
from benchmarks.case import load_backend
from benchmarks.pairs import provenance

LARGER = 8  # of the cache where memory is measured: so that it is more than what a process needs anyway


def seconds(case: Case, who: str, iterations: int) -> tuple[float, float]:
    """Seconds of an iteration, and of its simulations."""
    clock, start = Clock(), now()
    trained(case, who, iterations, clock)
    return (now() - start) / iterations, clock.simulated / iterations


def times(case: Case, turns: int, iterations: int = 2) -> dict[str, np.ndarray]:
    """Turn by turn, the order rotating, after one turn that is not counted: (turns, 2) for each of WHO."""
    found: dict[str, list[tuple[float, float]]] = {who: [] for who in WHO}
    for turn in range(turns + 1):
        for i in range(len(WHO)):
            who = WHO[(turn + i) % len(WHO)]
            found[who].append(seconds(case, who, iterations))
    return {who: np.array(rows[1:]) for who, rows in found.items()}


def network_seconds(case: Case) -> float:
    """Seconds of the networks alone in an iteration, forward and backward, called as the peer calls them: a label for each row,
    batches of the training's size. Ours embeds a label once and simulates in larger batches, and so may need less."""
    net, x = case.nets()[0], case.start.sample(case.settings.batch_size, 0)
    t = torch.full((len(x),), 0.3)
    evaluations = case.chain.steps * case.paths * 2 * math.ceil(case.settings.steps / case.refresh) / len(x)

    def both() -> None:
        net(x, t).square().mean().backward()

    @torch.no_grad()
    def forth() -> None:
        net(x, t)

    return 2 * case.settings.steps * _lowest(both) + 2 * evaluations * _lowest(forth)


def _lowest(call: Callable[[], None]) -> float:
    call()
    took = []
    for _ in range(10):
        start = now()
        for _ in range(3):
            call()
        took.append((now() - start) / 3)
    return min(took)


def peak(name: str, who: str, scale: float) -> tuple[float, float]:
    """MiB that a fresh process had before the run, and its peak above that."""
    command = [sys.executable, "-m", "benchmarks.bridge", "--child", name, who, "--scale", str(scale),
               "--threads", str(torch.get_num_threads())]  # fmt: skip
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


def child(name: str, who: str, scale: float) -> None:
    """What `peak` runs. The second half-bridge is the first whose teacher is a network."""
    case = _case(name)(scale)
    warm = case._replace(settings=case.settings.replace(steps=2), paths=case.settings.batch_size, refresh=2)
    trained(warm, who, 1, Clock())  # what is loaded at first use
    case = case._replace(settings=case.settings.replace(steps=4), paths=LARGER * case.paths, refresh=4)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    trained(case, who, 1, Clock())
    print(json.dumps([before, _resident("VmHWM") - before]))


def _resident(name: str) -> float:
    """MiB, now (VmRSS) or at the peak (VmHWM); Linux. The peak of getrusage is that of the process that started this one too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _case(name: str) -> Callable[..., Case]:
    return next(make for make in CASES if make.__name__ == name)


def show_times(turns: int, scale: float) -> None:
    print(
        f"\n{'case':18s} peer    ours s  (simulation, training)  peer s  (simulation, training)  ours/peer [20 %, 80 %]"
        "  networks/ours"
    )
    for make in CASES:
        case = make(scale)
        found, share = times(case, turns), network_seconds(case)
        mine = np.median(found["ours"], 0)
        for who in WHO[1:]:
            other, ratio = (
                np.median(found[who], 0),
                np.quantile(found["ours"][:, 0] / found[who][:, 0], (0.2, 0.5, 0.8)),
            )
            print(
                f"{case.name:18s} {who:7s}{mine[0]:7.3f}  ({mine[1]:9.3f}, {mine[0] - mine[1]:8.3f})  {other[0]:7.3f}  "
                f"({other[1]:9.3f}, {other[0] - other[1]:8.3f})  {ratio[1]:9.2f} [{ratio[0]:.2f}, {ratio[2]:.2f}]"
                f"  {share / mine[0]:9.2f}"
            )


def show_memory(scale: float) -> None:
    print(
        f"\n{'case':18s} before MiB   ours above   loader above   index above   ours/loader   ours/index "
        f"(the cache {LARGER} times as large)"
    )
    for make in CASES:
        found = [peak(make.__name__, who, scale) for who in WHO]
        mine, *others = (above for _, above in found)
        ratios = "".join(f"{mine / max(other, 0.1):13.2f}" for other in others)
        print(f"{make().name:18s}{found[0][0]:11.0f}{mine:13.1f}{others[0]:15.1f}{others[1]:14.1f}{ratios}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the optimiser's steps of a half-bridge")
    parser.add_argument("--iterations", type=int, default=5, help="of IPF, where the error is measured")
    parser.add_argument("--seeds", type=int, default=2, help="of training, where the error is measured")
    parser.add_argument("--threads", type=int, default=1, help="of torch; with more than one the clock is the wall's")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "WHO"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    load_backend("cpu")
    if chosen.child:
        child(*chosen.child, chosen.scale)
        return
    clock = "CPU seconds" if chosen.threads == 1 else "seconds of the wall"
    print(f"{provenance()}\n{chosen.threads} thread{'s' * (chosen.threads > 1)}, {clock}")
    show_times(chosen.turns, chosen.scale)
    show_memory(chosen.scale)
    show_errors(chosen.scale, chosen.iterations, chosen.seeds)


if __name__ == "__main__":
    main()
