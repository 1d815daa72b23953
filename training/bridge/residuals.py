"""The second regression: covariances of kernels around means that are fitted already."""

from __future__ import annotations

import torch
from torch import Tensor

from halfbridge.solvers.reference.covariance import whole_number
from halfbridge.training.bridge.covariances import Covariance, Diagonal, Full, Isotropic, check_form
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.targets import variance_ratio
from halfbridge.training.bridge.transitions import Transitions

__all__ = ["residual_covariances"]


def residual_covariances(
    half: HalfBridge, means: Transitions, form: str, n: int, seed: int, first: int = 0, chunk: int = 8192
) -> list[Covariance]:
    """E[(there - M(here)) (there - M(here))^T] of each interval over n paths of the teacher, M the means of `means`: the matched
    covariances that do not depend on the state, [0] between x_0 and x_1.

    form: "full" the matrix (for small d), "diagonal" its diagonal, (*shape), "scalar" the mean of that. These are the best of
    their form for the means as they are, in KL of the teacher's chain to the fitted one (Bao et al. 2022a, 2022b). A variance
    that depends on the state is a regression of `variance_ratio` on `here`.
    Relative standard error sqrt(2/n) of each variance, 1/sqrt(d) of that for a scalar where elements are independent.
    ValueError for means of the other direction, an unknown form and n < 1.
    """
    check_form(form)
    whole_number("n", n)
    if means.direction is not half.direction:
        raise ValueError(f"`means` are of the {means.direction.value} direction; fit {half.direction.value} ones")
    sums: dict[int, Tensor] = {}
    for at in range(0, n, whole_number("chunk", chunk)):
        for pair in half.pairs(min(chunk, n - at), seed, first + at, means=False):
            with torch.no_grad():
                mean = means.mean(pair.k, pair.here)
            if form == "full":
                left = (pair.there - mean).flatten(1).double()
                total = left.mT @ left
            else:
                total = 2 * pair.gamma * variance_ratio(pair.there, mean, pair.gamma).double().sum(0)
            j = half.direction.interval(pair.k)
            sums[j] = sums[j] + total if j in sums else total
    covariances = [sums[j] / n for j in range(half.reference.steps)]
    if form == "full":
        return [Full(c) for c in covariances]
    return [Diagonal(c) if form == "diagonal" else Isotropic(float(c.mean())) for c in covariances]
