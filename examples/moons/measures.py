"""What is known of the half-moons exactly, and how samples and networks are held against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

import halfbridge as hb
from halfbridge.training import data

NOISE = 0.05
"""Standard deviation of the data about its moons, `data.load`'s."""
CENTRES = torch.tensor([[-0.5, -0.25], [0.5, 0.25]], dtype=torch.float64)
"""Of the half circles of radius 1, the upper and the lower."""
STRAY = 4.0 * NOISE
"""A point further than this from both is a stray."""


def law(nodes: int = 96) -> hb.reference.GaussianMixture:
    """The law of the data, its integral over each half circle by Gauss and Legendre's rule: with 96 nodes the log density
    at the data's points is right to 2e-7."""
    place, weight = np.polynomial.legendre.leggauss(nodes)
    angle = torch.from_numpy((1.0 + place) * math.pi / 2.0)
    half = torch.stack([angle.cos(), angle.sin()], dim=1)
    weights = torch.from_numpy(weight / 4.0).repeat(2)
    return hb.reference.GaussianMixture(weights / weights.sum(), torch.cat([half, -half]) + CENTRES.repeat_interleave(nodes, 0),
                                        NOISE**2)  # fmt: skip


def fresh(n: int, seed: int) -> torch.Tensor:
    return data.load("moons", n=n, seed=seed).examples


def distances(x: torch.Tensor) -> torch.Tensor:
    """The distance of each point to the upper and to the lower half circle, (n, 2), float64."""
    out = []
    for centre, side in zip(CENTRES, (1.0, -1.0), strict=True):
        p = side * (x.double() - centre)  # a half circle with its belly up
        to_ends = torch.hypot(p[:, 0].abs() - 1.0, p[:, 1])
        out.append(torch.where(p[:, 1] >= 0.0, (p.norm(dim=1) - 1.0).abs(), to_ends))
    return torch.stack(out, dim=1)


def thickness(solver: hb.Solver, process: hb.Process, grid: Sequence[float]) -> float:
    """The standard deviation of what the solver makes of N(0, NOISE^2), the data across a moon, with the exact score, over
    NOISE."""
    law = hb.reference.law_of(solver, process, grid, hb.reference.Gaussian([0.0], [[NOISE**2]]))
    return math.sqrt(float(law.cov)) / NOISE


class Measured(NamedTuple):
    """A sample against the law and against fresh samples of it."""

    sliced_w2: float
    sliced_w2_sd: float
    """Mean and standard deviation over the fresh samples."""
    energy: float
    energy_sd: float
    upper: float
    upper_se: float
    """The share that is nearer to the upper moon, and its standard error."""
    distance: float
    distance_se: float
    """Mean distance from the nearer moon."""
    strays: float
    """The share further than STRAY from both."""
    log_density: float
    log_density_se: float
    """Mean log density, in nats, under the exact law."""


def measure(x: torch.Tensor, references: Sequence[torch.Tensor], projections: int) -> Measured:
    sliced, energy = _against(x, references, projections)
    return Measured(*_mean_sd(sliced), *_mean_sd(energy), *_alone(x))


def measure_data(references: Sequence[torch.Tensor], projections: int) -> Measured:
    """Fresh data samples: over all pairs of them where two samples are compared, over all of their points elsewhere."""
    pairs = [_against(x, references[i + 1 :], projections) for i, x in enumerate(references)]
    sliced, energy = ([value for pair in pairs for value in pair[k]] for k in (0, 1))
    return Measured(*_mean_sd(sliced), *_mean_sd(energy), *_alone(torch.cat(list(references))))


def _against(x: torch.Tensor, references: Sequence[torch.Tensor], projections: int) -> tuple[list[float], list[float]]:
    return (
        [hb.reference.sliced_w2(x, y, projections=projections) for y in references],
        [hb.reference.energy_distance(x, y) for y in references],
    )


def _alone(x: torch.Tensor) -> tuple[float, ...]:
    distance = distances(x)
    nearest = distance.amin(dim=1)
    upper = (distance[:, 0] < distance[:, 1]).double()
    strays = float((nearest > STRAY).double().mean())
    return *_mean_se(upper), *_mean_se(nearest), strays, *_mean_se(law().log_prob(x.double()))


class ScoreError(NamedTuple):
    """Noise predictions at one time, mean squares per dimension."""

    nu: float
    """sigma/alpha, the noise beside data of their own size."""
    loss: float
    """|z - network|^2, the training loss on fresh data."""
    least: float
    """|z - exact|^2, what no network is below."""
    excess: float
    """|network - exact|^2."""


def score_errors(
    field: hb.Field, times: Sequence[float], seed: int, *, least: int = 500, total: int = 20_000
) -> list[ScoreError]:
    """At each of the times, on `total` fresh data in all, but at least `least` at each."""
    process, exact = field.process, law().field(field.process)
    n = max(least, total // len(times))
    x0 = fresh(n, seed)
    errors = []
    for k, t in enumerate(times):
        z = hb.kernels.normal((n, 2), seed, draw=k)
        x = process.alpha(t) * x0 + process.sigma(t) * z
        with torch.no_grad():
            guess, best = (f.noise(t, x).double() for f in (field, exact))
        errors.append(
            ScoreError(process.nu(t), *(float(d.square().mean()) for d in (z - guess, z - best, guess - best)))
        )
    return errors


def _mean_se(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) if len(values) > 1 else 0.0)
