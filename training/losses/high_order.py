"""High-order denoising score matching: the score, its Jacobian, their trace and the gradient of that.

With x = alpha x0 + sigma z, a lower-order model s1 of the score and s2 of its Jacobian, both held constant, let

    l1 = sigma s1 + z,    l2 = sigma^2 s2 + I,    l3 = (|l1|^2 - tr l2 - 2 l2) l1.

Given x, E l1 l1^T = sigma^2 grad^2 log p + I and E l3 = -sigma^3 grad tr grad^2 log p where s1 and s2 are exact: regressing on
them gives the derivatives of log p, p the density of x. Where s1 is off by e1 and s2 by e2, the minimisers are off by exactly
e1 e1^T (second), |e1|^2 (trace) and tr(e2) e1 + 2 e2 e1 - |e1|^2 e1 (third), which vanish with e1.

Lu, Zheng, Bao, Chen, Li and Zhu 2022 (ICML), whose powers of 1/sigma are left out here as in their training:
times sigma^-2, sigma^-4, sigma^-4 and sigma^-6 the four losses are squared errors of s1, s2, tr s2 and s3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from halfbridge.training.losses.score_function import Score, rows, score_jacobian

__all__ = [
    "HighOrderTerms",
    "high_order_loss",
    "high_order_terms",
    "second_order_loss",
    "third_order_loss",
    "trace_loss",
]


class HighOrderTerms(NamedTuple):
    """The losses of one network by order, (batch,) each; None for orders that were not asked for."""

    first: torch.Tensor
    second: torch.Tensor | None
    trace: torch.Tensor | None
    third: torch.Tensor | None


def second_order_loss(
    second: torch.Tensor, score: torch.Tensor, sigma: torch.Tensor, z: torch.Tensor, v: torch.Tensor | None = None
) -> torch.Tensor:
    """|sigma^2 s2 + I - l1 l1^T|_F^2 for each sample; with a direction v, |sigma^2 s2 v + v - l1 (l1.v)|^2.

    second: s2, (batch, d, d) over flattened events, of any model of grad^2 log p; with v its product s2 v, like z. score: s1 at
    the same points, like z; no gradient flows into it. sigma: (batch,). z: (batch, *shape), the normal in x = alpha x0 + sigma z.
    v: like z, independent of x0 and z. For every v the minimiser is the same; where E v v^T = I the mean over v is the loss
    without. Returns (batch,). ValueError for shapes that do not fit.
    """
    residual, scale, direction = _residual(score, sigma, z, v)
    if direction is None:
        matrix = _matrix("second", second, residual)
        outer = residual[:, :, None] * residual[:, None, :]
        return (scale[:, None, None] ** 2 * matrix + _identity(residual) - outer).square().sum(dim=(1, 2))
    product = rows(_like("second", second, z))
    along = (residual * direction).sum(dim=1, keepdim=True)
    return (scale[:, None] ** 2 * product + direction - along * residual).square().sum(dim=1)


def trace_loss(
    trace: torch.Tensor, score: torch.Tensor, sigma: torch.Tensor, z: torch.Tensor, v: torch.Tensor | None = None
) -> torch.Tensor:
    """(sigma^2 tr s2 + d - |l1|^2)^2 for each sample; with a direction v, (sigma^2 v^T s2 v + |v|^2 - (l1.v)^2)^2.

    trace: (batch,), of any model of tr grad^2 log p; with v, of v^T grad^2 log p v. The rest as in `second_order_loss`, but the
    mean over v of the loss with it is another loss than that without, of the same minimiser (its matrix part is seen too).
    """
    residual, scale, direction = _residual(score, sigma, z, v)
    if trace.shape != sigma.shape:
        raise ValueError(f"trace has shape {tuple(trace.shape)}; pass one number for each sample, {tuple(sigma.shape)}")
    if direction is None:
        aim = residual.square().sum(dim=1) - residual.shape[1]
    else:
        aim = (residual * direction).sum(dim=1).square() - direction.square().sum(dim=1)
    return (scale**2 * trace.to(scale.dtype) - aim).square()


def third_order_loss(
    third: torch.Tensor,
    score: torch.Tensor,
    second: torch.Tensor,
    sigma: torch.Tensor,
    z: torch.Tensor,
    v: torch.Tensor | None = None,
) -> torch.Tensor:
    """|sigma^3 s3 + l3|^2 for each sample; with a direction v, |sigma^3 s3 + l3(v)|^2, where

        l3(v) = ((l1.v)^2 - v^T l2 v) l1 - 2 (l1.v) l2 v.

    third: s3, like z, of any model of grad tr grad^2 log p; with v, of grad (v^T grad^2 log p v). second: s2, or with v its
    product s2 v; no gradient flows into it, nor into score. The rest as in `trace_loss`.
    """
    residual, scale, direction = _residual(score, sigma, z, v)
    model = rows(_like("third", third, z))
    second = second.detach()
    square = scale[:, None] ** 2
    if direction is None:
        noisy = square[:, :, None] * _matrix("second", second, residual) + _identity(residual)
        factor = residual.square().sum(dim=1) - noisy.diagonal(dim1=1, dim2=2).sum(dim=1)
        image = (noisy * residual[:, None, :]).sum(dim=2)
    else:
        product = square * rows(_like("second", second, z)) + direction
        along = (residual * direction).sum(dim=1)
        factor = along.square() - (direction * product).sum(dim=1)
        image = along[:, None] * product
    aim = factor[:, None] * residual - 2.0 * image
    return (scale[:, None] ** 3 * model + aim).square().sum(dim=1)


def high_order_terms(
    score: Score,
    x: torch.Tensor,
    sigma: torch.Tensor,
    z: torch.Tensor,
    v: torch.Tensor | None = None,
    *,
    order: int = 3,
) -> HighOrderTerms:
    """The four losses with s1 = s, s2 = grad s and s3 = grad tr grad s of one network, up to `order` (1, 2 or 3).

    v: None forms the whole Jacobian by d products with it, batch d^2 numbers: for few dimensions. With one direction v, like x
    (signs or normals), s2 v, v^T s2 v and grad (v^T s2 v) take its place, a product with the Jacobian and a gradient.
    score: s, from (batch, *shape) to the same, with independent rows, such as `score_function(net, process, t)`; x: the points
    alpha x0 + sigma z. sigma, z: as in `second_order_loss`.
    The product is grad s^T v: that of a score that is a gradient, and with the same mean over v of the second loss for any. Each
    loss sends gradients into its own order only; lower orders are constants in it.
    """
    if isinstance(order, bool) or order not in (1, 2, 3):
        raise ValueError(f"order = {order!r} must be 1, 2 or 3: the highest order of denoising score matching")
    value, second, trace, third = _derivatives(score, x, v, order)
    residual = _scaled(value, sigma, z)
    first = residual.square().sum(dim=1)
    if second is None or trace is None:
        return HighOrderTerms(first, None, None, None)
    two = second_order_loss(second, value, sigma, z, v)
    one = trace_loss(trace, value, sigma, z, v)
    if third is None:
        return HighOrderTerms(first, two, one, None)
    return HighOrderTerms(first, two, one, third_order_loss(third, value, second, sigma, z, v))


def high_order_loss(
    score: Score,
    x: torch.Tensor,
    sigma: torch.Tensor,
    z: torch.Tensor,
    v: torch.Tensor | None = None,
    *,
    lambda1: float,
    lambda2: float,
) -> torch.Tensor:
    """first + lambda1 (second + trace) + lambda2 third for each sample, of `high_order_terms`, all sums over a sample's elements.

    Orders above the last with a positive factor cost nothing. With d elements a sample the terms are of the sizes d, d^2 and d^3;
    lambda1 = 1/d and lambda2 = 1/d^2 are what the authors' code trains with. ValueError for negative factors.
    """
    for name, factor in (("lambda1", lambda1), ("lambda2", lambda2)):
        if not 0.0 <= factor < math.inf:
            raise ValueError(f"{name} = {factor!r} must be a finite number of at least 0; 0 leaves that order out")
    order = 3 if lambda2 else 2 if lambda1 else 1
    terms = high_order_terms(score, x, sigma, z, v, order=order)
    total = terms.first
    if terms.second is not None and terms.trace is not None:
        total = total + lambda1 * (terms.second + terms.trace)
    return total if terms.third is None else total + lambda2 * terms.third


def _derivatives(
    score: Score, x: torch.Tensor, v: torch.Tensor | None, order: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """s, its Jacobian (or the product with v), that one's trace (or v^T grad s v) and the gradient of the trace, up to order."""
    if v is not None:
        _like("v", v, x)
    recording = torch.is_grad_enabled()
    second: torch.Tensor | None = None
    trace: torch.Tensor | None = None
    third: torch.Tensor | None = None
    with torch.enable_grad():  # the gradient of the trace needs a graph whether or not the loss is to have one
        x = x if recording and x.requires_grad else x.detach().requires_grad_()
        jacobian = score_jacobian(score, x)
        if order > 1 and v is None:
            size = math.prod(x.shape[1:])
            units = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *x.shape[1:])
            found = jacobian.products(units.expand(size, *x.shape)).reshape(size, len(x), size)
            second = found.permute(1, 0, 2)
            trace = second.diagonal(dim1=1, dim2=2).sum(dim=1)
        elif order > 1 and v is not None:
            second = jacobian.products(v[None])[0]
            trace = (rows(second) * rows(v)).sum(dim=1)
        if order > 2 and trace is not None:
            third = _gradient(trace, jacobian.x, recording)
        value = jacobian.value
    if recording:
        return value, second, trace, third
    return value.detach(), _constant(second), _constant(trace), _constant(third)


def _constant(value: torch.Tensor | None) -> torch.Tensor | None:
    return None if value is None else value.detach()


def _gradient(trace: torch.Tensor, x: torch.Tensor, recording: bool) -> torch.Tensor:
    """d trace_i / d x_i, like x; 0 where the Jacobian does not depend on x, as of an affine score."""
    if not trace.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(trace.sum(), x, create_graph=recording, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _scaled(score: torch.Tensor, sigma: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """sigma s + z, (batch, d), in float32 or above."""
    if sigma.shape != z.shape[:1]:
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; give one for each of the {len(z)} samples of z")
    value = rows(_like("score", score, z))
    return sigma.to(value.dtype)[:, None] * value + rows(z)


def _residual(
    score: torch.Tensor, sigma: torch.Tensor, z: torch.Tensor, v: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """l1 and v, (batch, d), and sigma, (batch,), all in one dtype; l1 is a constant."""
    residual = _scaled(score.detach(), sigma, z)
    return residual, sigma.to(residual.dtype), None if v is None else rows(_like("v", v, z))


def _identity(residual: torch.Tensor) -> torch.Tensor:
    return torch.eye(residual.shape[1], dtype=residual.dtype, device=residual.device)


def _like(name: str, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if value.shape != like.shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)} for samples of shape {tuple(like.shape)}; pass one like them"
        )
    return value


def _matrix(name: str, value: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    size = residual.shape[1]
    if value.shape != (len(residual), size, size):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; pass a matrix for each sample, {(len(residual), size, size)}, or "
            "its product with v, and v"
        )
    return value.to(residual.dtype)
