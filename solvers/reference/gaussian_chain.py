"""Gaussian Markov chains: affine kernels, time reversal, the law of the whole chain, and KL between two chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from halfbridge.solvers.reference.gaussian import Gaussian, kl_terms

__all__ = ["AffineKernels", "GaussianChain"]


class AffineKernels(NamedTuple):
    """N kernels y = gain[k] x + offset[k] + N(0, cov[k]); gain and cov (N, d, d), offset (N, d), float64.

    As forward kernels, kernel k takes x_k to x_{k+1}; as backward kernels, kernel k takes x_{k+1} to x_k.
    """

    gain: Tensor
    offset: Tensor
    cov: Tensor

    def flip(self) -> AffineKernels:
        """The kernels in the opposite order."""
        return AffineKernels(*(a.flip(0) for a in self))


@dataclass(frozen=True, eq=False)
class GaussianChain:
    """A Gaussian law on chains x_0, ..., x_N in R^d that is Markov, read from either end.

    means (N + 1, d) and covs (N + 1, d, d): of each x_k. `forward`, `backward`: its conditional laws x_{k+1} | x_k and
    x_k | x_{k+1}. Every covariance must be invertible.
    """

    means: Tensor
    covs: Tensor
    forward: AffineKernels
    backward: AffineKernels

    @classmethod
    def from_start(cls, p0: Gaussian, forward: AffineKernels) -> GaussianChain:
        """x_0 ~ p0, then the forward kernels."""
        means, covs = _moments(p0, forward)
        return cls(means, covs, forward, _reversal(forward, means, covs))

    @classmethod
    def from_end(cls, p1: Gaussian, backward: AffineKernels) -> GaussianChain:
        """x_N ~ p1, then the backward kernels, the last one first."""
        order = backward.flip()
        means, covs = _moments(p1, order)
        return cls(means.flip(0), covs.flip(0), _reversal(order, means, covs).flip(), backward)

    @property
    def steps(self) -> int:
        """N."""
        return len(self.forward.offset)

    @property
    def law(self) -> Gaussian:
        """The law of (x_0, x_1, ..., x_N) stacked: (N + 1) d dimensions, made on request."""
        n, d = self.means.shape
        cov = torch.zeros(n, n, d, d, dtype=torch.float64, device="cpu")
        cov[0, 0] = self.covs[0]
        for k in range(1, n):
            cov[k, :k] = self.forward.gain[k - 1] @ cov[k - 1, :k]
            cov[:k, k] = cov[k, :k].mT
            cov[k, k] = self.covs[k]
        return Gaussian(self.means.reshape(-1), cov.permute(0, 2, 1, 3).reshape(n * d, n * d))

    def marginal(self, k: int) -> Gaussian:
        """The law of x_k; k as a list index (-1 is N)."""
        return Gaussian(self.means[k], self.covs[k])

    def coupling(self) -> Gaussian:
        """The law of (x_0, x_N), stacked."""
        cross = self.covs[0]
        for gain in self.forward.gain:
            cross = gain @ cross
        cov = torch.cat([torch.cat([self.covs[0], cross.mT], 1), torch.cat([cross, self.covs[-1]], 1)])
        return Gaussian(torch.cat([self.means[0], self.means[-1]]), cov)

    def kl(self, other: GaussianChain, end: int = 0) -> float:
        """KL(self || other) in nats, by the chain rule from x_0 (end = 0) or from x_N (end = -1): the same number.

        KL of the two laws of that end, plus the mean over this chain of the KL of each kernel. Where the chains share
        their kernels from that end, those terms are exactly 0. ValueError for chains of another length or dimension, and
        for any other `end`.
        """
        if isinstance(end, bool) or end not in (0, -1):
            raise ValueError(f"kl: `end` = {end!r} is no end of a chain; pass 0 for x_0, or -1 for x_N")
        if self.means.shape != other.means.shape:
            got, want = tuple(other.means.shape), tuple(self.means.shape)
            raise ValueError(f"kl: `other` has means of shape {got} and this chain {want}; compare chains on one grid")
        mine, its = (self.forward, other.forward) if end == 0 else (self.backward, other.backward)
        means, covs = (self.means[:-1], self.covs[:-1]) if end == 0 else (self.means[1:], self.covs[1:])
        root = torch.linalg.cholesky(its.cov)
        spread = _whitened(root, _whitened(root, mine.cov - its.cov).mT)
        mu = torch.linalg.eigvalsh((spread + spread.mT) / 2)
        ratio = torch.linalg.svdvals(_whitened(root, torch.linalg.cholesky(mine.cov))).flip(-1).square()
        terms = kl_terms(mu, ratio).sum()
        gap = mine.gain - its.gain
        drift = (gap @ means[..., None])[..., 0] + mine.offset - its.offset
        moved = _whitened(root, torch.cat([drift[..., None], gap @ torch.linalg.cholesky(covs)], -1))
        return self.marginal(end).kl(other.marginal(end)) + 0.5 * float(terms + moved.square().sum())


def _moments(start: Gaussian, kernels: AffineKernels) -> tuple[Tensor, Tensor]:
    """Means and covariances along the kernels, in the order in which they act."""
    means, covs = [start.mean], [start.cov]
    for F, c, Q in zip(*kernels, strict=True):
        P = F @ covs[-1] @ F.mT + Q
        means.append(F @ means[-1] + c)
        covs.append((P + P.mT) / 2)
    return torch.stack(means), torch.stack(covs)


def _reversal(kernels: AffineKernels, means: Tensor, covs: Tensor) -> AffineKernels:
    """The kernels that lead back, in the same order: Rauch, Tung and Striebel 1965.

    G = P F^T P_+^-1, h = m - G m_+, and the covariance P - G P_+ G^T as the sum (I - G F) P (I - G F)^T + G Q G^T, which
    subtracts nothing: small steps make it a small part of P.
    """
    F, _, Q = kernels
    P, after = covs[:-1], covs[1:]
    G = torch.linalg.solve(after, F @ P).mT
    kept = torch.eye(P.shape[-1], dtype=torch.float64, device="cpu") - G @ F
    R = kept @ P @ kept.mT + G @ Q @ G.mT
    h = means[:-1] - (G @ means[1:, :, None])[..., 0]
    return AffineKernels(G, h, (R + R.mT) / 2)


def _whitened(root: Tensor, a: Tensor) -> Tensor:
    """root^-1 a, root lower triangular."""
    solved: Tensor = torch.linalg.solve_triangular(root, a, upper=False)
    return solved
