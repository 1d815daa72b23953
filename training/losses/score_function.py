"""The score that a network stands for, as a function of x alone, and products with its Jacobian that can be trained through."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from halfbridge.kernels.arguments import accumulation
from halfbridge.nets.adapter import Labels, Network, default_labels, network_labels
from halfbridge.solvers.exact_derivatives import exact_derivatives
from halfbridge.solvers.jacobian import Jacobian, Reverse, check_argument
from halfbridge.solvers.processes import Process
from halfbridge.training.losses.denoising import check_predicts

__all__ = ["Score", "quadratic_forms", "rows", "score_function", "score_jacobian"]

Score = Callable[[torch.Tensor], torch.Tensor]
"""score(x) -> like x, x of shape (batch, *shape), row i of the result a function of row i of x."""


def score_function(
    net: Network,
    process: Process,
    t: torch.Tensor,
    *,
    predicts: str = "noise",
    labels: Labels | None = None,
    dtype: torch.dtype | None = None,
) -> Score:
    """x -> grad log p_t(x) as `net` has it: -noise/sigma, the score, (alpha data - x)/sigma^2, or
    -(x + (alpha/sigma) velocity)/(alpha^2 + sigma^2).

    net(x, labels(t)) -> like x predicts `predicts`. t: (batch,), a time for each row of x, computed with in float64. labels: as
    in `nets.as_field`. dtype: what the network takes, default x's own: the score of a half-precision network is differentiated
    and squared in float32 where it is given a float32 x and the network's dtype here. The result has x's dtype.
    ValueError for an unknown `predicts`, times that are not one for each row, and a network whose result is not like x.
    """
    if t.ndim != 1:
        raise ValueError(
            f"t has shape {tuple(t.shape)}; give one time for each sample, t.expand(len(x)) for one of all"
        )
    t = t.double()
    of_x, of_net = score_coefficients(predicts, process.alpha(t), process.sigma(t))
    to_label = default_labels(process) if labels is None else labels

    def score(x: torch.Tensor) -> torch.Tensor:
        if len(t) != len(x):
            raise ValueError(f"t has shape {tuple(t.shape)}; give one time for each of the {len(x)} samples of x")
        given = x if dtype is None else x.to(dtype)
        out = net(given, network_labels(to_label, t, given))
        if out.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}")

        def like(c: torch.Tensor) -> torch.Tensor:
            return c.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))

        value = like(of_net) * out.to(x.dtype)
        return value if of_x is None else value + like(of_x) * x

    return score


def score_coefficients(
    predicts: str, alpha: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(c_x, c_p) with score = c_x x + c_p prediction; None where x has no part."""
    check_predicts(predicts)
    match predicts:
        case "noise":
            return None, -1.0 / sigma
        case "score":
            return None, torch.ones_like(sigma)
        case "data":
            return -1.0 / sigma**2, alpha / sigma**2
        case _:
            power = alpha**2 + sigma**2
            return -1.0 / power, -alpha / (sigma * power)


def score_jacobian(score: Score, x: torch.Tensor) -> Reverse:
    """The Jacobian J of `score` at x, whose value and products J^T v keep the gradients of the network's parameters.

    One evaluation, in the forms of `exact_derivatives`, so dropout has one mask; then a backward pass a product, which is itself
    differentiated. Not J v by tangents: v^T J v is the same, and so is the mean of |(J - W) v|^2 over v for a symmetric W.
    """
    if not callable(score):
        raise TypeError(
            f"score is a {type(score).__name__}; pass a function of x alone, such as `score_function` makes"
        )
    check_argument(score, x)

    def exact(x: torch.Tensor) -> torch.Tensor:
        with exact_derivatives():
            return score(x)

    return Reverse(exact, x)


def quadratic_forms(jacobian: Jacobian, probes: torch.Tensor) -> torch.Tensor:
    """v^T J v for each of the probes v, (probes, batch), in float32 or above. probes: (probes, batch, *shape), like x."""
    x = jacobian.x
    check_probes(probes, x)
    products = jacobian.products(probes)
    dtype = accumulation(x.dtype)
    return (products.to(dtype) * probes).reshape(len(probes), len(x), math.prod(x.shape[1:])).sum(2)


def rows(x: torch.Tensor) -> torch.Tensor:
    """(batch, d) of (batch, *shape), in float32 or above."""
    return x.reshape(len(x), math.prod(x.shape[1:])).to(accumulation(x.dtype))


def check_probes(probes: torch.Tensor, x: torch.Tensor) -> None:
    """Refuse probes that are not (probes, batch, *shape) in x's dtype and on its device."""
    if probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape or not len(probes):
        remedy = "pass probes[None] for one" if probes.shape == x.shape else "pass (probes, batch, *shape)"
        raise ValueError(f"probes has shape {tuple(probes.shape)} for an x of shape {tuple(x.shape)}; {remedy}")
    for name in ("dtype", "device"):
        if getattr(probes, name) != getattr(x, name):
            raise ValueError(f"probes has {name} {getattr(probes, name)} and x {getattr(x, name)}; pass probes.to(x)")
