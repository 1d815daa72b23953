"""The Schrödinger bridge between two weighted point sets, by Sinkhorn's algorithm from POT."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.solvers.problems import SDE
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.covariance import float64, whole_number
from halfbridge.solvers.reference.mixture import GaussianMixture, checked_weights
from halfbridge.solvers.reference.pinned import Pinned
from halfbridge.solvers.reference.posterior import Isotropic
from halfbridge.solvers.reference.views import flat_rows

__all__ = ["MarginalErrors", "StaticBridge", "static_bridge"]


class MarginalErrors(NamedTuple):
    """sum_i |sum_j pi_ij - mu_i| and sum_j |sum_i pi_ij - nu_j|."""

    x0: float
    x1: float


class StaticBridge:
    """The bridge between sum_i mu_i delta_{x_i} at 0 and sum_j nu_j delta_{y_j} at T; `static_bridge` makes it.

    x0 (n, d), x1 (m, d), weights0 = mu (n,), weights1 = nu (m,), float64.
    coupling      pi_ij = exp(f_i + g_j - |y_j - alpha x_i|^2 / (2 V)), (n, m), with X_T | X_0 ~ N(alpha X_0, V I)
    potentials    (f, g), (n,) and (m,); -inf at a point of weight 0, else determined up to one constant, f + c and g - c
    iterations    of Sinkhorn; errors: what is left of the two marginal conditions, as sums over the points
    """

    def __init__(
        self,
        pinned: Pinned,
        points: tuple[Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        f: Tensor,
        g: Tensor,
        iterations: int,
    ) -> None:
        self._pinned, self.reference = pinned, pinned.process
        (self.x0, self.x1), (self.weights0, self.weights1) = points, weights
        self.potentials, self.iterations = (f, g), iterations
        with torch.inference_mode(False):
            self.coupling = (f[:, None] + g + _log_kernel(pinned, self.x0, self.x1)).exp()
            self._cloud0, self._cloud1 = _cloud(self.x0, f), _cloud(self.x1, g)

    @property
    def dim(self) -> int:
        """d."""
        return self.x0.shape[1]

    @property
    def errors(self) -> MarginalErrors:
        """Distances of the coupling's marginals from the weights."""
        rows, columns = self.coupling.sum(1) - self.weights0, self.coupling.sum(0) - self.weights1
        return MarginalErrors(float(rows.abs().sum()), float(columns.abs().sum()))

    def marginal(self, t: float) -> GaussianMixture:
        """The law of X_t, 0 <= t <= T: the pi-mixture of the n m Gaussians of the reference pinned at x_i and y_j."""
        pin = self._pinned.between(0.0, self._pinned.time(t))
        means = pin.start * self.x0[:, None] + pin.end * self.x1
        weights = self.coupling / self.coupling.sum()
        return GaussianMixture(weights.reshape(-1), means.reshape(-1, self.dim), pin.variance)

    def forward_drift(self, t: float, x: Tensor) -> Tensor:
        """f(t, x) = a x + g^2 A/w (sum_j w_j y_j - A x), w_j proportional to e^{g_j} N(y_j; A x, w I), 0 <= t < T.

        (A, w) is the transition from t to T, and the weights go through log-sum-exp. x (batch, *shape), prod(shape) = d;
        computed in float64, in x's dtype. ValueError at T, where the drift towards points is infinite.
        """
        t = self._pinned.time(t)
        gain, w = self._pinned.step(t, self._pinned.T)
        if w == 0.0:
            raise ValueError(
                f"forward_drift at t = {t:.6g} is infinite: the law of X_T is points; end the grid before T"
            )
        rows = flat_rows(x, self.dim)
        aim = self._cloud1.field("data", gain * rows, 1.0, math.sqrt(w))
        return self._pinned.drift(t, x, rows, gain / w * (aim - gain * rows))

    def backward_drift(self, t: float, x: Tensor) -> Tensor:
        """b(t, x) = a x + g^2/v (x - alpha_t sum_i w_i x_i), w_i proportional to e^{f_i} N(x; alpha_t x_i, v I), 0 < t <= T.

        (alpha_t, v) is the transition from 0 to t. In forward-time sign, f - g^2 grad log p_t, for grids that decrease.
        ValueError at 0, where it is infinite.
        """
        t = self._pinned.time(t)
        alpha, v = self._pinned.step(0.0, t)
        if v == 0.0:
            raise ValueError(
                f"backward_drift at t = {t:.6g} is infinite: the law of X_0 is points; end the grid before 0"
            )
        rows = flat_rows(x, self.dim)
        origin = self._cloud0.field("data", rows, alpha, math.sqrt(v))
        return self._pinned.drift(t, x, rows, (rows - alpha * origin) / v)

    def forward_sde(self) -> SDE:
        """dX = forward_drift dt + g dW, for increasing grids in [0, T)."""
        return SDE(self.forward_drift, self.reference.diffusion, runs="increasing")

    def backward_sde(self) -> SDE:
        """dX = backward_drift dt + g dW in forward-time sign, for decreasing grids in (0, T]."""
        return SDE(self.backward_drift, self.reference.diffusion, runs="decreasing")

    def sample_paths(self, n: int, times: Sequence[float] | NDArray[Any] | Tensor, seed: int, first: int = 0) -> Tensor:
        """n exact paths at `times` in [0, T], strictly monotone: (len(times), n, d), float64.

        A pair of ends from the coupling, then the pinned reference as in GaussianBridge.sample_paths; path i depends on
        `seed`, its global index first + i and the times only.
        """
        times = self._pinned.times(times)
        ends = torch.cat([self.x0[:, None].expand(-1, len(self.x1), -1), self.x1.expand(len(self.x0), -1, -1)], 2)
        pairs = GaussianMixture((self.coupling / self.coupling.sum()).reshape(-1), ends.reshape(-1, 2 * self.dim), 0.0)
        drawn = pairs.sample(n, seed, first)
        return self._pinned.paths(drawn[:, : self.dim], drawn[:, self.dim :], times, seed, first)

    def __repr__(self) -> str:
        n, m = self.coupling.shape
        return f"StaticBridge({n} x {m} points, dim={self.dim}, {self.reference!r}, error {max(self.errors):.2g})"


def static_bridge(
    x0: Any,
    x1: Any,
    reference: Process,
    weights0: Any = None,
    weights1: Any = None,
    tol: float = 1e-9,
    max_iterations: int = 10_000,
) -> StaticBridge:
    """argmin KL(pi || mu(x) N(y; alpha x, V I)) over the couplings of two weighted point sets, and the bridge it spans.

    x0 (n, d), x1 (m, d): samples or grid points of the laws at 0 and at T = reference.T, array-like; (n,) is read as d = 1.
    weights0 (n,), weights1 (m,): nonnegative, summing to 1; equal weights without. tol: iterations stop where the
    Euclidean norm of the error of the second marginal is below it (the first is then exact to rounding; POT looks at every
    tenth). Memory: a few (n, m) float64 matrices. This is entropic optimal transport with cost |y - alpha x|^2 and
    regularisation 2 V; the error shrinks by rho^2 an iteration, rho -> 1 as V -> 0 (see GaussianBridge.correlations).

    Runs `ot.bregman.sinkhorn_log` of POT in the log domain. ImportError without POT (pip install 'halfbridge[transport]');
    ValueError for bad points or weights; a RuntimeWarning where max_iterations do not reach tol.
    Cuturi 2013; Peyré and Cuturi 2019; De Bortoli et al. 2021.
    """
    pinned = Pinned(reference)
    with torch.inference_mode(False):
        points = (_points("x0", x0), _points("x1", x1))
        if points[0].shape[1] != points[1].shape[1]:
            got = [tuple(p.shape) for p in points]
            raise ValueError(
                f"`x0` has shape {got[0]} and `x1` {got[1]}; both live in the same dimension, the second entry"
            )
        weights = (_weights("weights0", weights0, len(points[0])), _weights("weights1", weights1, len(points[1])))
        if not isinstance(tol, (int, float)) or not tol > 0:
            raise ValueError(f"`tol` = {tol!r} must be a positive number; pass 1e-9, say")
        limit = whole_number("max_iterations", max_iterations, " (10000, say)")
        f, g, iterations = _sinkhorn(-_log_kernel(pinned, *points), *weights, float(tol), limit)
        return StaticBridge(pinned, points, weights, f, g, iterations)


def _sinkhorn(cost: Tensor, mu: Tensor, nu: Tensor, tol: float, max_iterations: int) -> tuple[Tensor, Tensor, int]:
    """(f, g, iterations): exp(f_i + g_j - cost_ij) has the marginals mu, nu."""
    ot = _pot()
    # log 0 = -inf is right for a point of weight 0; POT also makes e^f and e^g, which overflow and are not used
    with np.errstate(divide="ignore", over="ignore"):
        _, log = ot.bregman.sinkhorn_log(
            mu.numpy(), nu.numpy(), cost.numpy(), 1.0, numItermax=max_iterations, stopThr=tol, log=True, warn=False
        )
    error = float(log["err"][-1])
    if not error < tol:
        warnings.warn(
            f"Sinkhorn stopped after `max_iterations` = {max_iterations} with a marginal error of {error:.3g}, above `tol` = "
            f"{tol:.3g}; raise max_iterations, or pass a reference with more noise: it converges slowly where that is small",
            RuntimeWarning,
            stacklevel=3,
        )
    f, g = (torch.from_numpy(np.array(log[name])) for name in ("log_u", "log_v"))
    return f, g, int(log["niter"]) + 1


def _pot() -> Any:
    try:
        import ot  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            "static_bridge needs POT (Python Optimal Transport), which is not installed: pip install 'halfbridge[transport]'; "
            "GaussianBridge and gaussian_ipf need nothing"
        ) from error
    return ot


def _log_kernel(pinned: Pinned, x0: Tensor, x1: Tensor) -> Tensor:
    """-|x1_j - alpha x0_i|^2 / (2 V), (n, m), from differences."""
    return -torch.cdist(pinned.alpha * x0, x1, compute_mode="donot_use_mm_for_euclid_dist").square() / (
        2 * pinned.variance
    )


def _points(name: str, value: Any) -> Tensor:
    points = float64(name, value)[0]
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or not points.numel():
        raise ValueError(
            f"`{name}` must have shape (n, d), one point a row, got {tuple(points.shape)}; flatten each sample"
        )
    return points


def _weights(name: str, value: Any, n: int) -> Tensor:
    if value is None:
        return torch.full((n,), 1.0 / n, dtype=torch.float64, device="cpu")
    weights = checked_weights(name, value)
    if len(weights) != n:
        raise ValueError(f"`{name}` must have shape ({n},), one weight a point, got {tuple(weights.shape)}")
    return weights


def _cloud(x: Tensor, potential: Tensor) -> Isotropic:
    """The points as a mixture with weights e^potential, without those of weight 0."""
    live = potential > -math.inf
    return Isotropic(potential[live], x[live], torch.zeros_like(potential[live]))
