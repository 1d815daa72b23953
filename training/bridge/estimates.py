"""Estimates over simulated paths, with standard errors: KL between chains, and energies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halfbridge.solvers.reference.covariance import whole_number
from halfbridge.training.bridge.chains import PathLaw, Step
from halfbridge.training.bridge.ends import End

__all__ = ["Estimate", "path_energy", "path_kl"]


class Estimate(NamedTuple):
    """A mean over paths and its standard error, the root of the variance over paths by their number."""

    value: float
    std_error: float


def path_kl(law: PathLaw, other: PathLaw, n: int, seed: int, first: int = 0, chunk: int = 8192) -> Estimate:
    """KL(law || other) in nats between two chains in one reference's steps, from n paths of `law`.

    Kernels of one direction: the mean over paths of sum_k KL(N(M_k, C_k) || N(M'_k, C'_k)) at x_k, which is sum_k |M_k - M'_k|^2
    / (4 gamma_k) where both variances are 2 gamma; plus the KL of the starts, 0 where both have the same object. So pi^n and
    pi^{n-2}, one iteration of DSB apart, are compared without any density; so are an iterate and the reference, which makes
    the control energy E int |u|^2/2 dt.
    Kernels of opposite directions (pi^n and pi^{n-1}): the mean of log (law/other) along the path, start densities included:
    both starts need a log_prob. It varies far more: its error is that of a log-density of a whole path.

    n paths first, first + 1, ... of `seed`, `chunk` at a time. Raises ValueError for chains in different steps, for fewer than 2
    paths, and for starts without a log_prob where one is needed.
    """
    mine, its = law.transitions, other.transitions
    if mine.reference.steps != its.reference.steps:
        raise ValueError(
            f"`other` has {its.reference.steps} steps and `law` {mine.reference.steps}; compare chains on one grid"
        )
    same_way = mine.direction is its.direction
    if not same_way or law.start is not other.start:
        for name, start in (("law", law.start), ("other", other.start)):
            if not callable(getattr(start, "log_prob", None)):
                raise ValueError(
                    f"`{name}` starts from {start!r}, which has no log_prob: without densities of the ends, compare iterates "
                    "of one parity, whose kernels run the same way from the same law"
                )

    def between(step: Step) -> Tensor:
        k, x, mean = step.k, step.before, step.mean
        if same_way:
            return mine.covariance(k, x).kl(its.covariance(k, x), mean - its.mean(k, x))
        back, y = mine.direction.arrives(k), step.after
        there = mine.covariance(k, x).log_prob(y - mean)
        return there - its.covariance(back, y).log_prob(x - its.mean(back, y))

    def ends(start: Tensor, end: Tensor) -> Tensor | float:
        if not same_way:
            return _log_prob(law.start, start) - _log_prob(other.start, end)
        return 0.0 if law.start is other.start else _log_prob(law.start, start) - _log_prob(other.start, start)

    return _over_paths(law, n, seed, first, chunk, between, ends)


def path_energy(law: PathLaw, n: int, seed: int, first: int = 0, chunk: int = 8192) -> Estimate:
    """E sum_k |M_k(x_k) - x_k|^2/(4 gamma_k), the kinetic energy of the chain's drift, from n paths.

    For dX = b dt + g dW it tends to E int |b|^2/(2 g^2) dt: for a Brownian reference, in nats, the KL to it from the same start;
    times 2 g^2 the path energy E int |b|^2 dt of Shi et al. 2023. Arguments as of `path_kl`.
    """
    transitions = law.transitions

    def between(step: Step) -> Tensor:
        moved = (step.mean - step.before).flatten(1).double()
        return moved.square().sum(1) / (4 * transitions.gamma(step.k))

    return _over_paths(law, n, seed, first, chunk, between, lambda start, end: 0.0)


def _over_paths(
    law: PathLaw,
    n: int,
    seed: int,
    first: int,
    chunk: int,
    between: Callable[[Step], Tensor],
    ends: Callable[[Tensor, Tensor], Tensor | float],
) -> Estimate:
    """The mean over paths of sum_steps between(step) + ends(start, end)."""
    if whole_number("n", n) < 2:
        raise ValueError("`n` = 1 path has no standard error; pass at least 2")
    totals = []
    with torch.no_grad():
        for at in range(0, n, whole_number("chunk", chunk)):
            start = end = None
            total: Any = 0.0
            for step in law.walk(min(chunk, n - at), seed, first + at):
                start, end = (step.before.clone() if start is None else start), step.after
                total = total + between(step)
            assert start is not None
            assert end is not None
            totals.append((total + ends(start, end)).cpu())
    values = torch.cat(totals)
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(n))


def _log_prob(law: End, x: Tensor) -> Tensor:
    value: Tensor = law.log_prob(x)  # type: ignore[attr-defined]
    return value.double()
