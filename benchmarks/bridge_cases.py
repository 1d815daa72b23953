"""What `benchmarks.bridge` trains: three bridges, each by this library and by `benchmarks.plain_bridge`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import halfbridge as hb
from benchmarks.plain_bridge import PlainBridge
from halfbridge.training import Settings, data
from halfbridge.training.bridge import (
    Direction,
    End,
    Examples,
    NetworkTransitions,
    Normal,
    ReferenceChain,
    Transitions,
    fit_bridge,
)
from halfbridge.training.bridge.cache import TrajectoryCache

WHO = ("ours", "loader", "index")
PROCESS = hb.OU(0.5, 1.0, 1.0)


def now() -> float:
    """Seconds: of the process's CPU where torch has one thread, so that other processes count for less; else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


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
        """Forward and backward, always the same for a seed of the settings; torch's random numbers follow it too."""
        torch.manual_seed(self.settings.seed)
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
        settings(max(2, int(160 * scale)), 256), 1024, 80,
    )  # fmt: skip


def gaussians(scale: float = 1.0, steps: int = 12, examples: int = 100_000) -> Case:
    """LAWS in `steps` steps, with as many rows in the cache for any number of them."""
    start, end = (Examples(law.sample(examples, 10 + k).float()) for k, law in enumerate(LAWS))
    net = partial(hb.nets.MLP, 5, hidden=64, depth=1)
    chain, paths = ReferenceChain(PROCESS, steps), 4096 * 12 // steps
    return Case("Gaussians, d = 5", net, start, end, chain, settings(max(2, int(192 * scale)), 512), paths, 96)


def digits(scale: float = 1.0) -> Case:
    """Images of 8 x 8 and noise."""
    net = partial(hb.nets.UNet, (1, 8, 8), width=16, multipliers=(1, 2), blocks=1)
    start = Examples(data.load("digits").examples)
    return Case(
        "8x8 digits, UNet", net, start, Normal((1, 8, 8)), ReferenceChain(PROCESS, 10),
        settings(max(2, int(20 * scale)), 64), 256, 20,
    )  # fmt: skip


CASES = (moons, gaussians, digits)


class Clock:
    """The seconds in simulations."""

    def __init__(self) -> None:
        self.simulated = 0.0

    @contextlib.contextmanager
    def simulating(self) -> Iterator[None]:
        start = now()
        yield
        self.simulated += now() - start


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
