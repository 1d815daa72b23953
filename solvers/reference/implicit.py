"""Implicit time stepping of dm/dt = A(t) m for a Markov generator: second order, adaptive, positive, mass exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from halfbridge.solvers.reference.fluxes import Generator, Rates
from halfbridge.solvers.reference.nodes import Array

__all__ = ["Stepper"]

# TR-BDF2: the trapezoidal rule to t + GAMMA h, then BDF2 to t + h; weights of the stages, and those of order 3
GAMMA = 2.0 - math.sqrt(2.0)
D = GAMMA / 2.0
W = math.sqrt(2.0) / 4.0
WEIGHTS = (W, W, D)
SWEEPS = 24  # of the limiter
EMBEDDED = ((1.0 - W) / 3.0, (3.0 * W + 1.0) / 3.0, D / 3.0)


class Step(NamedTuple):
    """The masses a step later, and its local error in L1, as estimated."""

    m: Array
    error: float


class Stepper:
    """TR-BDF2 (Bank et al. 1985; error estimate of Hosea and Shampine 1996) with a positivity limiter.

    L-stable, order 2. No linear scheme of order 2 keeps every density positive (Bolley and Crouzeix 1978); this one fails on
    features much narrower than sqrt(h D) and under stiff drifts. Where a result has a negative entry, the step is redone as
    backward Euler, an M-matrix solve and so positive for every h, plus as much of the difference of the two schemes' face
    fluxes as no cell is emptied by (a limiter in the manner of Zalesak 1979, lower bound 0). That conserves mass, and what it
    changes counts as error of the step.
    """

    def __init__(self, generator: Generator, rates_at: Callable[[float], Rates], tol: float, h: float) -> None:
        """tol: bound on the local error per unit time, in L1. h: size of the first step to try.

        `taken` counts the accepted steps, `last` is the rates at the end of the last one.
        """
        self.generator, self.rates_at, self.tol, self.h = generator, rates_at, tol, h
        self.taken = 0
        self.last: Rates
        self._inside = (-math.inf, math.inf)
        self._solvers: list[tuple[float, Rates, Any]] = []

    def advance(self, m: Array, start: float, end: float) -> Iterator[tuple[float, Array]]:
        """(time, masses) after each accepted step from `start` to `end` exactly. Steps keep their size where they can, so
        that factors of constant rates serve again. RuntimeError where they would vanish. Rates are taken inside the interval
        only (by 1e-12 of it), so that a jump at `start` or `end` belongs to one side.
        """
        direction = math.copysign(1.0, end - start)
        inset = direction * max(1e-12 * abs(end - start), math.ulp(max(abs(start), abs(end))))
        low, high = sorted((start + inset, end - inset))
        self._inside = (low, high)
        t = start
        while t != end:
            n = math.ceil(abs(end - t) / self.h - 1e-9)
            h, origin = abs(end - t) / n, t
            for i in range(1, n + 1):
                s = end if i == n else origin + direction * i * h
                made = self.step(m, t, direction * h)
                good = made.error <= self.tol * h
                if good:
                    t, m = s, made.m
                    self.taken += 1
                    yield t, m
                change = 0.9 * math.sqrt(self.tol * h / made.error) if made.error > 0.0 else 3.0
                if not good or change > 1.5:
                    self.h = h * min(3.0, max(0.1, change))
                    break
            if self.h < 1e-13 * max(abs(t), abs(end - start)):
                raise RuntimeError(
                    f"the time step has shrunk to {self.h:.3g} at t = {t:.6g}: the drift or the diffusion jumps or blows up "
                    "there; put a time of `times` on the jump, end before it, or raise `tol`"
                )

    def step(self, m: Array, t: float, h: float) -> Step:
        """One step of |h| from t to t + h (h < 0 where times decrease)."""
        a, size = self.generator, abs(h)
        first, last = self._inside
        r0, r1, r2 = (self.rates_at(min(max(s, first), last)) for s in (t, t + GAMMA * h, t + h))
        self.last = r2
        z0 = size * a.divergence(a.flux(r0, m))
        m1 = self._solve(r1, D * size, m + D * z0)
        z1 = (m1 - m) / D - z0
        m2 = self._solve(r2, D * size, m + W * z0 + W * z1)
        z2 = (m2 - m - W * z0 - W * z1) / D
        raw = sum((b - c) * z for b, c, z in zip(WEIGHTS, EMBEDDED, (z0, z1, z2), strict=True))
        error = float(np.abs(self._solve(r2, D * size, raw)).sum())
        result = m2
        if (m2 < 0.0).any():
            low = self._solve(r2, size, m)
            high = W * a.flux(r0, m) + W * a.flux(r1, m1) + D * a.flux(r2, m2)
            result = low + a.divergence(self._limited(low, size * (high - a.flux(r2, low))))
            error += float(np.abs(result - m2).sum())
        # the columns of A sum to 0, so this ratio is 1 up to the rounding of the solves
        return Step(result * (m.sum() / result.sum()), error)

    def _limited(self, low: Array, correction: Array) -> Array:
        """The fluxes `correction`, those out of a cell scaled by a share in [0, 1] that leaves something of its mass `low`.

        A cell may also give what it is sure to receive: shares only grow from one sweep to the next, so each is safe.
        """
        a = self.generator
        out = a.outflow(correction)
        kept = np.zeros_like(correction)
        for _ in range(SWEEPS):
            sure = (1.0 - 1e-9) * (low + a.inflow(kept))
            share = np.minimum(1.0, np.divide(sure, out, out=np.ones_like(out), where=out > 0.0))
            kept = correction * np.where(correction > 0.0, share[a.left], share[a.right])
        return kept

    def _solve(self, rates: Rates, h: float, right: Any) -> Any:
        """(I - h A)^-1 right. Pivots stay on the diagonal: an M-matrix needs no others, and keeps the signs exact."""
        from scipy.sparse.linalg import splu

        for known_h, known, lu in self._solvers:
            if known_h == h and (known is rates or all(map(np.array_equal, known, rates))):
                return lu.solve(right)
        lu = splu(
            self.generator.implicit_matrix(rates, h),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        self._solvers = [*self._solvers[-2:], (h, rates, lu)]
        return lu.solve(right)
