"""The law of a chain with Gaussian kernels in two dimensions, by quadrature on a tensor grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from halfbridge.solvers.reference.chain_law import Chain

__all__ = ["plane_law"]

COARSE = 0.02  # L1 error of the rule on every second node above which the rule on all is not trusted


def plane_law(chain: Chain, x: Tensor, y: Tensor, p0: Tensor) -> Tensor:
    """Density at the nodes of uniform axes x (n,) and y (m,) after the last step of a chain on R^2, from p0 (n, m).

    The kernels N(drift(k, .), diag(v_k)) are products, so a step is p'(x, y) = sum_s A(x, s) p(s) B(y, s): one matrix product
    over the n m nodes s, O(n m (n + m + ...)) in all but that. By the trapezoidal rule, whose error for smooth drifts is
    about 2 (e/2)^4 where that on every second node is e: ValueError where e exceeds 0.02, so that at most 2e-8 is added in
    a step.
    """
    nodes = torch.cartesian_prod(x, y)
    cell = float((x[1] - x[0]) * (y[1] - y[0]))
    every_second = torch.zeros(len(x), len(y), dtype=torch.bool)
    every_second[::2, ::2] = True
    p = p0.reshape(-1)
    for k, variance in enumerate(chain.variances):
        mean, v = chain.drift(k, nodes), variance(nodes)
        A = _kernel(x, mean[:, 0], v[:, 0]) * (p * cell)
        B = _kernel(y, mean[:, 1], v[:, 1])
        full = A @ B.mT
        some = every_second.reshape(-1)
        off = float((4 * A[:, some] @ B[:, some].mT - full).abs().sum()) * cell
        if off > COARSE:
            raise ValueError(
                f"`x` and `y` are too coarse in step {k}: the rule on every second node is off by {off:.2g} (allowed: {COARSE}); "
                "pass more nodes"
            )
        p = full.reshape(-1)
    return p.reshape(len(x), len(y))


def _kernel(y: Tensor, mean: Tensor, v: Tensor) -> Tensor:
    """N(y_i; mean_j, v_j), (n, nodes)."""
    u = (y[:, None] - mean) / v.sqrt()
    return (u.square_() * -0.5).clamp_(min=-700.0).exp_() / (math.sqrt(2 * math.pi) * v.sqrt())
