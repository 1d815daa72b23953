"""What the kernels of a half-bridge are regressed onto.

Pairs come from a chain with kernels N(M(there), 2 gamma I) that was run from `there` to `here`; the kernels to be fitted lead
back. So for backward kernels (De Bortoli et al. 2021, eq. 12) here = X_{k+1}, there = X_k, M = F_k, and for forward kernels
(eq. 13) here = X_k, there = X_{k+1}, M = B_{k+1}. Expectations are over the joint law of the pair. M is the teacher, called with
its own label, that of `there`, at both points: F_k(X_k) and F_k(X_{k+1}), B_{k+1}(X_{k+1}) and B_{k+1}(X_k).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from halfbridge.solvers.nearest import nearest
from halfbridge.training.bridge.transitions import Sum

__all__ = [
    "TARGETS", "Pair", "Target", "check_target", "drift_matching", "increment", "mean_matching", "score_matching",
    "target_named", "variance_ratio",
]  # fmt: skip


VARIANCES = ("fixed", "matched")


class Pair(NamedTuple):
    """States (batch, *shape) of two neighbouring times, with the teacher's means where the target needs them."""

    k: int
    """The label of `here`: the k of the step to be learned."""
    here: Tensor
    there: Tensor
    teacher_there: Tensor | None
    """M(there), the mean that `here` was drawn around."""
    teacher_here: Tensor | None
    """M(here)."""
    gamma: float


def mean_matching(here: Tensor, there_mean: Tensor, here_mean: Tensor) -> Tensor:
    """here + M(there) - M(here); its conditional mean given `here` is the mean of the new kernel.

    Eqs 12 and 13. With Gaussian noise of variance 2 gamma, E[M(there) | here] = here + 2 gamma grad log p(here), so the minimiser
    is 2 x - M(x) + 2 gamma grad log p(x). It differs from E[there | here] by gamma E[m(there) - m(here) | here] = O(gamma^2),
    M(x) = x + gamma m(x).
    """
    return here + (there_mean - here_mean)


def drift_matching(there_mean: Tensor, here_mean: Tensor, gamma: float) -> Tensor:
    """(M(there) - M(here))/gamma, regressed by a drift b: the new mean is x + gamma b(x). The minimiser of mean matching."""
    return (there_mean - here_mean) / gamma


def score_matching(here: Tensor, there_mean: Tensor, gamma: float) -> Tensor:
    """-(here - M(there))/(2 gamma), the gradient of log p(here | there): its conditional mean is s = grad log p(here).

    The new mean is 2 x - M(x) + 2 gamma s(x), the minimiser of mean matching once more. It calls M, so that the kernels of one
    iteration keep those of every iteration before. With the reference as teacher this is denoising score matching over one
    step; grad log p(here | x_0) has the same conditional mean.
    """
    return (there_mean - here) / (2.0 * gamma)


def increment(there: Tensor) -> Tensor:
    """`there` itself: its conditional mean is the exact mean of the time reversal, whatever the covariance of the teacher."""
    return there


def variance_ratio(there: Tensor, mean: Tensor, gamma: float) -> Tensor:
    """(there - mean)^2/(2 gamma), element by element, where `mean` is the new kernel's at `here`: the second regression.

    2 gamma times its conditional mean is the best diagonal variance for that very mean, errors of it included (Bao et al. 2022b,
    NPR-DPM, for a general chain); for an exact mean it is diag Cov(there | here). Near 1 for small steps, and positive. The
    mean over elements is the best multiple of I (Bao et al. 2022a), and the matrix (there - mean)(there - mean)^T the full one.
    """
    return (there - mean).square() / (2.0 * gamma)


class Target(NamedTuple):
    """A regression: its targets, and how the kernel's mean follows from what was learned."""

    value: Callable[[Pair], Tensor]
    mean: Callable[[Tensor, Tensor, Sum | None, float], Sum]
    """(x, learned(x), the teacher's M(x), gamma) -> the mean of the new kernel at x, as a sum."""
    teacher: bool
    """Whether the value needs M(there) and M(here)."""
    teacher_stays: bool
    """Whether the mean needs M(x)."""


def _given(mean: Tensor | None) -> Tensor:
    if mean is None:
        raise ValueError("this target needs the teacher's means, and the pair has none; ask for pairs with means=True")
    return mean


def _score_mean(x: Tensor, learned: Tensor, teacher: Sum | None, gamma: float) -> Sum:
    if teacher is None:
        raise ValueError("the mean that follows from a score needs the teacher's mean at x; pass it")
    return Sum([x, learned], [2.0, 2.0 * gamma]).plus(teacher.times(-1.0))


TARGETS: dict[str, Target] = {
    "mean": Target(
        lambda p: mean_matching(p.here, _given(p.teacher_there), _given(p.teacher_here)),
        lambda x, learned, teacher, gamma: Sum([learned], [1.0]),
        teacher=True,
        teacher_stays=False,
    ),
    "drift": Target(
        lambda p: drift_matching(_given(p.teacher_there), _given(p.teacher_here), p.gamma),
        lambda x, learned, teacher, gamma: Sum([x, learned], [1.0, gamma]),
        teacher=True,
        teacher_stays=False,
    ),
    "score": Target(
        lambda p: score_matching(p.here, _given(p.teacher_there), p.gamma),
        _score_mean,
        teacher=True,
        teacher_stays=True,
    ),
    "increment": Target(
        lambda p: increment(p.there),
        lambda x, learned, teacher, gamma: Sum([learned], [1.0]),
        teacher=False,
        teacher_stays=False,
    ),
}
"""By name. "mean", "drift" and "score" have one minimiser, for kernels of the variance 2 gamma; "mean" and "drift" are one loss
even where networks are trained with the weighting "kl" (see `Regression`). "increment" is the exact conditional mean, which
"matched" kernels take (with "fixed" ones it keeps the means of the end laws exact, and the coupling is far off)."""


def target_named(name: str) -> Target:
    """The target of that name; ValueError for another."""
    if name not in TARGETS:
        raise ValueError(f"`target` = {name!r} is no target of a half-bridge; {nearest(name, TARGETS)}")
    return TARGETS[name]


def check_target(name: str, variance: str) -> Target:
    """`target_named`; ValueError for one that kernels of `variance` cannot take, too."""
    target = target_named(name)
    if variance not in VARIANCES:
        raise ValueError(f"`variance` = {variance!r} is no variance of kernels; {nearest(variance, VARIANCES)}")
    if variance == "matched" and name != "increment":
        raise ValueError(
            f"`target` = {name!r} holds for kernels of the variance 2 gamma; with variance='matched' pass target='increment', "
            "the exact conditional mean"
        )
    return target
