"""Processes, random covariances and tensors that the tests of Gaussian laws and mixtures share."""

import numpy as np
import pytest
import torch

from halfbridge.solvers.processes import EDM, OU, VE, VP, Brownian, CosineVP, DiscreteVP, SubVP
from halfbridge.solvers.reference.mixture import GaussianMixture

F64 = torch.float64
VIEWS = ("noise", "score", "data", "velocity")
PROCESSES = [
    VP(), CosineVP(), SubVP(), VE(), EDM(), OU(theta=0.7, g=1.3), Brownian(g=0.8), DiscreteVP(np.linspace(1e-4, 0.02, 1000)),
]  # fmt: skip
by_name = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
by_view = pytest.mark.parametrize("predicts", VIEWS)


def tensor(values):
    return torch.tensor(values, dtype=F64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def covariances(k, d, seed=0):
    """k random covariances, (k, d, d), eigenvalues at least 0.05."""
    a = random(k, d, d, seed=seed)
    return a @ a.mT / d + 0.05 * torch.eye(d, dtype=F64)


WEIGHTS, MEANS = tensor([0.2, 0.5, 0.3]), 1.5 * random(3, 2, seed=1)
LINE = tensor([[1.0, 2], [2, 4]])
MIXTURES = {
    "points": GaussianMixture(WEIGHTS, MEANS, 0.0),
    "scalar": GaussianMixture(WEIGHTS, MEANS, 0.3),
    "varied": GaussianMixture(WEIGHTS, MEANS, tensor([0.3, 0.0, 2.0])),
    "full": GaussianMixture(WEIGHTS, MEANS, covariances(3, 2)),
    "singular": GaussianMixture(WEIGHTS, MEANS, torch.stack([LINE, torch.zeros(2, 2), torch.eye(2)])),
}
by_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES.keys())
