"""The law of a chain with Gaussian kernels in one dimension, by quadrature: solvers on nonlinear problems without samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halfbridge.solvers.field import Field
from halfbridge.solvers.plan import check_grid
from halfbridge.solvers.problems import SDE
from halfbridge.solvers.reference.covariance import float64
from halfbridge.solvers.reference.nodes import Nodes
from halfbridge.solvers.solver import MultistepSolver, Solver

__all__ = ["Chain", "chain_law", "chain_law_of", "chain_of"]

ENTRIES = 2**16  # of the block of kernel values held at once: it stays in the cache, and leaves out what is far from it
REACH = 37.0  # standard deviations after which a kernel counts as 0
LEAST = -700.0  # exponents are raised to it: exp is ten times slower where it underflows


class Chain(NamedTuple):
    """X_{k+1} = drift(k, X_k) + sqrt(variances[k]) Z, a kernel for each step."""

    drift: Callable[[int, Tensor], Tensor]
    variances: tuple[Any, ...]


def chain_law(
    drift: Callable[[int, Tensor], Tensor], variances: Sequence[Any] | Tensor, x: Any, p0: Any, *, tol: float = 1e-10
) -> Tensor:
    """Density at the nodes after each step of X_{k+1} = drift(k, X_k) + sqrt(variances[k]) Z: (len(variances), n) float64.

    drift      drift(k, x) -> like x, x of shape (n, 1) float64, k = 0, 1, ...
    variances  one entry a step: a positive number, an array (n,) of the variance at each node, or a function of x (n, 1)
    x, p0      uniform axis (n,), and the density of X_0 at its nodes, integral 1
    tol        relative error in L1 that quadrature may add in one step

    Chapman-Kolmogorov, p_{k+1}(y) = int N(y; drift(k, x), v_k(x)) p_k(x) dx by the trapezoidal rule, whose error for smooth
    drifts is about 2 exp(-2 pi^2 w^2/delta^2): rounding once the spacing delta is below 0.7 w, with w^-2 =
    drift'^2/v + 1/Var(p_k), the narrower of the kernel as seen from x and the density. Kinks leave an error of order delta^2.
    The error is measured in each step, from the rule on every second and fourth node. O(n^2) a step, in blocks.
    Raises ValueError where it exceeds `tol`, naming the step and a spacing, and for bad arguments; warns (UserWarning) with
    the mass that leaves the box where this is more than `tol`.
    """
    nodes = Nodes(x)
    if nodes.dim != 1:
        raise ValueError(f"`x` is a pair of axes of {nodes.shape} nodes; chain_law is for one dimension: pass one axis")
    axis = torch.from_numpy(nodes.axes[0])
    delta = float(axis[-1] - axis[0]) / (len(axis) - 1)
    if float((axis.diff() - delta).abs().max()) > 1e-7 * delta:
        raise ValueError(
            f"`x` must be uniform, for the trapezoidal rule to converge fast, but its spacings go from "
            f"{float(axis.diff().min()):.6g} to {float(axis.diff().max()):.6g}; pass torch.linspace(..., dtype=torch.float64)"
        )
    p = torch.from_numpy(nodes.density("p0", p0))
    if not callable(drift):
        raise TypeError(f"drift must be callable as drift(k, x), got {type(drift).__name__}")
    if not isinstance(tol, (int, float)) or not 0.0 < tol < 1.0:
        raise ValueError(f"tol = {tol!r} must be a number in (0, 1)")
    if not isinstance(variances, Sequence) and getattr(variances, "ndim", 0) == 0:
        raise TypeError(
            f"variances = {variances!r} must hold one entry a step; pass [{variances!r}] for a chain of one step"
        )
    rows = []
    for k, variance in enumerate(variances):
        with torch.no_grad():
            mean = _at_nodes(f"drift({k}, x)", drift(k, axis[:, None]), axis)
            v = _at_nodes(f"variances[{k}]", variance(axis[:, None]) if callable(variance) else variance, axis)
        if not bool((v > 0.0).all()):
            i = int(v.argmin())
            raise ValueError(
                f"variances[{k}] is {float(v[i]):.6g} at x = {float(axis[i]):.4g}; a kernel needs a positive variance for its "
                "density to exist: leave a step without noise out of the chain"
            )
        full, half, quarter = _convolved(axis, mean, v.sqrt(), p, delta)
        _check_box(k, axis, mean, v.sqrt(), p * delta, tol)
        error = _quadrature_error(full, half, quarter, delta)
        if error > tol:
            w = _width(axis, mean, v, p * delta)
            raise ValueError(
                f"`x` is too coarse in step {k}: the quadrature's error is about {error:.1e}, and tol = {tol:.1e}; the spacing "
                f"is {delta:.3g}, and 0.7 of the narrowest of kernel and density is about {0.7 * w:.3g}; pass more nodes, or a "
                "larger tol (a drift with kinks converges only as the spacing squared)"
            )
        p = full
        rows.append(p)
    if not rows:
        raise ValueError("`variances` is empty; pass the variance of each step's kernel")
    return torch.stack(rows)


def chain_of(solver: Solver, problem: Field | SDE, grid: Any) -> Chain:
    """The chain that a one-step solver with one normal a step makes on a Field or an SDE: Ancestral, ReverseDiffusion,
    DDIM(eta > 0), EulerMaruyama, or a user's.

    drift(k, x) is step k with its normal at 0, sqrt(v) the response to a normal of 1; both may depend on x. Raises ValueError
    for a multistep solver, for a step with no or several normals, for one that is not affine in its normal (churn, sizes by
    norms) and for a grid that ends at sigma = 0, where the last step is the data prediction, without noise.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver, got {solver!r}")
    if not isinstance(problem, (Field, SDE)):
        raise TypeError(
            f"problem must be a Field or an SDE, got {type(problem).__name__}: a chain of kernels needs noise"
        )
    if isinstance(solver, MultistepSolver):
        raise ValueError(
            f"{solver!r} remembers earlier steps, so its states alone are not a Markov chain; use a one-step solver"
        )
    times = check_grid(problem, grid).tolist()
    solver.check(problem)
    bound = solver.on(problem.process, times)

    def response(k: int, x: Tensor, z: float) -> Tensor:
        count = 0

        def draw(shape: Any = None) -> Tensor:
            nonlocal count
            count += 1
            return torch.full_like(x, z)

        out: Tensor = bound.advance(problem, x, times[k], times[k + 1], draw)[0]
        if count != 1:
            raise ValueError(
                f"{solver!r} draws {count} normals in step {k} (from t = {times[k]:.6g} to {times[k + 1]:.6g}), and a chain of "
                "Gaussian kernels has one a step; end the grid where sigma > 0, and use a stochastic one-step solver"
            )
        return out

    def drift(k: int, x: Tensor) -> Tensor:
        return response(k, x, 0.0)

    def variance(k: int) -> Callable[[Tensor], Tensor]:
        def at(x: Tensor) -> Tensor:
            still, one, two = (response(k, x, z) for z in (0.0, 1.0, -2.0))
            gain = one - still
            if float((two - still + 2.0 * gain).abs().max()) > 1e-9 * float(gain.abs().max() + still.abs().max()):
                raise ValueError(
                    f"step {k} of {solver!r} is not affine in its normal, so its kernel is not Gaussian; the law of such a "
                    "solver is for samples"
                )
            return gain.square()

        return at

    return Chain(drift, tuple(variance(k) for k in range(len(times) - 1)))


def chain_law_of(solver: Solver, problem: Field | SDE, grid: Any, x: Any, p0: Any, *, tol: float = 1e-10) -> Tensor:
    """The law of the solver's state after each step of the grid, (steps, n), on a one-dimensional Field or SDE: nonlinear
    drifts, no samples. `chain_law` of `chain_of`, which say what is refused; p0 is the law at the grid's first time.
    """
    return chain_law(*chain_of(solver, problem, grid), x, p0, tol=tol)


def _at_nodes(name: str, value: Any, axis: Tensor) -> Tensor:
    """`value` as (n,): from (n, 1), (n,) or a number."""
    values = float64(name, value)[0]
    if values.ndim and values.shape not in ((len(axis), 1), (len(axis),)):
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}; give one value a node, ({len(axis)}, 1) or ({len(axis)},)"
        )
    return values.reshape(-1).expand(len(axis)).contiguous()


def _convolved(axis: Tensor, mean: Tensor, std: Tensor, p: Tensor, delta: float) -> Tensor:
    """(3, n): the integral at each y = axis, by the rule on all nodes, on every second, and on every fourth."""
    weights = (p * delta / (math.sqrt(2 * math.pi) * std)).repeat(3, 1)
    weights[:, 0] /= 2
    weights[:, -1] /= 2
    for row, stride in ((1, 2), (2, 4)):
        kept = weights[row, ::stride] * stride
        weights[row] = 0.0
        weights[row, ::stride] = kept
    live = p > 0.0
    out = torch.empty(3, len(axis), dtype=torch.float64)
    rows = max(1, ENTRIES // len(axis))
    for top in range(0, len(axis), rows):
        y = axis[top : top + rows]
        near = live & (mean > y[0] - REACH * std) & (mean < y[-1] + REACH * std)
        kernel = ((y[:, None] - mean[near]) / std[near]).square_().mul_(-0.5).clamp_(min=LEAST).exp_()
        out[:, top : top + rows] = weights[:, near] @ kernel.mT
    return out


def _quadrature_error(full: Tensor, half: Tensor, quarter: Tensor, delta: float) -> float:
    """Estimate of |error of `full`|_1 from the errors e2, e4 of the coarser rules.

    log e falls by the factor log e2/log e4 from one spacing to its half: 4 for Gaussians, where the error is
    2 exp(-c/delta^2), 2 for functions analytic in a strip, nearly 1 where the convergence is algebraic.
    """
    e2, e4 = (float((coarse - full).abs().sum()) * delta for coarse in (half, quarter))
    if e2 < 1e-13:
        return e2
    log2, log4 = math.log(min(e2, 1.9) / 2), math.log(min(e4, 1.9) / 2)
    return 2 * math.exp(log2 * min(4.0, max(1.0, log2 / log4)))


def _check_box(k: int, axis: Tensor, mean: Tensor, std: Tensor, mass: Tensor, tol: float) -> None:
    """Warn where the kernels carry mass out of the box."""
    root = math.sqrt(2.0)
    below = torch.special.erfc((mean - axis[0]) / (root * std)) / 2
    above = torch.special.erfc((axis[-1] - mean) / (root * std)) / 2
    leaving = float((mass * (below + above)).sum())
    if leaving > tol:
        side = (
            f"below {float(axis[0]):.4g}"
            if (mass * below).sum() > (mass * above).sum()
            else f"above {float(axis[-1]):.4g}"
        )
        warnings.warn(
            f"the box is too small: step {k} carries a mass of {leaving:.2g} out of it, most {side}; the densities from here "
            "on lack it; widen `x`",
            stacklevel=3,
        )


def _width(axis: Tensor, mean: Tensor, v: Tensor, mass: Tensor) -> float:
    """The smallest w over the nodes that carry mass, w^-2 = drift'^2/v + 1/Var(p)."""
    slope = torch.gradient(mean, spacing=(axis,))[0]
    centre = (mass * axis).sum() / mass.sum()
    spread = (mass * (axis - centre).square()).sum() / mass.sum()
    carries = mass > 1e-6 * mass.max()
    inverse = slope.square() / v + 1 / spread
    return float(inverse[carries].max() ** -0.5)
