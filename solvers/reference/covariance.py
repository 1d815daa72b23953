"""Checked input for laws, and the eigendecomposition of a covariance."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["EPS", "Eigen", "check_semidefinite", "diagonal_eigen", "eigen", "float64", "symmetric", "whole_number"]

EPS = float(torch.finfo(torch.float64).eps)


class Eigen(NamedTuple):
    """C = vectors diag(values) vectors^T; values (..., d) ascending, none negative; vectors (..., d, d) in columns."""

    values: Tensor
    vectors: Tensor
    diagonal: bool


def float64(name: str, value: Any) -> tuple[Tensor, float]:
    """A float64 CPU copy of array-like `value`, and the ulp of the dtype it came in; ValueError unless finite, real."""
    eps = EPS
    if isinstance(value, Tensor):
        array = value.detach().to("cpu").clone()
    else:
        try:
            array = torch.from_numpy(np.array(value))
        except (TypeError, ValueError) as error:
            got = type(value).__name__
            raise ValueError(f"`{name}` must be numbers in a regular array, got {got}: {error}") from None
    if array.is_complex():
        raise ValueError(f"`{name}` must be real, got {array.dtype}")
    if array.is_floating_point():
        eps = float(torch.finfo(array.dtype).eps)
    array = array.to(torch.float64)
    bad = int((~torch.isfinite(array)).sum())
    if bad:
        raise ValueError(f"`{name}` must be finite, but {bad} of its {array.numel()} entries are NaN or infinite")
    return array, eps


def whole_number(name: str, value: Any, otherwise: str = "") -> int:
    """`value` as an int; ValueError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"`{name}` = {value!r} must be a whole number, at least 1{otherwise}")
    return int(value)


def _tolerance(matrices: Tensor, eps: float) -> Tensor:
    """How far from symmetric and semidefinite rounding may leave each (d, d) matrix: 64 d ulp of its largest entry."""
    return 64 * matrices.shape[-1] * eps * matrices.abs().amax((-2, -1))


def symmetric(name: str, matrices: Tensor, eps: float) -> Tensor:
    """The symmetric part of (..., d, d); ValueError naming the largest asymmetry where it is more than rounding."""
    gap = (matrices - matrices.mT).abs()
    wrong = gap.amax((-2, -1)) > _tolerance(matrices, eps)
    if wrong.any():
        at = [int(i) for i in wrong.nonzero()[0]]
        one = gap[tuple(at)]
        i, j = divmod(int(one.argmax()), one.shape[-1])
        here = "".join(f"[{k}]" for k in at)
        entry = matrices[tuple(at)]
        raise ValueError(
            f"`{name}{here}` must be symmetric, but its entries ({i}, {j}) and ({j}, {i}) are {float(entry[i, j]):.6g} "
            f"and {float(entry[j, i]):.6g}: largest asymmetry {float(one[i, j]):.3g}; pass (C + C.T) / 2 if rounding "
            "made it so"
        )
    return (matrices + matrices.mT) / 2


def check_semidefinite(name: str, matrices: Tensor, eps: float) -> None:
    """ValueError naming the smallest eigenvalue of a symmetric (..., d, d) where it is negative beyond rounding."""
    tol = _tolerance(matrices, eps)
    lifted = matrices + torch.diag_embed(tol[..., None].expand(matrices.shape[:-1]))
    if not torch.linalg.cholesky_ex(lifted).info.any():  # a third of the cost of the eigenvalues
        return
    smallest = torch.linalg.eigvalsh(matrices)[..., 0]
    wrong = smallest < -tol
    if wrong.any():
        at = [int(i) for i in wrong.nonzero()[0]]
        here = "".join(f"[{k}]" for k in at)
        raise ValueError(
            f"`{name}{here}` must be positive semidefinite, but its smallest eigenvalue is "
            f"{float(smallest[tuple(at)]):.6g}; a covariance is E[(x - m)(x - m)^T]"
        )


def diagonal_eigen(matrix: Tensor) -> Eigen | None:
    """The exact decomposition of a diagonal (d, d) matrix, None of any other."""
    values = matrix.diagonal()
    if int(matrix.count_nonzero()) != int(values.count_nonzero()):
        return None
    order = values.argsort(stable=True)
    vectors = torch.eye(values.numel(), dtype=torch.float64, device="cpu")[:, order]
    return Eigen(values[order].clamp(min=0), vectors, True)


def eigen(matrices: Tensor) -> Eigen:
    """Decomposition of (..., d, d), with eigenvalues at most d 2^-52 of the largest set to 0: they are rounding.

    Those of a diagonal matrix are exact and stay.
    """
    values, vectors = torch.linalg.eigh(matrices)
    mixed = matrices.count_nonzero((-2, -1)) != matrices.diagonal(dim1=-2, dim2=-1).count_nonzero(-1)
    floor = mixed * matrices.shape[-1] * EPS * values[..., -1]
    return Eigen(values.where(values > floor.clamp(min=0)[..., None], 0.0), vectors, False)
