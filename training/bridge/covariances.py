"""Covariances of kernels: a number, one for each element, or a matrix."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from halfbridge.kernels import Noise, combine, normal
from halfbridge.kernels.arguments import accumulation
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.reference.gaussian import kl_terms

__all__ = ["FORMS", "Covariance", "Diagonal", "Full", "Isotropic", "check_form", "of_form", "pack", "unpack"]

FORMS = ("scalar", "diagonal", "full")


class Covariance(ABC):
    """The covariance C of a kernel N(m, C) on states (batch, *shape), d numbers each."""

    @abstractmethod
    def disturb(self, x: Tensor, seed: int, draw: int, first: int) -> None:
        """x += C^(1/2) z in place, z the normals of (seed, draw) for the samples first, first + 1, ... (`kernels.normal`)."""

    @abstractmethod
    def log_prob(self, residual: Tensor) -> Tensor:
        """log N(residual; 0, C) in nats for each sample, (batch,) float64."""

    @abstractmethod
    def diagonal(self, like: Tensor) -> Tensor:
        """The diagonal of C as rows (1 or batch, d), float64; `like`: a state."""

    def matrix(self, like: Tensor) -> Tensor:
        """C as (1 or batch, d, d), float64; `like`: a state."""
        return torch.diag_embed(self.diagonal(like))

    def kl(self, other: Covariance, shift: Tensor) -> Tensor:
        """KL(N(m, C) || N(m - shift, other)) in nats for each sample, (batch,) float64; `shift` like a state.

        |shift|^2/(4 gamma) where both are 2 gamma I.
        """
        rows = shift.flatten(1).double()
        if isinstance(self, Full) or isinstance(other, Full):
            root = torch.linalg.cholesky(other.matrix(shift))
            mine = self.matrix(shift)
            white = _solve(root, _solve(root, mine - other.matrix(shift)).mT)
            ratio = torch.linalg.svdvals(_solve(root, torch.linalg.cholesky(mine))).flip(-1).square()
            spread = kl_terms(torch.linalg.eigvalsh((white + white.mT) / 2), ratio).sum(-1)
            moved = _solve(root, rows[..., None])[..., 0].square().sum(-1)
        else:
            mine, its = self.diagonal(shift), other.diagonal(shift)
            spread = kl_terms((mine - its) / its, mine / its).sum(-1)
            moved = (rows.square() / its).sum(-1)
        return 0.5 * (spread + moved)


class Isotropic(Covariance):
    """C = variance I, a number. ValueError unless it is positive."""

    def __init__(self, variance: float) -> None:
        self.variance = float(variance)
        if not 0 < self.variance < math.inf:
            raise ValueError(f"`variance` = {variance!r} of a kernel must be positive and finite")

    def disturb(self, x: Tensor, seed: int, draw: int, first: int) -> None:
        combine([x], [1.0], noise=Noise(math.sqrt(self.variance), seed, draw, first), out=x)

    def log_prob(self, residual: Tensor) -> Tensor:
        rows = residual.flatten(1).double()
        return -0.5 * (rows.square().sum(1) / self.variance + rows.shape[1] * math.log(2 * math.pi * self.variance))

    def diagonal(self, like: Tensor) -> Tensor:
        d = math.prod(like.shape[1:])
        return torch.full((1, d), self.variance, dtype=torch.float64, device=like.device)

    def __repr__(self) -> str:
        return f"Isotropic({self.variance:.6g})"


class Diagonal(Covariance):
    """C = diag(variances): one for each element, (*shape), or for each element of each sample, (batch, *shape).

    A size of 1 in (batch, *shape) stands for all: (batch, 1, ..., 1) is one variance a sample. ValueError unless positive.
    """

    def __init__(self, variances: Tensor) -> None:
        _check_positive("variances", variances)
        self.variances = variances

    def disturb(self, x: Tensor, seed: int, draw: int, first: int) -> None:
        z = _normals(x, seed, draw, first)
        x.add_(z.mul_(self.variances.to(z.device).sqrt()))

    def log_prob(self, residual: Tensor) -> Tensor:
        v = self.diagonal(residual)
        rows = residual.flatten(1).double()
        return -0.5 * (rows.square() / v + (2 * math.pi * v).log()).sum(1)

    def diagonal(self, like: Tensor) -> Tensor:
        v = self.variances.to(like.device, torch.float64)
        v = v.expand(max(len(v), 1), *like.shape[1:]) if v.ndim == like.ndim else v.expand(like.shape[1:])[None]
        return v.flatten(1)

    def __repr__(self) -> str:
        return f"Diagonal of shape {tuple(self.variances.shape)}"


class Full(Covariance):
    """C any positive definite matrix: (d, d), or (batch, d, d) for one a sample. ValueError where it is not.

    Noise costs a matrix product of d^2 a sample and the root d^3 once: for small d.
    """

    def __init__(self, covariance: Tensor) -> None:
        if covariance.ndim not in (2, 3) or covariance.shape[-1] != covariance.shape[-2]:
            raise ValueError(f"`covariance` has shape {tuple(covariance.shape)}; pass (d, d) or (batch, d, d)")
        bad = int((~covariance.isfinite()).sum())
        if bad:
            raise ValueError(
                f"`covariance` must be finite, but {bad} of its {covariance.numel()} entries are NaN or infinite"
            )
        self.covariance = covariance.double()
        self.root, failed = torch.linalg.cholesky_ex(self.covariance)
        if bool(failed.any()):
            least = float(torch.linalg.eigvalsh(self.covariance).min())
            raise ValueError(f"`covariance` is not positive definite: its smallest eigenvalue is {least:.6g}")

    def disturb(self, x: Tensor, seed: int, draw: int, first: int) -> None:
        z = _normals(x, seed, draw, first).flatten(1)
        root = self.root.to(z.device, z.dtype)
        x.add_((root @ z[..., None])[..., 0].view(x.shape) if root.ndim == 3 else (z @ root.mT).view(x.shape))

    def log_prob(self, residual: Tensor) -> Tensor:
        rows = residual.flatten(1).double()
        root = self.root.to(rows.device)
        white = _solve(root, rows[..., None])[..., 0]
        log_det: Tensor = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (white.square().sum(-1) + rows.shape[1] * math.log(2 * math.pi)) - log_det

    def diagonal(self, like: Tensor) -> Tensor:
        variances: Tensor = self.matrix(like).diagonal(dim1=-2, dim2=-1)
        return variances

    def matrix(self, like: Tensor) -> Tensor:
        C = self.covariance.to(like.device)
        return C if C.ndim == 3 else C[None]

    def __repr__(self) -> str:
        return f"Full of shape {tuple(self.covariance.shape)}"


def check_form(form: str) -> None:
    """ValueError for a form of covariance that is none of FORMS."""
    if form not in FORMS:
        raise ValueError(f"`form` = {form!r} is no form of a covariance; {nearest(form, FORMS)}")


def of_form(form: str, cov: Tensor) -> Covariance:
    """The covariance of that form nearest to `cov` (d, d) in KL(N(m, cov) || N(m, .)): itself, its diagonal, or its mean."""
    check_form(form)
    if form == "full":
        return Full(cov)
    return Diagonal(cov.diagonal()) if form == "diagonal" else Isotropic(float(cov.diagonal().mean()))


def pack(covariances: Sequence[Covariance]) -> Tensor:
    """Covariances of one form as one tensor, float64: variances (N,), (N, *shape), or matrices (N, d, d)."""
    values = {Isotropic: "variance", Diagonal: "variances", Full: "covariance"}
    return torch.stack([torch.as_tensor(getattr(c, values[type(c)])).double().cpu() for c in covariances])


def unpack(form: str, packed: Tensor) -> list[Covariance]:
    """The covariances of that form that `pack` wrote."""
    check_form(form)
    if form == "scalar":
        return [Isotropic(v) for v in packed.tolist()]
    return [Full(c) if form == "full" else Diagonal(c) for c in packed]


def _normals(x: Tensor, seed: int, draw: int, first: int) -> Tensor:
    return normal(tuple(x.shape), seed, draw, first, dtype=accumulation(x.dtype), device=x.device)


def _check_positive(name: str, values: Tensor) -> None:
    wrong = ~((values > 0) & values.isfinite())
    if bool(wrong.any()):
        bad = values[wrong]
        raise ValueError(
            f"`{name}` of a kernel must be positive and finite, but {len(bad)} of {values.numel()} are not, such as "
            f"{float(bad[0]):.6g}"
        )


def _solve(root: Tensor, a: Tensor) -> Tensor:
    """root^-1 a, root lower triangular."""
    solved: Tensor = torch.linalg.solve_triangular(root, a, upper=False)
    return solved
