"""What is measured of digits that a bridge made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from digits import Digits
from digits_judges import Judges
from sklearn.svm import SVC

import halfbridge as hb
from bridged_digits.settings import Settings

__all__ = ["Judged", "blends", "like", "mean_and_deviation", "network", "noisy", "pair_network", "squared"]

NO_DIGIT = -1


class Judged:
    """The digits, and what is said of others: by the classifier and against the held-out digits of `Judges`.

    That classifier knows ten classes, and is sure of one of them whatever it is shown: of 98 % of the draws of a Gaussian with
    the digits' mean and covariance, of all blends of two digits. So a second one, that knows these and digits under noise as an
    eleventh class, says what is a digit at all.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.digits = Digits.load(settings.digits, seed)
        self.judges = Judges(self.digits, settings.digits, seed)
        self.classes = self.digits.classes(self.digits.held_out)
        held_out = self.judges.held_out
        half = len(held_out) // 2
        none = torch.cat(
            [like(held_out, half, seed), blends(held_out, self.classes, half, seed), noisy(held_out, seed)[:half]]
        )
        shown = torch.cat([held_out, none]).flatten(1).numpy()
        self.digit = SVC(C=10.0).fit(shown, torch.cat([self.classes, torch.full((len(none),), NO_DIGIT)]).numpy())

    def are_digits(self, x: torch.Tensor) -> float:
        """The share that is taken for one of the ten."""
        return float((self.digit.predict(x.flatten(1).numpy()) != NO_DIGIT).mean())

    def taken_for(self, x: torch.Tensor, k: int) -> float:
        """The share taken for a k by the classifier of ten classes."""
        return float((self.judges.classifier.predict(x.flatten(1).numpy()) == k).mean())

    def distances(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        return {"energy": hb.reference.energy_distance(x, y), "sliced_w2": self.judges.sliced(x, y)}

    def to_held_out(self, x: torch.Tensor) -> dict[str, float]:
        """Of digits of all classes."""
        return {"recognised": self.are_digits(x), **self.distances(x, self.judges.held_out)}

    def between_real(self, pool: torch.Tensor, first: int, second: int) -> dict[str, list[float]]:
        """Mean and deviation of the distances of two parts of real digits, without an overlap, over random splits."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = []
        for _ in range(self.settings.splits):
            order = torch.randperm(len(pool), generator=generator)
            rows.append(self.distances(pool[order[:first]], pool[order[first : first + second]]))
        return mean_and_deviation(rows)


def mean_and_deviation(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Of each key, over the rows: [mean, standard deviation of a row]."""
    return {k: [float(np.mean([r[k] for r in rows])), float(np.std([r[k] for r in rows], ddof=1))] for k in rows[0]}


def squared(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squares of the pixels' differences of every x and every y, (n, m)."""
    return torch.cdist(x.flatten(1).double(), y.flatten(1).double()).square() / x[0].numel()


def like(x: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """n draws of the Gaussian with the mean and the covariance of x."""
    rows = x.flatten(1).double()
    law = hb.reference.Gaussian(rows.mean(dim=0), torch.cov(rows.mT))
    return law.sample(n, seed).to(x.dtype).view(n, *x.shape[1:])


def blends(x: torch.Tensor, classes: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """n means of two of x, of different classes."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(len(x), (4 * n, 2), generator=generator)
    pairs = pairs[classes[pairs[:, 0]] != classes[pairs[:, 1]]][:n]
    return (x[pairs[:, 0]] + x[pairs[:, 1]]) / 2.0


def noisy(x: torch.Tensor, seed: int) -> torch.Tensor:
    """x in another order and under noise, of a deviation from 0.5 to 2 for each."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.rand(len(x), 1, 1, 1, generator=generator) * 1.5 + 0.5
    order = torch.randperm(len(x), generator=generator)
    return x[order] + deviations * torch.randn(x.shape, generator=generator)


def network(settings: Settings) -> hb.nets.UNet:
    """That of bridges and scores between digits and a Gaussian."""
    return hb.nets.UNet((1, 8, 8), width=settings.width, multipliers=settings.multipliers, blocks=1, attention=())


def pair_network(settings: Settings) -> hb.nets.MLP:
    """That of bridges between digits and digits."""
    return hb.nets.MLP((1, 8, 8), hidden=settings.pair_hidden, depth=settings.pair_depth)
