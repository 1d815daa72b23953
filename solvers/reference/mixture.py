"""Gaussian mixtures: density, diffusion under a linear process, exact field; thousands of components, point masses."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from halfbridge.kernels import normal
from halfbridge.solvers.draws import choice_words
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.covariance import EPS, Eigen, check_semidefinite, eigen, float64, symmetric
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.posterior import Full, Isotropic
from halfbridge.solvers.reference.views import coefficients, flat_rows

__all__ = ["GaussianMixture", "checked_weights"]

ROWS = 1024


class GaussianMixture:
    """The law sum_k w_k N(m_k, C_k) on R^d.

    weights: (k,), nonnegative, summing to 1 (a component of weight 0 is kept and changes nothing). means: (k, d).
    covs: (k, d, d), one matrix each; or a number v, all C_k = v I; or (k,), C_k = v_k I. Point masses (0) and singular
    matrices are allowed. Lists, numpy arrays and tensors are accepted and copied to float64 on the CPU.

    Scalar covariances are the fast case: `kernels.mixture_field`, by matrix products, or a kernel for x on a GPU. Full
    ones are streamed over blocks of components. No (n, k, d) tensor is made. `len(mixture)` is k.

    Raises ValueError for wrong shapes, NaN or inf, weights that are negative or do not sum to 1, a negative variance,
    an asymmetric or indefinite matrix.
    """

    def __init__(self, weights: Any, means: Any, covs: Any) -> None:
        with torch.inference_mode(False):
            self._weights = checked_weights("weights", weights)
            k = self._weights.numel()
            self._means = float64("means", means)[0]
            if self._means.ndim != 2 or self._means.shape[0] != k or not self._means.numel():
                shape = tuple(self._means.shape)
                raise ValueError(f"`means` must have shape ({k}, d), a row for each of the {k} weights, got {shape}")
            self._covs, self._eigen = self._checked_covs(covs)
            self._core = self._posterior()

    def _checked_covs(self, covs: Any) -> tuple[Tensor, Eigen | None]:
        """(k,) variances and None, or (k, d, d) and its decomposition."""
        k, d = self._means.shape
        values, eps = float64("covs", covs)
        if values.ndim == 0:
            values = values.expand(k).clone()
        if values.shape == (k,):
            if (values < 0).any():
                i = int(values.argmin())
                raise ValueError(f"`covs` must be variances >= 0, but covs[{i}] = {float(values[i]):.6g}")
            return values, None
        if values.shape != (k, d, d):
            raise ValueError(
                f"`covs` must be a number, or have shape ({k},) or ({k}, {d}, {d}), to go with `means` of shape "
                f"({k}, {d}); got {tuple(values.shape)}; one matrix C for all is passed as C.expand({k}, {d}, {d})"
            )
        values = symmetric("covs", values, eps)
        check_semidefinite("covs", values, eps)
        return values, eigen(values)

    def _posterior(self) -> Isotropic | Full:
        live = self._weights > 0
        log_weights, means = self._weights[live].log(), self._means[live]
        if self._eigen is None:
            return Isotropic(log_weights, means, self._covs[live])
        return Full(log_weights, means, self._eigen.values[live], self._eigen.vectors[live])

    def __len__(self) -> int:
        return self._weights.numel()

    @property
    def weights(self) -> Tensor:
        """w, (k,), float64."""
        return self._weights

    @property
    def means(self) -> Tensor:
        """m_k in rows, (k, d), float64."""
        return self._means

    @property
    def dim(self) -> int:
        """d."""
        return self._means.shape[1]

    @property
    def components(self) -> tuple[Gaussian, ...]:
        """The k laws N(m_k, C_k). Each holds a (d, d) matrix: they are made on request."""
        return tuple(Gaussian(m, c) for m, c in zip(self._means, self._covs, strict=True))

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the whole mixture, sum_k w_k m_k, (d,)."""
        with torch.inference_mode(False):
            return self._weights @ self._means

    @cached_property
    def cov(self) -> Tensor:
        """Covariance of the whole mixture, sum_k w_k (C_k + (m_k - m)(m_k - m)^T), (d, d)."""
        with torch.inference_mode(False):
            centred = self._means - self.mean
            between = centred.mT @ (self._weights[:, None] * centred)
            within: Tensor = torch.tensordot(self._weights, self._covs, 1)
            if within.ndim == 0:
                within = within * torch.eye(self.dim, dtype=torch.float64, device="cpu")
            return within + (between + between.mT) / 2

    def sample(self, n: int, seed: int, first: int = 0) -> Tensor:
        """(n, d) float64 draws x_i = m_k + C_k^(1/2) z_i.

        k is what `choose` returns for the same arguments; z_i are the normals of draw 0. x_i depends on `seed` and
        first + i only, to the last bit.
        """
        z = normal((n, self.dim), seed, draw=0, first=first, dtype=torch.float64)
        k = self.choose(n, seed, first)
        out = self._means[k]
        if self._eigen is None:
            return out + self._covs.sqrt()[k, None] * z
        values, vectors, _ = self._eigen
        roots = (vectors * values.sqrt()[:, None, :]) @ vectors.mT
        for part, noise, which in zip(torch.split(out, ROWS), torch.split(z, ROWS), torch.split(k, ROWS), strict=True):
            for j in range(self.dim):
                part += noise[:, j : j + 1] * roots[which, j]
        return out

    def choose(self, n: int, seed: int, first: int = 0) -> Tensor:
        """(n,) int64: the component that each row of `sample(n, seed, first)` comes from.

        The first whose cumulative weight exceeds (w + 0.5) / 2^32, w the first word of draw 2^32 - 1 at global index
        first + i.
        """
        word = choice_words(n, seed, first)[0]
        cumulative = self._weights.cumsum(0)
        uniform = (word.to(torch.float64) + 0.5) / 2**32 * cumulative[-1]  # the sum is 1 up to rounding
        return torch.searchsorted(cumulative, uniform, right=True)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density in nats, (batch,), in x's dtype; x (batch, *shape) with prod(shape) = d. Differentiable in x.

        Raises ValueError where a component of positive weight has a singular covariance (there is no density).
        """
        if self._core.smallest_variance <= 0:
            raise ValueError(
                "log_prob: this mixture has no density, a component of positive weight has a singular covariance (a "
                "point mass, or a matrix without full rank); `.at(process, t)` with t > 0 has one"
            )
        return self._core.log_prob(flat_rows(x, self.dim), 1.0, 0.0).to(x.dtype)

    def at(self, process: Process, t: float) -> GaussianMixture:
        """The diffused law at time t, sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I); it keeps the eigenvectors."""
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        law: GaussianMixture = object.__new__(type(self))
        with torch.inference_mode(False):
            law._weights, law._means = self._weights, alpha * self._means
            law._covs, law._eigen = alpha**2 * self._covs, None
            if self._eigen is None:
                law._covs += sigma**2
            else:
                law._covs.diagonal(dim1=-2, dim2=-1).add_(sigma**2)
                law._eigen = self._eigen._replace(values=alpha**2 * self._eigen.values + sigma**2)
            law._core = law._posterior()
        return law

    def field(self, process: Process, predicts: str = "noise", dtype: torch.dtype = torch.float64) -> Field:
        """The exact field of this data law under `process`, as one of "noise", "score", "data", "velocity".

        With S_k = alpha^2 C_k + sigma^2 I and r_k the posterior weight of component k given x (log-sum-exp), each
        view is sum_k r_k times the view of component k (the score is -sum_k r_k S_k^-1 (x - alpha m_k)), formed from
        its own coefficients. The field's x is (batch, *shape) with prod(shape) = d, any floating dtype.

        Rounding: the exponents of r_k err as if every distance were formed from x - alpha m_k in float64, that is by
        ulps of themselves and of |x| |x - alpha m_k| / S_k, though scalar covariances get theirs from matrix products.

        dtype: torch.float32 lets scalar covariances be computed in float32 where a GPU's kernel does it (elsewhere float64
        stays), several times faster on most. This is the field at x - alpha c of the means m_k - c, c their centre, all
        rounded to float32: ulps of these over sigma in the noise. Rounding besides: see `kernels.mixture_field`.

        Raises ValueError for an unknown `predicts` or another `dtype`, and when called where sigma(t) = 0.
        """
        core = self._core
        if dtype != torch.float64 and (dtype != torch.float32 or isinstance(core, Full)):
            allowed = "torch.float64" if isinstance(core, Full) else "torch.float64 or torch.float32"
            raise ValueError(f"`dtype` = {dtype} is not one that this mixture's field is computed in; pass {allowed}")

        def fn(t: float, x: Tensor) -> Tensor:
            alpha, sigma = coefficients(process, t)
            rows = flat_rows(x, self.dim)
            return core.field(predicts, rows, alpha, sigma, dtype).to(x.dtype).reshape(x.shape)

        return Field(process, fn, predicts=predicts)

    def __repr__(self) -> str:
        kind = "scalar" if self._eigen is None else "full"
        return f"GaussianMixture({len(self)} components, dim={self.dim}, {kind} covariances)"


def checked_weights(name: str, weights: Any) -> Tensor:
    """(k,) float64, nonnegative, divided by their sum; ValueError where that is not 1 up to the rounding of k terms."""
    values, eps = float64(name, weights)
    if values.ndim != 1 or not values.numel():
        raise ValueError(f"`{name}` must have shape (k,) with k >= 1, got {tuple(values.shape)}")
    if (values < 0).any():
        i = int(values.argmin())
        raise ValueError(f"`{name}` must be >= 0, but {name}[{i}] = {float(values[i]):.6g}")
    total = math.fsum(values.tolist())
    if abs(total - 1) > 8 * max(eps, EPS) * (values.numel() + 8):
        raise ValueError(f"`{name}` must sum to 1, but they sum to {total:.12g}; pass {name} / {name}.sum()")
    return values / total
