"""What judges samples of digits: a classifier, distances between samples, the nearest training digit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

import halfbridge as hb

if TYPE_CHECKING:
    from digits import Digits
    from digits_settings import Settings


class Judges:
    """All are made from the held-out digits, which the network never saw, but for the nearest training digit.

    The classifier is a support vector machine with a Gaussian kernel, its scores made probabilities by cross-validation.
    """

    def __init__(self, digits: Digits, settings: Settings, seed: int) -> None:
        self.train, self.held_out = digits.fresh(digits.train), digits.fresh(digits.held_out)
        self.train_classes = digits.classes(digits.train)
        self.middles = digits.train.examples * (1.0 - 1.0 / 17.0)  # of the bins: the digits without noise
        self.settings, self.seed = settings, seed
        self.classifier = CalibratedClassifierCV(SVC(C=10.0), ensemble=False)
        self.classifier.fit(_flat(self.held_out), digits.classes(digits.held_out).numpy())
        self.spread = hb.reference.two_sample.spread(self.held_out)
        self.near = float(self.nearest(self.held_out).quantile(0.01))

    def score(self, x: torch.Tensor, classes: torch.Tensor) -> dict[str, Any]:
        """Of samples of the classes asked for; no accuracy where no class was (-1)."""
        probabilities = torch.from_numpy(self.classifier.predict_proba(_flat(x)))
        nearest = self.nearest(x)
        conditional = bool((classes >= 0).all())
        hit = probabilities.argmax(dim=1) == classes
        return {
            "digits": len(x),
            "conditional": conditional,
            "accuracy": float(hit.double().mean()) if conditional else None,
            "confidence": float(probabilities.amax(dim=1).mean()),
            "energy": hb.reference.energy_distance(x, self.held_out, y_spread=self.spread),
            "sliced_w2": self.sliced(x, self.held_out),
            "nearest": float(nearest.median()),
            "nearer": float((nearest < self.near).double().mean()),
        }

    def real(self) -> dict[str, Any]:
        """The same of the training digits, which the classifier never saw, and of splits of all real digits in two."""
        n, pool = self.settings.samples, torch.cat([self.train, self.held_out])
        generator = torch.Generator().manual_seed(self.seed)
        splits = []
        for _ in range(self.settings.splits):
            order = torch.randperm(len(pool), generator=generator)
            y, x = pool[order[: len(self.held_out)]], pool[order[len(self.held_out) :][:n]]
            splits.append((hb.reference.energy_distance(x, y), self.sliced(x, y)))
        energy, sliced = torch.tensor(splits, dtype=torch.float64).T
        own = self.nearest(self.held_out)
        return self.score(self.train, self.train_classes) | {
            "splits": {
                "size": min(n, len(self.train)),
                "energy": [float(energy.mean()), float(energy.std()), float(energy.max())],
                "sliced_w2": [float(sliced.mean()), float(sliced.std()), float(sliced.max())],
            },
            "nearest": float(own.median()),
            "nearer": 0.01,
        }

    def sliced(self, x: torch.Tensor, y: torch.Tensor) -> float:
        return hb.reference.sliced_w2(x, y, projections=self.settings.projections, seed=self.seed)

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """Euclidean distance of each to the nearest training digit, (n,)."""
        return torch.cdist(x.flatten(1).double(), self.middles.flatten(1).double()).amin(dim=1)


def _flat(x: torch.Tensor) -> Any:
    return x.flatten(1).numpy()
