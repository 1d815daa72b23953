"""Problems to integrate beside a Field: general SDEs and ODEs, and the two that a field defines."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from halfbridge.solvers.algebra import Vector
from halfbridge.solvers.field import Field, check_output
from halfbridge.solvers.processes import Process

__all__ = ["ODE", "SDE", "ProbabilityFlow", "Problem", "ReverseSDE"]

NOISE_KINDS = ("scalar", "diagonal", "matrix")


class ODE:
    """dx/dt = drift(t, x): t a float, x of shape (batch, *shape), the result like x. Grids may run either way.

    The object is itself callable as `ode(t, x)`, which torchdiffeq's odeint takes. For the flow of a process, whose times
    end at 0: torchdiffeq's adaptive methods step past the last time and interpolate back, and probe a first step of their
    own, so end well above 0 and pass options={"first_step": ...}, or use a method with fixed steps. For odeint_adjoint pass
    adjoint_params=tuple(net.parameters()): the object is no nn.Module that could be searched for them.
    """

    process: Process | None = None

    def __init__(self, drift: Callable[[float, torch.Tensor], torch.Tensor]) -> None:
        self._drift = _callable("drift", drift)

    def evaluate(self, t: float, x: torch.Tensor) -> torch.Tensor:
        """The one call that costs: the drift, unchecked."""
        return self._drift(t, x)  # type: ignore[no-any-return]

    def with_function(self, fn: Callable[[float, torch.Tensor], torch.Tensor]) -> ODE:
        """The same problem around another drift `fn(t, x)`."""
        return ODE(fn)

    def drift(self, t: float, x: Any) -> Any:
        return _evaluate(self, t, x)

    def __call__(self, t: float | torch.Tensor, x: Any) -> Any:
        return self.drift(float(t.detach() if isinstance(t, torch.Tensor) else t), x)


class SDE:
    """dX = drift(t, X) dt + diffusion dW in the sense of Ito. Grids may run either way.

    drift(t, x) -> like x. diffusion: a float, a function of t, or a function of (t, x), which `noise` reads as
      "scalar"    a number (or one a sample, shape (batch,)) times a normal like x;
      "diagonal"  one coefficient an element, of a shape that broadcasts to x's;
      "matrix"    (d, m) or (batch, d, m) times m normals, for states of shape (batch, d).
    runs: "increasing" or "decreasing" for an equation that is meant for such grids alone; other grids are refused then.
    `f`, `g`, `noise_type` and `sde_type` are torchsde's, so the object also runs in torchsde.sdeint.
    Raises ValueError for an unknown `noise` or `runs`, or a diffusion whose value does not fit it.
    """

    process: Process | None = None
    sde_type = "ito"

    def __init__(
        self,
        drift: Callable[[float, torch.Tensor], torch.Tensor],
        diffusion: float | Callable[..., Any],
        noise: str = "scalar",
        runs: str | None = None,
    ) -> None:
        if noise not in NOISE_KINDS:
            raise ValueError(f"noise = {noise!r} is not one of {', '.join(map(repr, NOISE_KINDS))}")
        if runs not in (None, "increasing", "decreasing"):
            raise ValueError(f"runs = {runs!r} is not 'increasing', 'decreasing' or None, either way")
        self.runs = runs
        self._drift = _callable("drift", drift)
        self.noise = noise
        self._given = diffusion
        self._diffusion: Callable[..., Any]
        if callable(diffusion):
            self._diffusion, self.state_dependent = diffusion, _arity(diffusion) > 1
        else:
            if not isinstance(diffusion, (int, float, np.number, np.ndarray, torch.Tensor)):
                raise TypeError(
                    f"diffusion = {diffusion!r} must be a number, a tensor, or a function of t or of (t, x)"
                )
            if not torch.isfinite(torch.as_tensor(diffusion)).all():
                raise ValueError(f"diffusion = {diffusion!r} is not finite; pass a finite number or a function")
            self._diffusion, self.state_dependent = (lambda t: diffusion), False

    def evaluate(self, t: float, x: torch.Tensor) -> torch.Tensor:
        """The one call that costs: the drift, unchecked."""
        return self._drift(t, x)  # type: ignore[no-any-return]

    def with_function(self, fn: Callable[[float, torch.Tensor], torch.Tensor]) -> SDE:
        """The same problem around another drift `fn(t, x)`."""
        other = copy.copy(self)
        other._drift = fn
        return other

    def same_diffusion(self, other: SDE) -> bool:
        """Whether a plan made for this SDE holds for `other`: the same noise and the same diffusion, number or function."""
        return self.noise == other.noise and (self._given is other._given or _equal_numbers(self._given, other._given))

    def drift(self, t: float, x: Any) -> Any:
        return _evaluate(self, t, x)

    def diffusion(self, t: float, x: Any = None) -> Any:
        """The diffusion coefficient at (t, x), as the user's function gives it."""
        return self._diffusion(t, x) if self.state_dependent else self._diffusion(t)

    def increment(self, t: float, x: Any, draw: Callable[..., Any]) -> Any:
        """diffusion(t, x) times a fresh standard normal, like x; draws nothing where the diffusion is the number 0."""
        g = None if self.state_dependent else self._diffusion(t)
        if g is not None and self.noise == "scalar" and _is_number(g):
            return 0.0 if float(g) == 0.0 else float(g) * draw()
        if isinstance(x, Vector):
            return x.trace.apply(
                f"diffusion({t:.6g})", lambda v, noise, out, t: self._diffuse(t, v[0], noise), [x], draw(), (t,)
            )
        return self._diffuse(t, x, draw)

    def _diffuse(self, t: float, x: torch.Tensor, draw: Callable[..., torch.Tensor]) -> torch.Tensor:
        g = torch.as_tensor(self.diffusion(t, x), dtype=x.dtype, device=x.device)
        if self.noise == "matrix":
            if x.ndim != 2 or g.ndim not in (2, 3) or g.shape[-2] != x.shape[1] or (g.ndim == 3 and len(g) != len(x)):
                raise ValueError(
                    f"diffusion at t = {t:.6g} has shape {tuple(g.shape)} for a state of shape {tuple(x.shape)}; "
                    "noise='matrix' takes (d, m) or (batch, d, m) and states of shape (batch, d)"
                )
            return (g @ draw((len(x), g.shape[-1])).unsqueeze(-1)).squeeze(-1)
        return self._elementwise(t, x, g) * draw()

    def _elementwise(self, t: float, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        if self.noise == "scalar" and g.ndim:
            if g.numel() != len(x) or g.shape[0] != len(x):
                raise ValueError(
                    f"diffusion at t = {t:.6g} has shape {tuple(g.shape)}; noise='scalar' takes a number or shape "
                    f"({len(x)},), one a sample (noise='diagonal' takes one an element)"
                )
            g = g.reshape(-1, *[1] * (x.ndim - 1))
        try:
            return g.expand_as(x)
        except RuntimeError:
            raise ValueError(
                f"diffusion at t = {t:.6g} has shape {tuple(g.shape)}, which does not broadcast to the state's {tuple(x.shape)}"
            ) from None

    # torchsde's interface

    @property
    def noise_type(self) -> str:
        return "general" if self.noise == "matrix" else "diagonal"

    def f(self, t: Any, x: torch.Tensor) -> torch.Tensor:
        return self.drift(float(t), x)  # type: ignore[no-any-return]

    def g(self, t: Any, x: torch.Tensor) -> torch.Tensor:
        g = torch.as_tensor(self.diffusion(float(t), x), dtype=x.dtype, device=x.device)
        if self.noise == "matrix":
            return g.expand(len(x), *g.shape[-2:])
        return self._elementwise(float(t), x, g)


class ReverseSDE(SDE):
    """dX = (a X - g^2 score) dt + g dW in forward-time sign; a grid that decreases runs it from noise to data.

    Anderson 1982. `.reversed()` is the same law in tau = T - t, increasing, for engines that refuse decreasing times.
    """

    def __init__(self, field: Field) -> None:
        super().__init__(field.evaluate, field.process.diffusion)
        self.field = field
        self.process: Process = field.process

    def with_function(self, fn: Callable[[float, torch.Tensor], torch.Tensor]) -> ReverseSDE:
        """The same problem around another prediction `fn(t, x)`."""
        return ReverseSDE(self.field.with_function(fn))

    def drift(self, t: float, x: Any) -> Any:
        m = self.field(t, x)
        return self.process.drift_rate(m.t) * m.x - self.process.diffusion(m.t) ** 2 * m.score

    def reversed(self) -> SDE:
        """dY = (-a Y + g^2 score)(T - tau, Y) dtau + g(T - tau) dW."""
        T = self.process.T
        return SDE(lambda tau, x: -self.drift(T - float(tau), x), lambda tau: self.process.diffusion(T - float(tau)))


class ProbabilityFlow(ODE):
    """dx/dt = a x - g^2 score / 2: deterministic, with the marginals of the process (Song et al. 2021)."""

    def __init__(self, field: Field) -> None:
        super().__init__(field.evaluate)
        self.field = field
        self.process: Process = field.process

    def with_function(self, fn: Callable[[float, torch.Tensor], torch.Tensor]) -> ProbabilityFlow:
        """The same problem around another prediction `fn(t, x)`."""
        return ProbabilityFlow(self.field.with_function(fn))

    def drift(self, t: float, x: Any) -> Any:
        return self.field(t, x).flow

    def reversed(self) -> ODE:
        """dy/dtau = -(flow)(T - tau, y)."""
        T = self.process.T
        return ODE(lambda tau, x: -self.drift(T - float(tau), x))


Problem: TypeAlias = Field | SDE | ODE


def _evaluate(problem: ODE | SDE, t: float, x: Any) -> Any:
    t = float(t)
    if isinstance(x, Vector):
        return x.trace.evaluate(t, x)[0]
    value = problem.evaluate(t, x)
    check_output(value, x, t)
    return value


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 and not value.requires_grad
    return isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0


def _equal_numbers(a: Any, b: Any) -> bool:
    return not callable(a) and not callable(b) and _is_number(a) and _is_number(b) and float(a) == float(b)


def _callable(name: str, value: Any) -> Callable[..., Any]:
    if not callable(value):
        raise TypeError(f"{name} must be callable as {name}(t, x), got {type(value).__name__}")
    return value  # type: ignore[no-any-return]


def _arity(fn: Callable[..., Any]) -> int:
    """How many positional arguments `fn` must or may take: 1 for f(t), 2 for f(t, x)."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    required = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return max(1, len(required))
