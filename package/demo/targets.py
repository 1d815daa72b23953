"""The two fields that the demo samples, each with the law that its samples should have."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from halfbridge.demo.settings import Settings
from halfbridge.nets.mlp import MLP
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import VP
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.training.data import digits
from halfbridge.training.fit import fit_score

__all__ = ["PROCESS", "SHAPE", "Target", "exact_target", "network_target"]

PROCESS = VP()
SHAPE = (1, 8, 8)
SHOWN = 24


class Target(NamedTuple):
    """A field under PROCESS on events of SHAPE. law: the exact law of its data at t_min, where sampling ends."""

    name: str
    field: Field
    law: GaussianMixture
    images: torch.Tensor
    """Draws to show beside the samples, (SHOWN, *SHAPE)."""
    dtype: torch.dtype
    """The precision that the field works in."""


def _kernels(images: torch.Tensor, bandwidth: float) -> GaussianMixture:
    n = len(images)
    return GaussianMixture(torch.full((n,), 1.0 / n, dtype=torch.float64), images.flatten(1), bandwidth**2)


def exact_target(settings: Settings, seed: int) -> Target:
    """The Gaussian kernel mixture on the digits, whose field is known in closed form."""
    images = digits(dtype=torch.float64).images[: settings.images]
    law = _kernels(images, settings.bandwidth)
    shown = law.sample(SHOWN, seed).reshape(-1, *SHAPE)
    return Target(
        f"the exact field (kernel mixture, bandwidth {settings.bandwidth:g})",
        law.field(PROCESS),
        law.at(PROCESS, PROCESS.t_min),
        shown,
        torch.float64,
    )


def network_target(settings: Settings, seed: int) -> Target:
    """A multilayer perceptron that predicts the velocity, trained on the digits themselves."""
    images = digits().images[: settings.images]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(SHAPE, hidden=settings.hidden, depth=3)
    fit = fit_score(
        net,
        images,
        PROCESS,
        predicts="velocity",
        steps=settings.training_steps,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    law = _kernels(images.double(), 0.0).at(PROCESS, PROCESS.t_min)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return Target(
        f"the network ({settings.training_steps} training steps)", fit.field, law, images[order[:SHOWN]], torch.float32
    )
