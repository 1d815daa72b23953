"""Gaussian laws: density, diffusion under a linear process, exact field, KL and 2-Wasserstein distances.

Everything is float64 on the CPU and goes through one eigendecomposition C = V diag(l) V^T. A field computes in float64
and answers in its argument's dtype and on its device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from halfbridge.kernels import normal
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.covariance import (
    EPS,
    Eigen,
    check_semidefinite,
    diagonal_eigen,
    eigen,
    float64,
    symmetric,
)
from halfbridge.solvers.reference.views import PerDevice, affine_view, coefficients, flat_rows

__all__ = ["Gaussian"]

ROWS = 1024  # rows of a sample summed at a time: two blocks of 64 float64 columns stay in a core's cache


class Gaussian:
    """The law N(m, C) on R^d, C any symmetric positive semidefinite matrix (singular allowed, up to a point mass).

    mean: (d,). cov: (d, d), or a number v for v I. Lists, numpy arrays and tensors are accepted and copied.
    `.mean` (d,), `.cov` (d, d), `.eigenvalues` (d,) ascending and `.eigenvectors` (d, d) in columns are float64 CPU
    tensors. An eigenvalue at most d 2^-52 times the largest is 0: it is the rounding of the decomposition (diagonal
    matrices are not decomposed, and keep any positive entry). A covariance asymmetric or indefinite by no more than
    64 d ulp of its largest entry (ulp of the dtype it came in) is accepted and symmetrised.

    Raises ValueError for wrong shapes, NaN or inf, an asymmetric or an indefinite `cov`.
    """

    def __init__(self, mean: Any, cov: Any) -> None:
        with torch.inference_mode(False):
            self._mean = float64("mean", mean)[0]
            if self._mean.ndim != 1 or not self._mean.numel():
                raise ValueError(f"`mean` must have shape (d,) with d >= 1, got {tuple(self._mean.shape)}")
            d = self._mean.numel()
            matrix, eps = float64("cov", cov)
            if matrix.ndim == 0:
                matrix = matrix * torch.eye(d, dtype=torch.float64, device="cpu")
            if matrix.shape != (d, d):
                raise ValueError(
                    f"`cov` must be a number or have shape ({d}, {d}) to go with `mean` of shape ({d},), got "
                    f"{tuple(matrix.shape)}; a vector of variances v is passed as torch.diag(v)"
                )
            self._cov = symmetric("cov", matrix, eps)
            check_semidefinite("cov", self._cov, eps)
            self._eigen = diagonal_eigen(self._cov)

    @property
    def mean(self) -> Tensor:
        """m, (d,), float64."""
        return self._mean

    @property
    def cov(self) -> Tensor:
        """C, (d, d), float64, exactly symmetric."""
        return self._cov

    @property
    def dim(self) -> int:
        """d."""
        return self._mean.numel()

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of C, (d,), ascending, none negative."""
        return self._decomposition.values

    @property
    def eigenvectors(self) -> Tensor:
        """Orthonormal eigenvectors of C in the columns of (d, d), in the order of `eigenvalues`."""
        return self._decomposition.vectors

    @property
    def _decomposition(self) -> Eigen:
        if self._eigen is None:
            with torch.inference_mode(False):
                self._eigen = eigen(self._cov)
        return self._eigen

    @property
    def _rank(self) -> int:
        return int((self.eigenvalues > 0).sum())

    @property
    def _root(self) -> Tensor:
        values, vectors, _ = self._decomposition
        return (vectors * values.sqrt()) @ vectors.mT

    @property
    def _variances(self) -> Tensor:
        """The diagonal of a diagonal C, clipped at 0."""
        return self._cov.diagonal().clamp(min=0)

    def sample(self, n: int, seed: int, first: int = 0) -> Tensor:
        """(n, d) float64 draws x_i = m + C^(1/2) z_i, z_i the normals of draw 0 of (`seed`, global index first + i).

        C^(1/2) is the symmetric root. x_i depends on `seed` and first + i only, to the last bit.
        """
        z = normal((n, self.dim), seed, draw=0, first=first, dtype=torch.float64)
        if self._decomposition.diagonal:
            return self._mean + z * self._variances.sqrt()
        root = self._root
        out = self._mean.expand(n, -1).clone()
        for part, noise in zip(torch.split(out, ROWS), torch.split(z, ROWS), strict=True):
            for j in range(self.dim):  # not a matrix product: that rounds a row differently as n changes
                part += noise[:, j : j + 1] * root[j]
        return out

    def log_prob(self, x: Tensor) -> Tensor:
        """log density in nats, (batch,), in x's dtype; x (batch, *shape) with prod(shape) = d. Differentiable in x.

        Raises ValueError where C is singular (there is no density).
        """
        if self._rank < self.dim:
            raise ValueError(
                f"log_prob: this Gaussian has no density, its covariance has rank {self._rank} in {self.dim} "
                "dimensions; `.at(process, t)` with t > 0 has one"
            )
        rows = flat_rows(x, self.dim)
        mean, values, vectors = (a.to(x.device) for a in (self._mean, self.eigenvalues, self.eigenvectors))
        y = (rows - mean) @ vectors
        log_norm = self.dim * math.log(2 * math.pi) + float(self.eigenvalues.log().sum())
        return (-0.5 * ((y * y / values).sum(1) + log_norm)).to(x.dtype)

    def at(self, process: Process, t: float) -> Gaussian:
        """The diffused law at time t, N(alpha m, alpha^2 C + sigma^2 I); it keeps the eigenvectors."""
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        values, vectors, diagonal = self._decomposition
        law: Gaussian = object.__new__(type(self))
        with torch.inference_mode(False):
            law._mean = alpha * self._mean
            law._cov = alpha**2 * self._cov
            law._cov.diagonal().add_(sigma**2)
            law._eigen = Eigen(alpha**2 * values + sigma**2, vectors, diagonal)
        return law

    def field(self, process: Process, predicts: str = "noise") -> Field:
        """The exact field of this data law under `process`, as one of "noise", "score", "data", "velocity".

        With S = alpha^2 C + sigma^2 I and y = x - alpha m: noise sigma S^-1 y, score -S^-1 y, data
        m + alpha C S^-1 y, velocity alpha noise - sigma data. Each is formed from its own coefficients in the
        eigenbasis, none by subtracting the others. The field's x is (batch, *shape) with prod(shape) = d, any
        floating dtype. Raises ValueError for an unknown `predicts`, and when called where sigma(t) = 0.
        """
        diagonal = self._decomposition.diagonal
        variances = self._variances if diagonal else self.eigenvalues
        tables = PerDevice(self._mean, variances, self.eigenvectors)

        def fn(t: float, x: Tensor) -> Tensor:
            alpha, sigma = coefficients(process, t)
            mean, variance, vectors = tables(x.device)
            view = affine_view(predicts, alpha, sigma, variance)
            y = flat_rows(x, self.dim) - alpha * mean
            y = view.gain * y if diagonal else ((y @ vectors) * view.gain) @ vectors.mT
            return (y + view.offset * mean).to(x.dtype).reshape(x.shape)

        return Field(process, fn, predicts=predicts)

    def kl(self, other: Gaussian) -> float:
        """KL(self || other) in nats: half the sum of mu - log(1 + mu), plus the Mahalanobis term of the means.

        1 + mu are the eigenvalues of other.cov^(-1/2) self.cov other.cov^(-1/2); mu comes from the difference of
        the covariances, so a KL of 1e-20 keeps its digits. Singular covariances: finite exactly when both laws
        live on the same affine subspace (up to rounding), inf otherwise.
        """
        self._check_same_dim("kl", other)
        values, vectors, _ = other._decomposition
        keep = values > 0
        if int(keep.sum()) != self._rank:
            return math.inf
        shift = self._mean - other._mean
        if not keep.all() and self._leaves(other, vectors[:, ~keep], shift):
            return math.inf
        whiten = vectors[:, keep] / values[keep].sqrt()
        mu = torch.linalg.eigvalsh(whiten.mT @ (self._cov - other._cov) @ whiten)
        ratio = torch.linalg.svdvals(whiten.mT @ self._root).flip(0).square()
        return 0.5 * float(kl_terms(mu, ratio).sum() + (shift @ whiten).square().sum())

    def _leaves(self, other: Gaussian, null: Tensor, shift: Tensor) -> bool:
        """Whether this law's support leaves other's, whose directions without variance are `null` (d, r)."""
        values = other.eigenvalues
        positive = values[values > 0]
        spread = float(positive.max() / positive.min()) if positive.numel() else 1.0
        tol = 64 * self.dim * EPS * spread  # null directions are known to eps times this spread
        scale = float(torch.maximum(self._mean.abs().max(), other._mean.abs().max()))
        sticks_out = float((self._cov @ null).abs().max()) > tol * float(self._cov.abs().max())
        return sticks_out or float((shift @ null).abs().max()) > tol * scale

    def w2(self, other: Gaussian) -> float:
        """2-Wasserstein distance, sqrt(|m - m'|^2 + |A - B U|_F^2).

        A, B are the symmetric roots of the two covariances and U the orthogonal polar factor of B^T A. The trace
        formula tr(C + C' - 2 (C^(1/2) C' C^(1/2))^(1/2)) would lose half the digits near 0; this has an absolute
        error of a few ulp of |A|.
        """
        self._check_same_dim("w2", other)
        a, b = self._root, other._root
        left, _, right = torch.linalg.svd(b.mT @ a)
        gap = (a - b @ (left @ right)).square().sum()
        return math.sqrt(float((self._mean - other._mean).square().sum() + gap))

    def _check_same_dim(self, name: str, other: Gaussian) -> None:
        if not isinstance(other, Gaussian) or other.dim != self.dim:
            got = f"dimension {other.dim}" if isinstance(other, Gaussian) else type(other).__name__
            raise ValueError(f"{name}: `other` must be a Gaussian of dimension {self.dim} like this law, got {got}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gaussian):
            return NotImplemented
        return torch.equal(self._mean, other._mean) and torch.equal(self._cov, other._cov)

    def __hash__(self) -> int:
        return hash((Gaussian, tuple(self._mean.tolist())))

    def __repr__(self) -> str:
        if self.dim <= 3:
            return f"Gaussian(mean={self._mean.tolist()}, cov={self._cov.tolist()})"
        size, trace = float(self._mean.norm()), float(self._cov.trace())
        return f"Gaussian(dim={self.dim}, |mean|={size:.4g}, trace(cov)={trace:.4g})"


def kl_terms(mu: Tensor, ratio: Tensor) -> Tensor:
    """mu - log(1 + mu) at mu > -1: from mu for |mu| < 1/2, else from `ratio`, which is 1 + mu with its own digits.

    Take mu from a difference of covariances and ratio from squared singular values: each is exact where the other is not
    (mu near 0, ratio near 0).
    """
    return torch.where(mu.abs() < 0.5, minus_log1p(mu.clamp(-0.5, 0.5)), ratio - 1 - ratio.log())


def minus_log1p(mu: Tensor) -> Tensor:
    """mu - log(1 + mu) for |mu| <= 1/2, relative error a few ulp (the difference has error ulp/mu).

    With r = mu / (2 + mu), log(1 + mu) = 2 artanh(r), so the difference is r (mu - 2 r^2 (1/3 + r^2/5 + ...)).
    """
    r = mu / (2 + mu)
    square = r * r
    tail = torch.zeros_like(mu)
    for k in range(35, 1, -2):  # |r| <= 1/3: the first term left out is 3^-34 / 37
        tail = tail * square + 1 / k
    return r * (mu - 2 * square * tail)
