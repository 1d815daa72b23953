"""How much the bridges of digits do."""

from __future__ import annotations

import dataclasses
import math

import digits_settings

from halfbridge import training

__all__ = ["FULL", "QUICK", "Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of the three experiments."""

    # A U-Net to and from a Gaussian: on a hundred digits, in the same time of training, an MLP fits as well where the noising
    # ends, but makes no digits from the Gaussian, which is somewhere else.
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2)
    batch_size: int = 64
    lr: float = 3e-3
    warmup: int = 20
    # of the averaged copy, which samples and teaches: the half-bridges are short, and 0.999 would remember their beginning
    ema_decay: float = 0.98
    cache_paths: int = 512
    refresh: int = 160  # steps: in ten steps of a chain each row of a cache is seen twice
    monitor_paths: int = 256

    per_class: int = 10
    iterations: int = 5
    chain: int = 10
    step_noise: float = 0.05  # read as gamma, the variance of a step being 2 gamma, and as the deviation of a step
    hundred_steps: int = 150  # of each half-bridge

    source: int = 3
    target: int = 8
    pair_chain: int = 12
    pair_noise: float = 0.25  # the variance that the reference adds from end to end
    pair_ratio: float = 4.0  # of the longest step size, in the middle, to the shortest, at the ends
    pair_iterations: int = 5
    pair_steps: int = 400
    pair_hidden: int = 256  # an MLP is good enough between digits, and takes a quarter of the time
    pair_depth: int = 2
    pair_batch: int = 128
    pair_lr: float = 2e-3
    pair_decay: float = 0.99
    pair_cache: int = 1024

    budgets: tuple[int, ...] = (5, 10, 20)
    few_noise: float = 1.0
    few_ratio: float = 10.0  # of the last step size to the first, which is at the data
    few_iterations: int = 2
    few_steps: int = 400  # of each half-bridge; a score-based model has those of all half-bridges together

    holdout: float = 1 / 3
    copies: int = 4  # dequantisations of each digit trained on
    seeds: int = 4  # of sampling
    samples: int = 500  # of each seed
    splits: int = 20
    projections: int = 200

    @property
    def wide(self) -> float:
        """The deviation of a step whose gamma is `step_noise`."""
        return math.sqrt(2.0 * self.step_noise)

    @property
    def narrow(self) -> float:
        """The deviation of a step that is `step_noise`."""
        return self.step_noise

    def training(self, steps: int, seed: int) -> training.Settings:
        """Of a half-bridge to or from a Gaussian."""
        return training.Settings(
            steps=steps, batch_size=self.batch_size, lr=self.lr, warmup=self.warmup, schedule="cosine", ema_decay=self.ema_decay,
            seed=seed,
        )  # fmt: skip

    def pair_training(self, seed: int) -> training.Settings:
        """Of a half-bridge from digits to digits."""
        return self.training(self.pair_steps, seed).replace(
            batch_size=self.pair_batch, lr=self.pair_lr, ema_decay=self.pair_decay
        )

    @property
    def digits(self) -> digits_settings.Settings:
        """What the example of scores is told, for the same split of the digits and the same judges."""
        return dataclasses.replace(
            digits_settings.FULL, holdout=self.holdout, copies=self.copies, samples=self.samples, splits=self.splits,
            projections=self.projections,
        )  # fmt: skip


FULL = Settings()
QUICK = dataclasses.replace(
    FULL, width=4, multipliers=(1,), batch_size=16, warmup=2, cache_paths=16, refresh=4, monitor_paths=40, iterations=2,
    hundred_steps=6, pair_hidden=16, pair_depth=1, pair_batch=32, pair_cache=16, pair_chain=4, pair_iterations=2, pair_steps=6,
    budgets=(3, 5), few_steps=5, copies=1, seeds=2, samples=60, splits=3, projections=20,
)  # fmt: skip
