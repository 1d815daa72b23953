"""Every number of the experiment."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """The same for all bridges, but where `few` says otherwise."""

    points: int = 20_000
    """Of a training set."""
    hidden: int = 128
    depth: int = 2
    """Of the networks, `nets.MLP`."""
    noise: float = 0.5
    """The variance of the reference process at T: dX = sqrt(noise) dW, T = 1. Small, so that p_T is not the prior."""
    steps: int = 20
    """N."""
    iterations: int = 5
    """Of IPF, two half-bridges each."""
    half_bridge: int = 1000
    """Steps of training of a half-bridge."""
    batch_size: int = 256
    lr: float = 2e-3
    ema_decay: float = 0.99
    cache_paths: int = 2048
    coupling_size: int = 256
    """Pairs of a minibatch of optimal transport, which DSBM begins from."""
    monitor_paths: int = 2000
    few: tuple[int, ...] = (5, 10, 20)
    """N of the comparison with score-based models."""
    samples: int = 2000
    seeds: int = 5
    """Samples that a row of the comparison is the mean over, of `samples` points each."""
    projections: int = 200
    pairs: int = 4000
    """Of a learned coupling."""
    static_points: int = 700
    static_samples: int = 6
    """Sets of points that the static bridge is computed between, and how many of them."""
    shown: int = 2500
    """Points in a picture."""
    lines: int = 90
    """Trajectories in a picture."""

    @property
    def training(self) -> int:
        """Steps of training in all, of both networks of a bridge together."""
        return 2 * self.iterations * self.half_bridge


FULL = Settings()
QUICK = Settings(points=1000, hidden=16, depth=1, steps=6, iterations=2, half_bridge=30, batch_size=64, lr=1e-2, ema_decay=0.8,
                 cache_paths=128, coupling_size=64, monitor_paths=200, few=(3, 6), samples=200, seeds=2, projections=20,
                 pairs=300, static_points=60, static_samples=2, shown=300, lines=20)  # fmt: skip
