"""`python -m benchmarks.bridge`: diffusion Schrödinger bridges against a plain PyTorch implementation of the same algorithm.

Three tables, each with ours beside the peers, `benchmarks.plain_bridge` with a DataLoader ("loader") and with random rows of the
cache's tensors ("index").

1. Seconds of CPU for an IPF iteration, both half-bridges, of `fit_bridge` and of a peer with the same networks, chain, cache,
   refresh, batch and optimiser: in all, in simulation and in training (which is all the rest), the ratio of paired turns with
   its 20 and 80 % quantiles, and the share of ours that the networks have, forward and backward. A turn is one run of both.
2. Peak resident memory of a fresh process for each, of a run whose cache is `LARGER` times as large, less what it had before.
3. Between Gaussians in d = 5: the error of the coupling's covariance (relative, Frobenius norm) after the same iterations of the
   same algorithm; then the seconds until it is first below an error, for matched kernels (ours) and for the peer at N = 12, 24
   and 48, whose fixed variances leave an error of O(1/N), with as many rows in the cache. Measuring is not in the seconds.

One thread. The clock is the process's own, so that other processes count for less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import halfbridge as hb
from benchmarks.case import load_backend
from benchmarks.pairs import provenance
from benchmarks.plain_bridge import PlainBridge
from halfbridge.training import Settings, data
from halfbridge.training.bridge import (
    Direction,
    End,
    Examples,
    NetworkRegressor,
    NetworkTransitions,
    Normal,
    ReferenceChain,
    Transitions,
    fit_bridge,
    ipf,
    reference_iterate,
    simulate,
)
from halfbridge.training.bridge.cache import TrajectoryCache

LARGER = 8  # of the cache where memory is measured: so that it is more than what a process needs anyway
WHO = ("ours", "loader", "index")
PROCESS = hb.OU(0.5, 1.0, 1.0)
LOW = 0.05  # the error that is waited for


class Case(NamedTuple):
    """A bridge to be trained, the same for all."""

    name: str
    net: Callable[[], torch.nn.Module]
    start: End
    end: End
    chain: ReferenceChain
    settings: Settings
    paths: int
    refresh: int

    def nets(self) -> list[torch.nn.Module]:
        """Forward and backward, always the same."""
        torch.manual_seed(0)
        return [self.net() for _ in range(2)]


def settings(steps: int, batch: int) -> Settings:
    """Those that the peer has too."""
    return Settings(steps=steps, batch_size=batch, lr=2e-3, warmup=0, schedule="constant", ema_decay=0.99, clip=1.0)


def gaussian(seed: int, spread: float, d: int = 5) -> hb.reference.Gaussian:
    """A random Gaussian with eigenvalues of at least 0.3 spread^2."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mean = 0.5 * torch.randn(d, generator=generator, dtype=torch.float64)
    return hb.reference.Gaussian(mean, spread**2 * (a @ a.mT / d + 0.3 * torch.eye(d)))


LAWS = gaussian(0, 1.0), gaussian(1, 1.2)


def moons(scale: float = 1.0) -> Case:
    """Points in the plane and noise; scale: of the steps of a half-bridge."""
    net, start = partial(hb.nets.MLP, 2, hidden=64, depth=2), Examples(data.load("moons", n=4000).examples)
    return Case(
        "moons, MLP", net, start, Normal((2,)), ReferenceChain(PROCESS, 20),
        settings(max(2, int(320 * scale)), 256), 1024, 80,
    )  # fmt: skip


def gaussians(scale: float = 1.0, steps: int = 12) -> Case:
    """LAWS in `steps` steps, with as many rows in the cache for any number of them."""
    start, end = (Examples(law.sample(100_000, 10 + k).float()) for k, law in enumerate(LAWS))
    net = partial(hb.nets.MLP, 5, hidden=64, depth=1)
    chain, paths = ReferenceChain(PROCESS, steps), 4096 * 12 // steps
    return Case("Gaussians, d = 5", net, start, end, chain, settings(max(2, int(384 * scale)), 512), paths, 96)


def digits(scale: float = 1.0) -> Case:
    """Images of 8 x 8 and noise."""
    net = partial(hb.nets.UNet, (1, 8, 8), width=16, multipliers=(1, 2), blocks=1)
    start = Examples(data.load("digits").examples)
    return Case(
        "8x8 digits, UNet", net, start, Normal((1, 8, 8)), ReferenceChain(PROCESS, 10),
        settings(max(2, int(40 * scale)), 64), 256, 40,
    )  # fmt: skip


CASES = (moons, gaussians, digits)


class Clock:
    """CPU seconds of the process, and of those the part in simulations."""

    def __init__(self) -> None:
        self.simulated = 0.0

    @contextlib.contextmanager
    def simulating(self) -> Iterator[None]:
        start = time.process_time()
        yield
        self.simulated += time.process_time() - start


@contextlib.contextmanager
def timed_caches(clock: Clock) -> Iterator[None]:
    """While inside, what caches simulate is told to the clock."""
    hold = TrajectoryCache.hold

    def timed(self: TrajectoryCache, *arguments: Any) -> None:
        with clock.simulating():
            hold(self, *arguments)

    TrajectoryCache.hold = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrajectoryCache.hold = hold  # type: ignore[method-assign]


def ours(case: Case, iterations: int, clock: Clock) -> Transitions:
    """`fit_bridge`; its monitors have 2 paths, as the peer has none."""
    with timed_caches(clock):
        return fit_bridge(
            *case.nets(), case.start, case.end, case.chain, iterations=iterations, weighting="plain",
            settings=case.settings, cache_paths=case.paths, refresh=case.refresh, monitor_paths=2,
        ).forward  # fmt: skip


def plain(case: Case, loader: str, clock: Clock) -> PlainBridge:
    """The peer, untrained. Its samples of data sets are by torch.randint, of noise by torch.randn."""

    def sampler(law: End) -> Callable[[int], Tensor]:
        if isinstance(law, Examples):
            rows = law.data
            return lambda n: rows[torch.randint(len(rows), (n,))]
        shape = law.sample(1, 0).shape[1:]
        return lambda n: torch.randn(n, *shape)

    forward, backward = case.nets()
    return PlainBridge(
        {"forward": forward, "backward": backward}, sampler(case.start), sampler(case.end), case.chain.gains,
        case.chain.gammas, case.chain.times, case.settings.steps, case.settings.batch_size, case.paths, case.refresh,
        case.settings.lr, case.settings.decays[0], case.settings.clip, loader, clock.simulating,
    )  # fmt: skip


def forward_of(bridge: PlainBridge, chain: ReferenceChain) -> Transitions:
    """The peer's forward kernels, for measuring."""
    return NetworkTransitions(chain, Direction.FORWARD, bridge.averages["forward"], "mean")


def trained(case: Case, who: str, iterations: int, clock: Clock) -> Transitions:
    """The forward kernels after so many iterations."""
    if who == "ours":
        return ours(case, iterations, clock)
    return forward_of(plain(case, who, clock).run(iterations), case.chain)


def seconds(case: Case, who: str, iterations: int) -> tuple[float, float]:
    """CPU seconds of an iteration, and of its simulations."""
    clock, start = Clock(), time.process_time()
    trained(case, who, iterations, clock)
    return (time.process_time() - start) / iterations, clock.simulated / iterations


def times(case: Case, turns: int, iterations: int = 2) -> dict[str, np.ndarray]:
    """Turn by turn, the order rotating, after one turn that is not counted: (turns, 2) for each of WHO."""
    found: dict[str, list[tuple[float, float]]] = {who: [] for who in WHO}
    for turn in range(turns + 1):
        for i in range(len(WHO)):
            who = WHO[(turn + i) % len(WHO)]
            found[who].append(seconds(case, who, iterations))
    return {who: np.array(rows[1:]) for who, rows in found.items()}


def network_seconds(case: Case) -> float:
    """CPU seconds of the networks alone in an iteration of ours, forward and backward, from calls of that batch: what no code
    around them can save."""
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
        start = time.process_time()
        for _ in range(3):
            call()
        took.append((time.process_time() - start) / 3)
    return min(took)


def peak(name: str, who: str, scale: float) -> tuple[float, float]:
    """MiB that a fresh process had before the run, and its peak above that."""
    command = [sys.executable, "-m", "benchmarks.bridge", "--child", name, who, "--scale", str(scale)]
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr}")
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


def child(name: str, who: str, scale: float) -> None:
    """What `peak` runs. The second half-bridge is the first whose teacher is a network."""
    import resource

    case = _case(name)(scale)
    warm = case._replace(settings=case.settings.replace(steps=2), paths=case.settings.batch_size, refresh=2)
    trained(warm, who, 1, Clock())  # what is loaded at first use
    case = case._replace(settings=case.settings.replace(steps=4), paths=LARGER * case.paths, refresh=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained(case, who, 1, Clock())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([before / 1024, (after - before) / 1024]))


def coupling_error(forward: Transitions, n: int = 50_000) -> float:
    """Of the covariance of (x_0, x_N), against the Schrödinger bridge's in closed form; its own noise is about 1/sqrt(n)."""
    x = LAWS[0].sample(n, 99).float()
    z = torch.cat([x, simulate(forward, x, 7)], 1).double()
    star = hb.reference.GaussianBridge(*LAWS, PROCESS).coupling().cov
    return float((torch.cov(z.mT) - star).norm() / star.norm())


def errors_over_time(case: Case, who: str, iterations: int) -> list[tuple[float, float]]:
    """(CPU seconds so far, error) after each iteration; ours with matched kernels."""
    found, spent = [], 0.0
    torch.manual_seed(1)
    regressor = NetworkRegressor(
        *case.nets(),
        variance="matched",
        form="full",
        settings=case.settings,
        cache_paths=case.paths,
        refresh=case.refresh,
    )
    iterates = ipf(reference_iterate(case.start, case.end, case.chain), regressor, 2 * iterations)
    bridge = plain(case, who if who != "ours" else "index", Clock())
    for _ in range(iterations):
        start = time.process_time()
        if who == "ours":
            next(iterates)
            forward = next(iterates).forward
        else:
            forward = forward_of(bridge.run(1), case.chain)
        spent += time.process_time() - start
        found.append((spent, coupling_error(forward)))
    return found


def _case(name: str) -> Callable[..., Case]:
    return next(make for make in CASES if make.__name__ == name)


def show_times(turns: int, scale: float) -> None:
    print(
        f"\n{'case':18s} peer    ours s  (simulation, training)  peer s  (simulation, training)  ours/peer [20 %, 80 %]  networks"
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
                f"  {share / other[0]:9.2f}"
            )


def show_memory(scale: float) -> None:
    print(f"\n{'case':18s} before MiB   ours above   loader above   ours/loader (the cache {LARGER} times as large)")
    for make in CASES:
        mine, other = (peak(make.__name__, who, scale) for who in WHO[:2])
        print(f"{make().name:18s}{mine[0]:11.0f}{mine[1]:13.1f}{other[1]:15.1f}{mine[1] / max(other[1], 0.1):14.2f}")


def show_errors(scale: float, iterations: int) -> None:
    print(f"\nerror of the coupling, the same algorithm ({iterations} iterations, N = 12):", end=" ")
    case = gaussians(scale)
    print(", ".join(f"{who} {100 * coupling_error(trained(case, who, iterations, Clock())):.1f} %" for who in WHO))
    print("who                       lowest error  after s   s until 5 %  s until the peer's lowest at N = 12")
    runs: Mapping[str, list[tuple[float, float]]] = {
        "ours, matched, N = 12": errors_over_time(gaussians(scale), "ours", iterations),
        **{f"index, N = {n}": errors_over_time(gaussians(scale, n), "index", iterations) for n in (12, 24, 48)},
    }
    reached = min(error for _, error in runs["index, N = 12"])
    for name, run in runs.items():
        after, low = min(run, key=lambda point: point[1])
        print(f"{name:25s} {100 * low:10.2f} % {after:8.1f} {_until(run, LOW):>13s} {_until(run, reached):>15s}")


def _until(run: list[tuple[float, float]], error: float) -> str:
    return next((f"{spent:.1f}" for spent, found in run if found <= error), "never")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of the optimiser's steps of a half-bridge")
    parser.add_argument("--iterations", type=int, default=6, help="of IPF, where the error is measured")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "WHO"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_backend("cpu")
    if chosen.child:
        child(*chosen.child, chosen.scale)
        return
    print(provenance())
    show_times(chosen.turns, chosen.scale)
    show_memory(chosen.scale)
    show_errors(chosen.scale, chosen.iterations)


if __name__ == "__main__":
    main()
