"""The law of an SDE in one or two dimensions, by its Fokker-Planck equation on a grid: deterministic, positive."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbridge.solvers.field import Field
from halfbridge.solvers.plan import check_grid
from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.processes import DiscreteVP
from halfbridge.solvers.reference.fluxes import Generator, Rates, has_noise, rates
from halfbridge.solvers.reference.implicit import Stepper
from halfbridge.solvers.reference.nodes import Array, Nodes

__all__ = ["GridLaws", "fokker_planck"]

BOUNDARIES = ("no-flux", "reflecting", "absorbing")
EDGE = 1e-5  # density at the boundary, relative to the largest, that shows too small a box
PECLET = 1.0  # |f| h/D, as a mean over the mass, above which the fluxes are more upwind than central
BRIEFLY = 0.05  # share of the time during which it may be larger: noise may vanish at an instant


@dataclass(frozen=True, eq=False)
class GridLaws:
    """Laws on a grid: one at each of `times`. Tensors are float64 on the CPU.

    x        the axis, or the pair of axes
    times    (k,) float64 array
    density  (k, *p0.shape), at the nodes, never negative
    mass     (k,), integrals of the densities by the trapezoidal rule (half cells at the ends)
    mean     (k, d), cov (k, d, d), of each density divided by its mass: given survival, with an absorbing boundary
    steps    time steps that were taken
    """

    x: Tensor | tuple[Tensor, Tensor]
    times: np.ndarray[Any, np.dtype[np.float64]]
    density: Tensor
    mass: Tensor
    mean: Tensor
    cov: Tensor
    steps: int
    _nodes: Nodes

    def sample(self, n: int, seed: int, t: float | None = None, first: int = 0) -> Tensor:
        """(n, d) float64 draws from the law at time t (default: the last), given survival.

        From the density interpolated linearly between nodes h apart, which widens variances by h^2/6, by inverting its
        distribution function. Sample i depends on `seed` and first + i only. ValueError where t is not one of `times`.
        """
        index = len(self.times) - 1
        if t is not None:
            index = int(np.abs(self.times - float(t)).argmin())
            if self.times[index] != float(t):
                raise ValueError(
                    f"`t` = {float(t)!r} is not one of `times`; the nearest is times[{index}] = {float(self.times[index])!r}"
                )
        return self._nodes.sample(self.density[index].numpy(), n, seed, first)


def fokker_planck(
    sde: SDE,
    x: Any,
    p0: Any,
    times: Sequence[float] | np.ndarray[Any, Any],
    *,
    boundary: str = "no-flux",
    tol: float = 1e-5,
) -> GridLaws:
    """The law p_t of dX = f(t, X) dt + g(t, X) dW (Ito) at each of `times`, from p0 at times[0]:

        dp/dt = -div(f p) + sum_k d^2(D_k p)/dx_k^2,   D_k = g_k^2/2.

    sde    an hb.SDE on states (n, 1) or (n, 2), any drift(t, x); diffusion a number or a function of t or of (t, x), scalar,
           diagonal, or a matrix with g g^T diagonal. Along times that decrease, what EulerMaruyama does there:
           dX = -f dtau + g dW with tau = -t, so that field.reverse_sde() carries p_T to p_{t_min}.
    x      an axis (n,) of increasing nodes, uniform or not, or a pair of axes; cells reach half way to the next node and end
           at the first and last node
    p0     the density at the nodes, (n,) or (n, m): not negative, integral 1 by the trapezoidal rule to 1e-3
    times  float64, strictly increasing or strictly decreasing; put one on each jump of the drift or the diffusion (those of
           a DiscreteVP's reverse SDE are known)
    boundary  "no-flux": nothing leaves the box, which stands for the whole space: a UserWarning tells where it is too small
           (density at the boundary above 1e-5 of the largest). "reflecting": the same, where the wall is the problem's own
           and no warning is due. "absorbing": p = 0 at the first and last nodes; the mass that has left is 1 - `.mass`.
    tol    bound on the error of time stepping over the whole run, in L1 (twice the total variation), as estimated. It is
           spread evenly over the span, whatever mass is left: long absorbing runs take many steps, so ask for less there

    Space: Scharfetter-Gummel (Chang-Cooper) fluxes, order 2, Ito's drift correction included; steady states without flux are
    exact. Cells must resolve the density, and |f| h < D where there is mass: coarser ones add diffusion, up to |f| h/2,
    and a UserWarning tells where |f| h/D, as a mean over the mass, is above 1 for more than 5 % of the time.
    Time: TR-BDF2, order 2, adaptive, with a limiter. Never negative, and mass is conserved to 1e-12, whatever the step.
    Raises ValueError for a density, axis, time, drift or diffusion that does not fit, naming it; TypeError for a Field or ODE.
    Scharfetter and Gummel 1969; Chang and Cooper 1970; Bank et al. 1985.
    """
    if not isinstance(sde, SDE):
        raise TypeError(_refusal(sde))
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary = {boundary!r} is not one of {', '.join(map(repr, BOUNDARIES))}")
    if not isinstance(tol, (int, float)) or not 0.0 < tol < 1.0:
        raise ValueError(
            f"tol = {tol!r} must be a number in (0, 1): the error in total variation that time stepping may add"
        )
    nodes = Nodes(x)
    density = nodes.density("p0", p0)
    grid = _checked_times(sde, times)
    direction = math.copysign(1.0, grid[1] - grid[0])
    span = abs(float(grid[-1] - grid[0]))
    memory: dict[float, Rates] = {}

    def rates_at(t: float) -> Rates:
        if t not in memory:
            for old in list(memory)[:-3]:
                del memory[old]
            with torch.no_grad():
                memory[t] = rates(sde, nodes, t, direction, boundary == "absorbing")
        return memory[t]

    _check_noise(sde, nodes, grid)
    generator = Generator(nodes)
    edge, volumes = nodes.edge.ravel(), nodes.volumes.ravel()
    m = (density * nodes.volumes).ravel()
    speed = float(np.abs(generator.divergence(generator.flux(rates_at(float(grid[0])), m))).sum())
    rates_at(float(grid[-1]))  # steps stay inside the interval, and would not see what is not finite at its end
    h = min(span, 0.1 * tol ** (1 / 3) / speed) if speed > 0.0 else span
    stepper = Stepper(generator, rates_at, tol / span, h)
    worst = (0.0, float(grid[0]), 0)
    before, coarse, coarsest = float(grid[0]), 0.0, (0.0, 0.0)
    rows = [density]
    for start, end in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        for t, m in _advance(stepper, m, _pieces(sde, start, end)):  # noqa: B020
            upwinding = generator.upwinding(stepper.last, np.where(edge, 0.0, m) if boundary == "absorbing" else m)
            if upwinding > math.tanh(PECLET / 2):
                coarse += abs(t - before)
                coarsest = max(coarsest, (upwinding, t))
            before = t
            p = m / volumes
            at = int(np.argmax(np.where(edge, p, -1.0)))
            worst = max(worst, (float(p[at] / p.max()), t, at))
        p = (m / volumes).reshape(nodes.shape)
        rows.append(np.where(nodes.edge, 0.0, p) if boundary == "absorbing" else p)
    if boundary == "no-flux" and worst[0] > EDGE:
        share, t, at = worst
        warnings.warn(
            f"the box is too small: at t = {t:.6g} the density at its boundary, at x = "
            f"{nodes.shown(np.unravel_index(at, nodes.shape))}, is {share:.2g} of the largest (mass in the boundary's cells at "
            f"the end: {float(m[edge].sum()):.2g}); widen `x`, or pass boundary='reflecting' if the wall is meant",
            stacklevel=2,
        )
    if coarse > BRIEFLY * span:
        upwinding, t = coarsest
        peclet = 2 * math.atanh(upwinding) if upwinding < 1.0 else math.inf
        warnings.warn(
            f"the cells are too coarse for the drift: |f| h/D, as a mean over the mass, is above {PECLET:g} during "
            f"{coarse / span:.0%} of the time (up to {peclet:.3g} at t = {t:.6g}), where the scheme adds diffusion, up to "
            "|f| h/2; pass more nodes, or end `times` before the noise vanishes",
            stacklevel=2,
        )
    return _laws(nodes, grid, rows, stepper.taken)


def _pieces(sde: SDE, start: float, end: float) -> list[float]:
    """start, end and the jumps of the coefficients between: a DiscreteVP has one at each integer."""
    if not isinstance(sde.process, DiscreteVP):
        return [start, end]
    low, high = sorted((start, end))
    jumps = [float(k) for k in range(math.floor(low) + 1, math.ceil(high))]
    return [start, *(jumps if start < end else reversed(jumps)), end]


def _advance(stepper: Stepper, m: Array, times: list[float]) -> Iterator[tuple[float, Array]]:
    """The stepper's steps from the first of `times` to the last, by way of the others."""
    for start, end in pairwise(times):
        for t, m in stepper.advance(m, start, end):  # noqa: B020
            yield t, m


def _laws(nodes: Nodes, times: Array, rows: list[Array], steps: int) -> GridLaws:
    moments = [nodes.moments(p) for p in rows]
    mass, mean, cov = (torch.from_numpy(np.array([row[k] for row in moments])) for k in range(3))
    axes = [torch.from_numpy(a) for a in nodes.axes]
    x = axes[0] if nodes.dim == 1 else (axes[0], axes[1])
    return GridLaws(x, times, torch.from_numpy(np.array(rows)), mass, mean, cov, steps, nodes)


def _refusal(problem: Any) -> str:
    if isinstance(problem, Field):
        return "sde is a Field; pass field.reverse_sde() with decreasing times, or the SDE of its process with increasing ones"
    if isinstance(problem, ODE):
        return (
            "sde is an ODE: without diffusion its law is carried along its solutions, which a grid would smear by |f| h/2; "
            "solve it from samples, or for a field's flow use hb.log_likelihood, or give the SDE with the same marginals"
        )
    return f"sde must be an hb.SDE, got {type(problem).__name__}"


def _checked_times(sde: SDE, times: Any) -> Array:
    """`times` as float64, by the rules for the grid of a run; errors name `times`."""
    try:
        return check_grid(sde, times)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`grid`", "`times`").replace("grid[", "times[")) from None


def _check_noise(sde: SDE, nodes: Nodes, grid: Array) -> None:
    """ValueError where an interval has no noise, judged at three times (g may vanish at one)."""
    for start, end in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        if not any(has_noise(sde, nodes, start + share * (end - start)) for share in (1e-12, 0.37, 1 - 1e-12)):
            raise ValueError(
                f"the diffusion of `sde` is 0 between t = {start:.6g} and {end:.6g}: this is transport without diffusion, which "
                "a grid would smear by |f| h/2; solve it from samples as an ODE"
            )
