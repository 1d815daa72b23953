"""Every number of the experiments."""

from __future__ import annotations

import dataclasses

__all__ = ["FULL", "QUICK", "Settings"]


@dataclasses.dataclass(frozen=True)
class Training:
    """A bridge by networks: `iterations` of two half-bridges of `steps`."""

    chain: int
    """Steps of the chain."""
    iterations: int
    steps: int
    batch_size: int
    lr: float
    schedule: str
    ema_decay: float
    cache_paths: int
    hidden: int
    examples: int
    """Samples of each end law to train on."""
    covariance_paths: int = 16384
    monitor_paths: int = 256
    depth: int = 1

    @property
    def paths(self) -> int:
        """Trajectories that a half-bridge sees, each once."""
        return self.steps * self.batch_size // self.chain


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of gaussian_bridge.py."""

    networks: Training
    mixtures: Training
    dim: int = 5
    seeds: int = 3
    """Bridges trained between Gaussians."""
    pairs: int = 500_000
    """That a trained bridge's coupling is measured on, each way."""
    exact_dims: tuple[int, ...] = (1, 5, 20, 50)
    exact_chain: int = 6
    exact_iterations: int = 4
    drift_chains: tuple[int, ...] = (10, 20, 40, 80)
    drift_iterations: int = 20
    ou_chain: int = 40
    ou_paths: int = 2000
    mixture_pairs: int = 400_000


FULL = Settings(
    networks=Training(
        chain=4, iterations=9, steps=1000, batch_size=2048, lr=2e-3, schedule="constant", ema_decay=0.999, cache_paths=8192,
        hidden=32, examples=1_000_000, covariance_paths=65536,
    ),
    mixtures=Training(
        chain=10, iterations=3, steps=800, batch_size=1024, lr=4e-3, schedule="cosine", ema_decay=0.99, cache_paths=8192,
        hidden=32, examples=200_000,
    ),
)  # fmt: skip
QUICK = Settings(
    networks=Training(
        chain=4, iterations=2, steps=20, batch_size=128, lr=3e-3, schedule="cosine", ema_decay=0.9, cache_paths=256, hidden=8,
        examples=2000, covariance_paths=512, monitor_paths=64,
    ),
    mixtures=Training(
        chain=4, iterations=2, steps=20, batch_size=128, lr=3e-3, schedule="cosine", ema_decay=0.9, cache_paths=256, hidden=8,
        examples=2000, monitor_paths=64,
    ),
    dim=2, seeds=1, pairs=2000, exact_dims=(1, 2), exact_chain=3, exact_iterations=2, drift_chains=(4, 8), drift_iterations=3,
    ou_chain=5, ou_paths=500, mixture_pairs=2000,
)  # fmt: skip
