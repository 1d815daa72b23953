"""The second regression: covariances of kernels around means that are fitted already."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from halfbridge.solvers.reference.covariance import whole_number
from halfbridge.training.bridge.covariances import Covariance, Diagonal, Full, Isotropic, check_form
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.targets import Pair, variance_ratio
from halfbridge.training.bridge.transitions import Transitions
from halfbridge.training.workers import ALONE, Workers, finite_in_all

__all__ = ["NotFitted", "check_paths", "residual_covariances", "variance_factors"]


class NotFitted(FloatingPointError):
    """The kernels that are being fitted have no covariances; the paths that these are taken of are finite."""


def residual_covariances(
    half: HalfBridge,
    means: Transitions,
    form: str,
    n: int,
    seed: int,
    first: int = 0,
    chunk: int = 8192,
    workers: Workers = ALONE,
) -> list[Covariance]:
    """E[(there - M(here)) (there - M(here))^T] of each interval over n paths of the teacher, M the means of `means`: the matched
    covariances that do not depend on the state, [0] between x_0 and x_1.

    form: "full" the matrix (for small d), "diagonal" its diagonal, (*shape), "scalar" the mean of that. These are the best of
    their form for the means as they are, in KL of the teacher's chain to the fitted one (Bao et al. 2022a, 2022b). A variance
    that depends on the state is a regression of `variance_ratio` on `here`.
    Relative standard error sqrt(2/n) of each variance, 1/sqrt(d) of that for a scalar where elements are independent.
    workers: each takes a share of the paths, where they can be divided; the sums are those of one process, to rounding.
    ValueError for means of the other direction, an unknown form, n < 1, and for n <= d paths with "full". FloatingPointError, in
    all processes, for paths that are not finite, and NotFitted, which is one, where an estimate is not positive definite all
    the same.
    """
    check_form(form)
    whole_number("n", n)
    whole_number("chunk", chunk)
    if means.direction is not half.direction:
        raise ValueError(f"`means` are of the {means.direction.value} direction; fit {half.direction.value} ones")
    like = half.law.begin(1, seed, first + n, half.index)  # a path that nothing else takes
    if form == "full":
        check_paths("n", n, like)

    shape = (like.numel(), like.numel()) if form == "full" else tuple(like.shape[1:])

    def of(pair: Pair) -> Tensor:
        with torch.no_grad():
            mean = means.mean(pair.k, pair.here)
        if form == "full":
            left = (pair.there - mean).flatten(1).double()
            return left.mT @ left
        return 2 * pair.gamma * variance_ratio(pair.there, mean, pair.gamma).double().sum(0)

    total = _summed(of, shape, like, half, n, seed, first, chunk, workers)
    return [_estimated(form, c, f"step {j} ({half.direction.value})", n) for j, c in enumerate(total / n)]


def _summed(
    of: Callable[[Pair], Tensor],
    shape: tuple[int, ...],
    like: Tensor,
    half: HalfBridge,
    n: int,
    seed: int,
    first: int,
    chunk: int,
    workers: Workers,
) -> Tensor:
    """of(pair), (*shape), summed over n paths from `first`, interval by interval, (N, *shape) float64. Each process takes a share
    of the paths, where they can be divided. like: a state."""

    def sums(start: int, stop: int) -> Tensor:
        total = torch.zeros(half.reference.steps, *shape, dtype=torch.float64, device=like.device)
        for at in range(start, stop, chunk):
            for pair in half.pairs(min(chunk, stop - at), seed, first + at, means=False):
                total[half.direction.interval(pair.k)] += of(pair)
        return total

    if workers.count == 1 or not half.divisible:
        return sums(0, n)
    start, stop = (n * i // workers.count for i in (workers.index, workers.index + 1))
    total = finite_in_all(workers, lambda: sums(start, stop), lambda: sums(0, n))
    workers.add(total)
    return total


def check_paths(name: str, n: int, like: Tensor) -> None:
    """ValueError for too few paths for the matrices of states like this one, (1, *shape)."""
    d = like.numel()
    if n <= d:
        raise ValueError(
            f"`{name}` = {n} paths do not determine a covariance in {d} dimensions; pass more than {d}, better 10 times as "
            "many, or form='diagonal'"
        )


def _estimated(form: str, c: Tensor, where: str, n: int) -> Covariance:
    try:
        return Full(c) if form == "full" else Diagonal(c) if form == "diagonal" else Isotropic(float(c.mean()))
    except ValueError as error:
        raise NotFitted(
            f"the covariance of {where}, estimated from {n} paths, is none: {error}; take more paths, or another form"
        ) from error


def variance_factors(
    half: HalfBridge,
    fitted: Transitions,
    n: int,
    seed: int,
    first: int = 0,
    chunk: int = 8192,
    workers: Workers = ALONE,
) -> list[float]:
    """E |there - M(here)|^2/E tr C(here) of each interval over n paths of the teacher, M and C the means and covariances of
    `fitted`: 1 where the variances are right. Multiplied by these they are so in the mean over states and elements, which
    keeps the chain's variance, whatever is wrong with how they depend on the state.

    Relative standard error sqrt(2/(n d)) for independent elements. workers: as of `residual_covariances`. ValueError for n < 1;
    FloatingPointError for paths that are not finite, and NotFitted, which is one, where M or C are not.
    """
    whole_number("n", n)
    whole_number("chunk", chunk)

    def of(pair: Pair) -> Tensor:
        with torch.no_grad():
            mean = fitted.mean(pair.k, pair.here)
            try:
                said = fitted.covariance(pair.k, pair.here).diagonal(pair.here).expand(len(mean), -1).sum()
            except FloatingPointError as error:
                raise NotFitted(str(error)) from error
        return torch.stack([(pair.there - mean).double().square().sum(), said])

    like = half.law.begin(1, seed, first + n, half.index)  # a path that nothing else takes
    left, said = _summed(of, (2,), like, half, n, seed, first, chunk, workers).mT.tolist()
    factors = [a / b for a, b in zip(left, said, strict=True)]
    for j, factor in enumerate(factors):
        if not math.isfinite(factor):
            raise NotFitted(
                f"the means of step {j} ({half.direction.value}) are not finite on {n} fresh paths; lower lr, or take more paths"
            )
    return factors
