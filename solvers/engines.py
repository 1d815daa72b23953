"""One Brownian motion for our solvers and torchsde's: each engine's object, in the other's interface.

Problems need no adapter. An `hb.SDE` has torchsde's f, g, noise_type and sde_type, `field.reverse_sde().reversed()` too, and
an `hb.ODE` or `field.probability_flow()` is the f(t, x) that torchdiffeq's odeint takes, decreasing times included; its
odeint_adjoint also wants `adjoint_params=tuple(net.parameters())`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from halfbridge.kernels import normal, philox
from halfbridge.solvers.brownian import BrownianPath, check_like

__all__ = ["TorchsdeBrownian", "TorchsdeNoise"]


@dataclass(frozen=True)
class TorchsdeNoise:
    """A noise object that follows a torchsde Brownian: pass it as `seed` to hb.solve.

    brownian   a BrownianInterval, BrownianTree or BrownianPath of torchsde (or any bm(ta, tb) with shape, dtype, device),
               of the state's (batch, *shape), or flattened to (batch, size), dtype and device; a step of an SDE with matrix
               noise draws (batch, m)
    T          None: W_t is `brownian` at t. Else `brownian` lives in tau = T - t, the time of `.reversed()` problems:
               W_t = B(T - t)
    seed       of the draws that are no increment (the prior's, later draws of a step): the plain stream's, global index 0 on

    The first draw of a step from t to s is (W_s - W_t)/sqrt|s - t|, either way round.
    Raises ValueError for a state unlike the Brownian, times outside its interval, and such a draw without `seed`.
    """

    brownian: Any
    T: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("__call__", "shape", "dtype", "device"):
            if not hasattr(self.brownian, name):
                raise TypeError(
                    f"brownian = {self.brownian!r} has no {name}; pass a torchsde.BrownianInterval or the like"
                )
        _check_T(self.T)
        if self.seed is not None:
            philox.check_seed(self.seed)

    def __call__(self, draw: int, t: float, s: float, like: torch.Tensor) -> torch.Tensor:
        check_like(like)
        if t == s:
            if self.seed is None:
                raise ValueError(
                    f"draw {draw} at t = {t:.6g} is no increment of a Brownian motion; pass TorchsdeNoise(..., seed=...) for it"
                )
            return normal(like.shape, self.seed, draw, dtype=like.dtype, device=like.device)
        self._check(like)
        a, b = (t, s) if self.T is None else (self.T - t, self.T - s)
        w = self._between(a, b) if a < b else -self._between(b, a)
        return w.reshape(like.shape) / math.sqrt(abs(s - t))

    def _between(self, a: float, b: float) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", UserWarning
            )  # torchsde moves times outside its interval to the end, with a warning
            try:
                return self.brownian(a, b)  # type: ignore[no-any-return]
            except UserWarning as warning:
                raise ValueError(
                    f"the Brownian does not cover the step from {a!r} to {b!r} of its time ({warning}); make it over the "
                    "times of the grid" + ("" if self.T is None else f", that is T - t with T = {self.T!r}")
                ) from None

    def _check(self, like: torch.Tensor) -> None:
        bm = self.brownian
        if tuple(bm.shape) not in (tuple(like.shape), (len(like), math.prod(like.shape[1:]))):
            raise ValueError(
                f"the Brownian has shape {tuple(bm.shape)} but the step draws {tuple(like.shape)}; make it with "
                f"size={tuple(like.shape)}"
            )
        for name in ("dtype", "device"):
            got, want = getattr(bm, name), getattr(like, name)
            if got is not None and got != want:
                raise ValueError(
                    f"the Brownian has {name} {got} for a state of {name} {want}; make it with {name}={want}"
                )


class TorchsdeBrownian:
    """A BrownianPath as the `bm` of torchsde.sdeint: the increments that our solvers see on the same path.

    path    the BrownianPath
    like    tensor (batch, channels) that gives shape, dtype and device: the state, or (batch, m) where noise has m channels
    T       None: B = W. Else B(tau) = W(T - tau) - W(T), for `.reversed()` problems of a process with that T

    No Levy area: for the methods that take levy_area_approximation = "none" (euler, milstein, and those for Stratonovich
    SDEs), not srk. Raises ValueError where one is asked for, and for ta > tb.
    """

    levy_area_approximation = "none"

    def __init__(self, path: BrownianPath, like: torch.Tensor, T: float | None = None) -> None:
        if not isinstance(path, BrownianPath):
            raise TypeError(f"path = {path!r} must be a BrownianPath; pass hb.BrownianPath(seed)")
        check_like(like)
        _check_T(T)
        self.path, self.T = path, T
        self._like = like.new_empty(()).expand(like.shape)

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> torch.Tensor:
        if return_U or return_A:
            raise ValueError(
                "return_U and return_A ask for a Levy area, which the path does not have; pass method='euler' or 'milstein'"
            )
        a, b = (0.0, float(ta)) if tb is None else (float(ta), float(tb))
        if tb is not None and a > b:
            raise ValueError(f"ta = {a!r} lies after tb = {b!r}; pass ta <= tb")
        return self.path.increment(*((a, b) if self.T is None else (self.T - a, self.T - b)), self._like)

    def __repr__(self) -> str:
        return f"TorchsdeBrownian({self.path!r}, shape={tuple(self.shape)}, T={self.T!r})"

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    def size(self) -> torch.Size:
        return self.shape

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        return self._like.device


def _check_T(T: Any) -> None:
    if T is not None and not (isinstance(T, (int, float)) and math.isfinite(T)):
        raise ValueError(f"T = {T!r} must be None or a finite time, the T of the process; pass process.T")
