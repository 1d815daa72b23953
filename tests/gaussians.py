"""Processes, random covariances and tensors that the tests of Gaussian laws and mixtures share."""

import numpy as np
import pytest
import torch

from halfbridge.solvers.processes import EDM, OU, VE, VP, Brownian, CosineVP, DiscreteVP, SubVP

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
