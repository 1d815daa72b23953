"""Half-bridges fitted by affine means: in expectation between Gaussians, or by least squares on simulated paths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halfbridge.solvers.reference.covariance import whole_number
from halfbridge.training.bridge.affine import AffineTransitions, affine_map, gaussian_chain, probes
from halfbridge.training.bridge.covariances import check_form, of_form
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.targets import Pair, Target, check_target
from halfbridge.training.bridge.transitions import Transitions

__all__ = ["AffineRegressor", "least_squares"]


@dataclass(frozen=True)
class AffineRegressor:
    """The best affine kernels of a half-bridge, step by step.

    variance    "fixed": 2 gamma I, what DSB learns. "matched": the conditional covariance of each reverse kernel, around the
                exact conditional mean
    target      of the regression of the mean, a name of `TARGETS`; default "mean" for fixed and "increment" for matched kernels
    form        of a matched covariance: "full", "diagonal" (its diagonal) or "scalar" (the mean of its diagonal times I): of that
                form the nearest to the reverse kernel in KL, KL(reverse kernel || fitted)
    paths       None: regressed in expectation, which takes affine kernels from an hb.reference.Gaussian. A number: ordinary least
                squares on as many simulated paths, from any law and any teacher
    seed        of the paths, fresh ones for each half-bridge

    Between Gaussians with paths=None, `ipf` then is exact: matched full covariances give exact discrete IPF, whose limit is the
    chain's Schrödinger bridge, and fixed ones the recursion of DSB, which leaves the bridge's coupling by O(gamma) an iteration.
    Matched kernels of any form keep every mean. A diagonal covariance keeps the variances of a step's coordinates, a scalar one
    their sum, and no more: the correlations that they leave out, O(gamma) over a chain, move the coupling as far as fixed
    variances do, unless the reverse kernels' covariances are of that form (independent coordinates, multiples of I).
    Raises ValueError for an unknown variance, target or form, for paths < 1, and in fit for fewer than determine what is fitted.
    """

    variance: str = "fixed"
    target: str | None = None
    form: str = "full"
    paths: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_target(self._target, self.variance)
        check_form(self.form)
        if self.paths is not None:
            whole_number("paths", self.paths, " (or None to regress in expectation)")

    @property
    def _target(self) -> str:
        return self.target or ("mean" if self.variance == "fixed" else "increment")

    def fit(self, half: HalfBridge) -> Transitions:
        """Kernels of the direction `half.direction` with affine means."""
        target = check_target(self._target, self.variance)
        fits = self._expected(half, target) if self.paths is None else self._sampled(half, target)
        order = sorted(fits)
        gain, offset = (torch.stack([fits[j][part] for j in order]) for part in (0, 1))
        spreads = None if self.variance == "fixed" else [of_form(self.form, fits[j][2]) for j in order]
        return AffineTransitions(half.reference, half.direction, gain, offset, spreads)

    def _expected(self, half: HalfBridge, target: Target) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Every target is affine in `there`, so its mean given `here` is its value at the mean of `there`."""
        chain, teacher = gaussian_chain(half.law), half.law.transitions
        reverse = chain.backward if half.direction is Direction.BACKWARD else chain.forward
        at = probes(chain.means.shape[1])
        fits = {}
        for k in half.direction.leaves(half.reference.steps):
            j, label = half.direction.interval(k), half.direction.arrives(k)
            there = at @ reverse.gain[j].mT + reverse.offset[j]
            at_there, at_here = (teacher.mean(label, x) if target.teacher else None for x in (there, at))
            learned = target.value(Pair(k, at, there, at_there, at_here, teacher.gamma(label)))
            fits[j] = (*self._mean(half, target, k, at, learned), reverse.cov[j])
        return fits

    def _sampled(self, half: HalfBridge, target: Target) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Means, and the mean squares of what they leave, over the same paths: less those that d + 1 coefficients fit, unbiased
        where the conditional mean is affine."""
        fits, d = {}, math.prod(half.law.begin(1, self.seed).shape[1:])
        free = (self.paths or 0) - d - 1
        least = d if self.form == "full" else 1
        if self.variance == "matched" and free < least:
            raise ValueError(
                f"`paths` = {self.paths} do not determine a {self.form} covariance in {d} dimensions beside an affine mean; pass "
                f"{d + 1 + least} or more"
            )
        for pair in half.pairs(self.paths or 0, self.seed, means=target.teacher):
            here, there = (x.flatten(1).double() for x in (pair.here, pair.there))
            at = probes(here.shape[1])
            learned = least_squares(here, target.value(pair).flatten(1).double())
            gain, offset = self._mean(half, target, pair.k, at, learned)
            left = there - here @ gain.mT - offset
            fits[half.direction.interval(pair.k)] = (gain, offset, left.mT @ left / max(1, free))
        return fits

    def _mean(self, half: HalfBridge, target: Target, k: int, at: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
        """(gain, offset) of the kernel's mean, from the values at the probes of what was learned."""
        teacher, label = half.law.transitions, half.direction.arrives(k)
        stays = teacher.terms(label, at) if target.teacher_stays else None
        vectors, coefficients = target.mean(at, learned, stays, teacher.gamma(label))
        values = torch.zeros_like(at)
        for vector, coefficient in zip(vectors, coefficients, strict=True):
            values += coefficient * vector
        return affine_map(values)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The affine map x -> y (batch, d) of least squares, by its values at `probes`. ValueError for fewer rows than d + 1."""
    n, d = x.shape
    if n <= d:
        raise ValueError(f"{n} paths do not determine an affine map in {d} dimensions; pass `paths` of {d + 1} or more")
    design = torch.cat([x, torch.ones(n, 1, dtype=x.dtype, device=x.device)], 1)
    solution: Tensor = torch.linalg.lstsq(design, y).solution.cpu()
    return probes(d) @ solution[:d] + solution[d]
