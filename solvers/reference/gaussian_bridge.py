"""The Schrödinger bridge between two Gaussians under a linear reference, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.gaussian_coupling import static_coupling
from halfbridge.solvers.reference.pinned import Pinned
from halfbridge.solvers.reference.views import PerDevice, flat_rows

__all__ = ["GaussianBridge", "check_ends", "rank"]


class GaussianBridge:
    """argmin KL(Pi || P) over path laws Pi with X_0 ~ p0, X_T ~ p1, for P: dX = a X dt + g dW of `reference`, any start.

    p0 = N(m_0, S_0), p1 = N(m_1, S_1): Gaussians on R^d, any covariances. reference: any process of this library, or an
    hb.LinearProcess; only its transitions count. p0 sits at time 0, p1 at T = reference.T.

    The law is Gaussian and Markov: the coupling of the ends (`gaussian_coupling`), and between them the reference pinned at
    both (`pinned`). With (A, w) the transition from t to T, (alpha_t, v) that from 0 to t, alpha and V those from 0 to T,
    P = Cov(X_T | X_0), Q = Cov(X_0 | X_T) and m_t the mean at t, the Schrödinger potentials give the drifts
      forward   a x + g^2 [A (m_1 - alpha m_0)/V - A^2 (V - P)(A^2 v P + w V)^-1 (x - m_t)]
      backward  a x + g^2 [A (m_1 - alpha m_0)/V + (V - alpha^2 Q)(v V + alpha_t^2 w Q)^-1 (x - m_t)]
    which subtract no covariances of X_t and hold up to the ends.

    Singular covariances (point masses included) are supported: coupling, marginals, paths and `kl` always exist. The
    forward drift is then infinite at T where S_1 is singular, and the backward drift at 0 where S_0 is; those two calls
    raise ValueError. From a point mass the forward SDE is Föllmer's process, and starts at 0 like any other.

    Raises ValueError unless p0 and p1 are Gaussians of one dimension, TypeError for a `reference` that is no Process.
    Léonard 2014; Chen, Georgiou and Pavon 2016; Bunne et al. 2023.
    """

    def __init__(self, p0: Gaussian, p1: Gaussian, reference: Process) -> None:
        check_ends(p0, p1)
        self._pinned = Pinned(reference)
        self.p0, self.p1, self.reference = p0, p1, reference
        self._ends = static_coupling(p0, p1, self._pinned.alpha, self._pinned.variance)
        with torch.inference_mode(False):
            shift = (p1.mean - self._pinned.alpha * p0.mean) / self._pinned.variance
            self._means = PerDevice(p0.mean, p1.mean, shift)
            self._given_end = PerDevice(*self._ends.left_over_eigen(0))  # Q
            self._given_start = PerDevice(*self._ends.left_over_eigen(1))  # P

    @property
    def dim(self) -> int:
        """d."""
        return self.p0.dim

    @property
    def correlations(self) -> Tensor:
        """Canonical correlations of (X_0, X_T), (d,), descending: the singular values of S_0^(-1/2) C S_1^(-1/2).

        The largest, rho, is the rate of IPF: a sweep of two half-bridges shrinks errors of the mean by rho^2.
        """
        return self._ends.rho

    def coupling(self) -> Gaussian:
        """The law of (X_0, X_T), stacked: 2 d dimensions, with the marginals p0 and p1 exactly."""
        return self._ends.law(self.p0, self.p1)

    def marginal(self, t: float) -> Gaussian:
        """The law of X_t, 0 <= t <= T."""
        return self._at(np.array([self._pinned.time(t)]))

    def joint(self, times: Sequence[float] | NDArray[Any] | Tensor) -> Gaussian:
        """The law of the path at k times, (X_{times[0]}, X_{times[1]}, ...) stacked: k d dimensions.

        times: in [0, T], strictly increasing or decreasing. ValueError otherwise.
        """
        return self._at(self._pinned.times(times))

    def _at(self, times: NDArray[np.float64]) -> Gaussian:
        pins = [self._pinned.between(0.0, float(t)) for t in times]
        start, end = (
            torch.tensor(w, dtype=torch.float64, device="cpu") for w in zip(*[p[:2] for p in pins], strict=True)
        )
        C = self._ends.cross
        crossed = torch.kron(torch.outer(start, end), C)
        cov = torch.kron(torch.outer(start, start), self.p0.cov) + torch.kron(torch.outer(end, end), self.p1.cov)
        cov = cov + crossed + crossed.mT
        cov = cov + torch.kron(self._pinned.covariance(times), torch.eye(self.dim, dtype=torch.float64, device="cpu"))
        mean = torch.outer(start, self.p0.mean) + torch.outer(end, self.p1.mean)
        return Gaussian(mean.reshape(-1), cov)

    def forward_drift(self, t: float, x: Tensor) -> Tensor:
        """f(t, x) of dX = f dt + g dW, which carries p0 at 0 to p1 at T; x (batch, *shape), prod(shape) = d.

        Computed in float64, in x's dtype and on its device. ValueError at t = T where p1 has a singular covariance.
        """
        t = self._pinned.time(t)
        if t == self._pinned.T:
            self._check_full_rank("forward_drift", t, "p1", self.p1)
        v, (gain, w), V = self._pinned.step(0.0, t)[1], self._pinned.step(t, self._pinned.T), self._pinned.variance
        P, vectors = self._given_start(x.device)
        return self._drift(t, x, -(gain**2) * (V - P) / (gain**2 * v * P + w * V), vectors)

    def backward_drift(self, t: float, x: Tensor) -> Tensor:
        """b(t, x) of dX = b dt + g dW run from T down to 0, in forward-time sign: b = f - g^2 grad log p_t.

        It carries p1 at T to p0 at 0, with the path law of the forward SDE; in reversed time the drift is -b. x as in
        `forward_drift`. ValueError at t = 0 where p0 has a singular covariance.
        """
        t = self._pinned.time(t)
        if t == 0.0:
            self._check_full_rank("backward_drift", t, "p0", self.p0)
        (alpha_t, v), w = self._pinned.step(0.0, t), self._pinned.step(t, self._pinned.T)[1]
        alpha, V = self._pinned.alpha, self._pinned.variance
        Q, vectors = self._given_end(x.device)
        return self._drift(t, x, (V - alpha**2 * Q) / (v * V + alpha_t**2 * w * Q), vectors)

    def _drift(self, t: float, x: Tensor, slope: Tensor, vectors: Tensor) -> Tensor:
        """a x + g^2 (A shift + E diag(slope) E^T (x - m_t)), E = `vectors`."""
        rows = flat_rows(x, self.dim)
        mean0, mean1, shift = self._means(x.device)
        pin, gain = self._pinned.between(0.0, t), self._pinned.step(t, self._pinned.T)[0]
        pull = ((rows - pin.start * mean0 - pin.end * mean1) @ vectors * slope) @ vectors.mT
        return self._pinned.drift(t, x, rows, gain * shift + pull)

    def forward_sde(self) -> SDE:
        """dX = forward_drift dt + g dW, for increasing grids in [0, T] from X_0 ~ p0."""
        return SDE(self.forward_drift, self.reference.diffusion, runs="increasing")

    def backward_sde(self) -> SDE:
        """dX = backward_drift dt + g dW in forward-time sign, for decreasing grids in [0, T] from X_T ~ p1."""
        return SDE(self.backward_drift, self.reference.diffusion, runs="decreasing")

    def probability_flow(self) -> ODE:
        """dx/dt = (forward_drift + backward_drift)/2: deterministic, with the marginals of the bridge, either way."""
        return ODE(lambda t, x: (self.forward_drift(t, x) + self.backward_drift(t, x)) / 2)

    def kl(self) -> float:
        """KL(bridge || reference started from p0) in nats: over paths and over the ends alike, they pin to one law.

        Also the least control energy, E int |f - a x|^2 / (2 g^2) dt. inf where p1 has a singular covariance.
        """
        if rank(self.p1) < self.dim:
            return math.inf
        return self._ends.kl(self._pinned.alpha, self._pinned.variance)

    def sample_paths(self, n: int, times: Sequence[float] | NDArray[Any] | Tensor, seed: int, first: int = 0) -> Tensor:
        """n exact paths at `times` (as in `joint`): (len(times), n, d), float64.

        The ends come from `coupling().sample` (draw 0), the k-th time in increasing order from draw k given the time
        before and X_T. Path i depends on `seed`, its global index first + i and the times only, to the last bit.
        """
        ends = self.coupling().sample(n, seed, first)
        return self._pinned.paths(ends[:, : self.dim], ends[:, self.dim :], self._pinned.times(times), seed, first)

    def _check_full_rank(self, call: str, t: float, name: str, law: Gaussian) -> None:
        if rank(law) < self.dim:
            raise ValueError(
                f"{call} at t = {t:.6g} is infinite: `{name}` has a covariance of rank {rank(law)} in {self.dim} dimensions; "
                f"end the grid before it (t_min = {self.reference.t_min:.6g} away, say)"
            )

    def __repr__(self) -> str:
        return (
            f"GaussianBridge(dim={self.dim}, {self.reference!r}, correlations up to {float(self.correlations[0]):.4g})"
        )


def rank(law: Gaussian) -> int:
    """Number of directions in which the law has variance."""
    return int((law.eigenvalues > 0).sum())


def check_ends(p0: Gaussian, p1: Gaussian) -> None:
    """ValueError unless both are Gaussians of one dimension."""
    for name, law in (("p0", p0), ("p1", p1)):
        if not isinstance(law, Gaussian):
            raise ValueError(
                f"`{name}` must be an hb.reference.Gaussian, got {type(law).__name__}: the bridge is closed for those only; "
                "hb.reference.static_bridge takes samples of any law"
            )
    if p0.dim != p1.dim:
        raise ValueError(f"`p1` has dimension {p1.dim}, but `p0` has {p0.dim}; both live on the same space")
