"""An Ornstein-Uhlenbeck process on its way to N(0, 1), and the bridge that arrives: simulated beside exact."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import halfbridge as hb
from halfbridge.training.bridge import (
    AffineRegressor,
    PathLaw,
    ReferenceChain,
    ReferenceTransitions,
    gaussian_chain,
    ipf,
    reference_iterate,
)

START, REST = hb.reference.Gaussian([2.0], 0.25), hb.reference.Gaussian([0.0], 1.0)
RATE, NOISE, LONG, SHORT = 0.5, 1.0, 10.0, 1.0
"""dX = -X/2 dt + dW, which rests at N(0, 1): left alone for a time LONG, and a bridge over SHORT."""


class Way(NamedTuple):
    """One law of paths: its exact mean and standard deviation, and those of simulated paths, at the chain's times."""

    name: str
    times: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    found_mean: NDArray[np.float64]
    found_std: NDArray[np.float64]
    paths: NDArray[np.float64]
    """Some of them, (N + 1, shown)."""
    count: int
    first_half: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Exact mean and standard deviation of the first half-bridge, SGM, that starts where this way does."""

    @property
    def mean_error(self) -> NDArray[np.float64]:
        """Standard errors of the means, std/sqrt(n)."""
        return self.std / math.sqrt(self.count)

    @property
    def std_error(self) -> NDArray[np.float64]:
        """Standard errors of the standard deviations, std/sqrt(2 n) for normal laws."""
        return self.std / math.sqrt(2 * self.count)

    @property
    def mean_z(self) -> NDArray[np.float64]:
        """Errors of the means in standard errors."""
        return (self.found_mean - self.mean) / self.mean_error

    @property
    def std_z(self) -> NDArray[np.float64]:
        """Errors of the standard deviations in standard errors."""
        return (self.found_std - self.std) / self.std_error


def ways(steps: int, count: int, seed: int, shown: int = 40) -> list[Way]:
    """The process left alone; the bridge from START to N(0, 1); and the bridge run back from N(0, 1)."""
    alone = ReferenceChain(hb.OU(RATE, NOISE, LONG), steps)
    at = np.array(alone.times)
    mean = float(START.mean) * np.exp(-RATE * at)
    std = np.sqrt(1.0 + (float(START.cov) - 1.0) * np.exp(-2 * RATE * at))
    made = [_way("the process", PathLaw(START, ReferenceTransitions(alone)), mean, std, count, seed, shown)]

    process = hb.OU(RATE, NOISE, SHORT)
    bridge = hb.reference.GaussianBridge(START, REST, process)
    chain = ReferenceChain(process, steps)
    rate = float(bridge.correlations[0]) ** 2
    iterates = list(
        ipf(reference_iterate(START, REST, chain), AffineRegressor("matched"), 2 * math.ceil(12 / -math.log10(rate)))
    )
    laws = [bridge.marginal(t) for t in chain.times]
    mean, std = (
        np.array([float(v) for v in values]) for values in zip(*((m.mean, m.cov.sqrt()) for m in laws), strict=True)
    )
    sgm = gaussian_chain(iterates[0].law)
    half = sgm.means[:, 0].numpy(), sgm.covs[:, 0, 0].sqrt().numpy()
    for name, it, first in (("the bridge", iterates[-1], None), ("the bridge's return", iterates[-2], half)):
        made.append(_way(name, it.law, mean, std, count, seed + len(made), shown)._replace(first_half=first))
    return made


def _way(
    name: str, law: PathLaw, mean: NDArray[np.float64], std: NDArray[np.float64], count: int, seed: int, shown: int
) -> Way:
    x = law.sample(count, seed, keep=True)[:, :, 0]
    times = np.array(law.transitions.reference.times)
    found: tuple[torch.Tensor, torch.Tensor] = (x.mean(1), x.std(1))
    return Way(name, times, mean, std, found[0].numpy(), found[1].numpy(), x[:, :shown].numpy(), count)
