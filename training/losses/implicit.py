"""Implicit score matching: the score's error without the score."""

from __future__ import annotations

import torch

from halfbridge.solvers.divergence import exact_trace
from halfbridge.training.losses.score_function import Score, quadratic_forms, rows, score_jacobian

__all__ = ["implicit_loss"]


def implicit_loss(score: Score, x: torch.Tensor, probes: torch.Tensor | None = None) -> torch.Tensor:
    """tr grad s(x) + |s(x)|^2/2 for each sample: implicit score matching (Hyvarinen 2005, theorem 1).

    Its mean over x ~ p is E|s - grad log p|^2/2 - E|grad log p|^2/2, where p s vanishes at infinity: the minimiser is the score
    of whatever x was drawn from, data or X_t of any process that can be simulated. The second term is no part of s and finite
    for smooth p only: for data on a lower-dimensional set the loss has no lower bound, so give x some noise. (Some lecture notes
    print E|tr grad s - |s|^2/2|^2, with another sign and a square, which is minimised elsewhere.)

    score: s, from (batch, *shape) to the same, with independent rows; `score_function` makes one of a network at given times.
    probes: None takes the exact trace, by d products with the Jacobian. (probes, batch, *shape), independent of x with
    E v v^T = I (signs or normals), gives the mean of v^T grad s v, unbiased (Hutchinson 1990); with signs it is exact where
    the Jacobian is diagonal, so in one dimension.
    Returns (batch,), differentiable in what s and x depend on, in float64 for float64 x, else float32. Attention and layer norm
    are evaluated in the forms of `exact_derivatives`. ValueError or TypeError for arguments that do not fit.
    """
    jacobian = score_jacobian(score, x)
    if probes is None:
        trace = exact_trace(jacobian)
    else:
        trace = quadratic_forms(jacobian, probes).mean(dim=0)
    return trace + rows(jacobian.value).square().sum(dim=1) / 2.0
