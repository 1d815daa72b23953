"""The static Schrödinger bridge between two Gaussians, in canonical variables."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from halfbridge.solvers.reference.gaussian import Gaussian, kl_terms

__all__ = ["GaussianCoupling", "static_coupling"]


class GaussianCoupling(NamedTuple):
    """X_0 = m_0 + L_0 a, X_1 = m_1 + L_1 b, with a, b standard normal and Cov(a, b) = diag(rho), (d,), 0 <= rho < 1.

    `left_over` = 1 - rho^2. So Cov(X_0) = L_0 L_0^T, C = Cov(X_0, X_1) = L_0 diag(rho) L_1^T, and what one end leaves of
    the other is Cov(X_1 | X_0) = L_1 diag(1 - rho^2) L_1^T, Cov(X_0 | X_1) likewise with L_0: no covariance is subtracted.
    """

    mean0: Tensor
    mean1: Tensor
    factor0: Tensor
    factor1: Tensor
    rho: Tensor
    left_over: Tensor

    @property
    def cross(self) -> Tensor:
        """C, (d, d)."""
        return (self.factor0 * self.rho) @ self.factor1.mT

    def left_over_eigen(self, end: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors (in columns) of Cov(X_0 | X_1) for end 0, of Cov(X_1 | X_0) for end 1."""
        factor = (self.factor0, self.factor1)[end] * self.left_over.sqrt()
        vectors, roots, _ = torch.linalg.svd(factor)
        return roots.square(), vectors

    def law(self, p0: Gaussian, p1: Gaussian) -> Gaussian:
        """The coupling over (x_0, x_1) stacked, with the covariances of p0 and p1 as they came."""
        C = self.cross
        cov = torch.cat([torch.cat([p0.cov, C], 1), torch.cat([C.mT, p1.cov], 1)])
        return Gaussian(torch.cat([p0.mean, p1.mean]), cov)

    def kl(self, alpha: float, variance: float) -> float:
        """KL of the coupling to X_0 with X_1 | X_0 ~ N(alpha X_0, variance I), in nats, Cov(X_1) of full rank.

        The mean over X_0 of the KL between the two laws of X_1 given X_0: half the sum of mu - log(1 + mu), 1 + mu the
        eigenvalues of Cov(X_1 | X_0) / variance, and half the mean square distance of their means: no term is negative.
        """
        ratio = self.left_over_eigen(1)[0] / variance
        spread = kl_terms(ratio - 1, ratio)
        shift = self.mean1 - alpha * self.mean0
        stretch = self.factor1 * self.rho - alpha * self.factor0
        return 0.5 * float(spread.sum() + (shift.square().sum() + stretch.square().sum()) / variance)


def static_coupling(p0: Gaussian, p1: Gaussian, alpha: float, variance: float) -> GaussianCoupling:
    """argmin KL(pi || p0(x) N(y; alpha x, variance I)) over the couplings pi of p0 and p1, any covariances.

    With k = alpha/variance, s^2 = 1/k, and any factors S_0 = L_0 L_0^T, S_1 = L_1 L_1^T, the singular values
    L_1^T L_0 = U diag(q) V^T give L_0 V, L_1 U as the factors of the result and rho = 2 k q / (1 + sqrt(1 + 4 k^2 q^2)),
    1 - rho^2 = 2 / (1 + sqrt(1 + 4 k^2 q^2)). This is C = 2 S_0^(1/2) (D + s^2 I)^-1 S_0^(1/2) S_1 with
    D = (4 S_0^(1/2) S_1 S_0^(1/2) + s^4 I)^(1/2), seen in the eigenbasis of D; the usual (S_0^(1/2) D S_0^(-1/2) - s^2 I)/2
    cancels for large s^2 and needs S_0^-1. Janati et al. 2020; Mallasto et al. 2022; Bunne et al. 2023.
    """
    with torch.inference_mode(False):
        left, right = (p.eigenvectors * p.eigenvalues.sqrt() for p in (p0, p1))
        U, q, Vt = torch.linalg.svd(right.mT @ left)
        pull = 2 * (alpha / variance) * q
        root = torch.hypot(torch.ones_like(pull), pull)
        return GaussianCoupling(p0.mean, p1.mean, left @ Vt.mT, right @ U, pull / (1 + root), 2 / (1 + root))
