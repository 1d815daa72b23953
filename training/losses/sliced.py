"""Sliced score matching: the score's error along random directions."""

from __future__ import annotations

import torch

from halfbridge.training.losses.implicit import implicit_loss
from halfbridge.training.losses.score_function import Score, quadratic_forms, rows, score_jacobian

__all__ = ["sliced_loss"]


def sliced_loss(score: Score, x: torch.Tensor, probes: torch.Tensor, *, variance_reduced: bool = True) -> torch.Tensor:
    """v^T grad s(x) v + (v^T s(x))^2/2 for each sample, the mean over its probes v: sliced score matching (Song, Garg, Shi and
    Ermon 2019). Its mean over x ~ p is E (v^T (s - grad log p))^2/2 less a constant.

    variance_reduced: |s|^2/2 for the second term, which is its mean over v where E v v^T = I (SSM-VR there). That is
    `implicit_loss` with the same probes. False takes any law of v with E v v^T positive definite, such as unit vectors: then
    the score's error is measured in that norm.
    score, result: as in `implicit_loss`. probes: (probes, batch, *shape), independent of x; one product with the Jacobian
    each.
    """
    if variance_reduced:
        return implicit_loss(score, x, probes)
    jacobian = score_jacobian(score, x)
    forms = quadratic_forms(jacobian, probes)
    value = rows(jacobian.value)
    slices = (probes.reshape(len(probes), *value.shape) * value).sum(dim=2)
    return (forms + slices.square() / 2.0).mean(dim=0)
