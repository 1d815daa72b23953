"""The reference process held at two ends: weights, covariances and paths of X_t given X_0 and X_T."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.kernels import normal
from halfbridge.solvers.processes import Process

__all__ = ["Pin", "Pinned"]


class Pin(NamedTuple):
    """X_t | X_u = x, X_T = y ~ N(start x + end y, variance I)."""

    start: float
    end: float
    variance: float


class Pinned:
    """dX = a X dt + g dW held at its ends, from the transitions (r, v) of the process alone.

    With (r, v) from u to t, (A, w) from t to T and V the variance from u to T, V = A^2 v + w, so that
      start = r w / V,  end = A v / V,  variance = v w / V
    are products of positive numbers (in terms of alpha and sigma they are differences: alpha_t - r_t alpha_T and so on).
    `alpha`, `variance`: X_T | X_0 ~ N(alpha X_0, variance I). Where sigma(0) > 0 the process is taken from its X_0 on.

    Raises TypeError unless `reference` is a Process.
    """

    def __init__(self, reference: Process) -> None:
        if not isinstance(reference, Process):
            raise TypeError(
                f"`reference` must be a linear process such as hb.Brownian() or hb.OU(), got {type(reference).__name__}; "
                "hb.LinearProcess(alpha, sigma, T, t_min) makes one of two functions"
            )
        self.process, self.T = reference, float(reference.T)
        try:
            self._clean = reference.sigma(0.0) == 0.0
        except ValueError:  # a schedule may have no value at 0 itself, where X_0 is the data
            self._clean = True
        self.alpha, self.variance = self.step(0.0, self.T)

    def step(self, u: float, t: float) -> tuple[float, float]:
        """(r, v) of X_t | X_u ~ N(r X_u, v I) for u <= t."""
        if u == t:
            return 1.0, 0.0
        if u == 0.0 and self._clean:
            return self.process.alpha(t), self.process.sigma(t) ** 2
        return self.process.transition(u, t)

    def between(self, u: float, t: float) -> Pin:
        """The law of X_t given X_u and X_T, u <= t <= T and u < T."""
        (r, v), (gain, w) = self.step(u, t), self.step(t, self.T)
        whole = self.step(u, self.T)[1]
        return Pin(r * w / whole, gain * v / whole, v * w / whole)

    def drift(self, t: float, x: Tensor, rows: Tensor, pull: Tensor) -> Tensor:
        """a x + g^2 pull in x's shape and dtype, from float64 `rows` (batch, d), which are x flattened, and `pull` alike."""
        drift = self.process.drift_rate(t) * rows + self.process.diffusion(t) ** 2 * pull
        return drift.to(x.dtype).reshape(x.shape)

    def time(self, t: float | Tensor) -> float:
        """t as a float; ValueError unless 0 <= t <= T."""
        time = float(t)
        if not 0.0 <= time <= self.T:
            raise ValueError(f"`t` = {time!r} is not a time of this bridge; pass one in [0, T] with T = {self.T:g}")
        return time

    def times(self, times: Sequence[float] | NDArray[Any] | Tensor) -> NDArray[np.float64]:
        """Times as a new float64 array; ValueError unless they lie in [0, T] and run strictly one way."""
        array = np.array(times.detach().cpu().numpy() if isinstance(times, Tensor) else times)
        if array.dtype in (np.float32, np.float16):
            raise ValueError(
                f"`times` has dtype {array.dtype}, in which 0.1 is {float(array.dtype.type(0.1)):.9g}; make them in float64, "
                "such as torch.linspace(0.0, T, 21, dtype=torch.float64)"
            )
        if array.ndim != 1 or not array.size or array.dtype.kind not in "fiu":
            raise ValueError(
                f"`times` has shape {array.shape} and dtype {array.dtype}; pass at least one time, a list of floats or a "
                "1-D float64 array"
            )
        array = array.astype(np.float64)
        for i, t in enumerate(array.tolist()):
            if not 0.0 <= t <= self.T:
                raise ValueError(
                    f"times[{i}] = {t!r} lies outside the bridge; pass times in [0, T] with T = {self.T:g}"
                )
        steps = np.diff(array)
        wrong = np.flatnonzero(steps * np.sign(steps[:1]) <= 0)
        if wrong.size:
            i = int(wrong[0])
            raise ValueError(
                f"`times` must run strictly one way, but times[{i}] = {float(array[i])!r} and times[{i + 1}] = "
                f"{float(array[i + 1])!r}; sort them, without repeats"
            )
        return array

    def covariance(self, times: NDArray[np.float64]) -> Tensor:
        """Cov(X_u, X_t | X_0, X_T) for every pair of times, one coordinate: (k, k), float64.

        For u <= t it is v_u w_t A_{t|u} / V: the variance at u times the weight of X_u in X_t.
        """
        kappa = np.zeros((len(times), len(times)))
        order = np.argsort(times)
        for place, i in enumerate(order):
            u = float(times[i])
            kappa[i, i] = here = self.between(0.0, u).variance
            for j in order[place + 1 :]:
                kappa[i, j] = kappa[j, i] = here * self.between(u, float(times[j])).start
        return torch.from_numpy(kappa)

    def paths(self, x0: Tensor, x1: Tensor, times: NDArray[np.float64], seed: int, first: int) -> Tensor:
        """Paths from x0 to x1, (n, d) each, at `times`: (len(times), n, d).

        Interior times are drawn in increasing order, each given the one before and x1. The k-th time (from 1, in
        increasing order) takes draw k, so a path's bits depend on the seed, its global index and the set of times.
        """
        out = torch.empty(len(times), *x0.shape, dtype=torch.float64, device="cpu")
        here, x = 0.0, x0
        for draw, i in enumerate(np.argsort(times), start=1):
            t = float(times[i])
            if t == self.T:
                out[i] = x1
            else:
                pin = self.between(here, t)
                x = pin.start * x + pin.end * x1
                if pin.variance > 0:
                    x = x + pin.variance**0.5 * normal(tuple(x0.shape), seed, draw, first, dtype=torch.float64)
                here, out[i] = t, x
        return out
