"""Fields: a learned or exact prediction under a linear process, and its linear views.

A network predicts one of four things; the other three, and the probability flow, are real linear combinations of that
prediction and the state. So a conversion is two numbers, not a pass over memory, and a plan folds it into its coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from halfbridge.solvers.algebra import Vector
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes import Process

if TYPE_CHECKING:
    from halfbridge.solvers.problems import ProbabilityFlow, ReverseSDE

__all__ = ["PREDICTIONS", "Evaluation", "Field", "FieldOutputError", "check_output"]

PREDICTIONS = ("noise", "score", "data", "velocity")


class FieldOutputError(ValueError):
    """The field returned something that is not a vector like the state."""


def check_output(value: Any, x: torch.Tensor, t: float | torch.Tensor, where: str = "") -> None:
    """Raise FieldOutputError unless `value` has the shape, dtype and device of `x`. t: a number, or a 0-dim tensor."""
    if not isinstance(value, torch.Tensor):
        raise FieldOutputError(
            f"the field returned a {type(value).__name__}{where} at t = {t:.6g}; return a tensor like x"
        )
    for name in ("shape", "dtype", "device"):
        got, want = getattr(value, name), getattr(x, name)
        if got != want:
            got, want = (tuple(got), tuple(want)) if name == "shape" else (got, want)
            remedy = {
                "shape": "return one value for each element of x (split off learned variances first)",
                "dtype": "return value.to(x.dtype)",
                "device": "return value.to(x.device)",
            }[name]
            raise FieldOutputError(
                f"the field returned {name} {got} for a state of {name} {want}{where} at t = {t:.6g}; {remedy}"
            )


def view_coefficients(view: str, predicts: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(c_x, c_p) such that the view is c_x x + c_p prediction.

    From x = alpha D + sigma eps, score = -eps/sigma and v = alpha eps - sigma D (Salimans and Ho 2022, which needs no
    alpha^2 + sigma^2 = 1).
    """
    power = alpha * alpha + sigma * sigma
    if view == predicts:
        return 0.0, 1.0
    if view == "score":
        c_x, c_p = view_coefficients("noise", predicts, alpha, sigma)
        return (0.0 if c_x == 0.0 else -c_x / sigma), -c_p / sigma
    if predicts == "score":
        c_x, c_p = view_coefficients(view, "noise", alpha, sigma)
        return c_x, -sigma * c_p
    match predicts, view:
        case "noise", "data":
            return 1.0 / alpha, -sigma / alpha
        case "noise", "velocity":
            return -sigma / alpha, power / alpha
        case "data", "noise":
            return 1.0 / sigma, -alpha / sigma
        case "data", "velocity":
            return alpha / sigma, -power / sigma
        case "velocity", "noise":
            return sigma / power, alpha / power
        case "velocity", "data":
            return alpha / power, -sigma / power
    raise ValueError(f"there is no view {view!r} of a {predicts!r} prediction; the views are {', '.join(PREDICTIONS)}")


class Evaluation:
    """One evaluation of a field at (t, x); its views cost no further evaluation.

    noise = E[eps | x_t = x], score = grad log p_t(x), data = E[x_0 | x_t = x], velocity = alpha noise - sigma data,
    flow = dx/dt of the probability flow = a x - g^2 score / 2. All have the shape of x.
    """

    __slots__ = ("field", "raw", "t", "x")

    def __init__(self, field: Field, t: float, x: Any, raw: Any) -> None:
        self.field, self.t, self.x, self.raw = field, t, x, raw

    def view(self, name: str) -> Any:
        process, predicts = self.field.process, self.field.predicts
        if name == predicts:
            return self.raw
        try:
            c_x, c_p = view_coefficients(name, predicts, process.alpha(self.t), process.sigma(self.t))
        except ZeroDivisionError:
            raise ValueError(
                f"the {name} of a {predicts} prediction is not defined at t = {self.t:.6g}, where sigma = "
                f"{process.sigma(self.t):.6g} and alpha = {process.alpha(self.t):.6g}; stop at a later time (t_min = "
                f"{process.t_min:.6g}), or integrate a Field itself, whose last step to sigma = 0 is its data prediction"
            ) from None
        return c_p * self.raw if c_x == 0.0 else c_x * self.x + c_p * self.raw

    @property
    def noise(self) -> Any:
        return self.view("noise")

    @property
    def score(self) -> Any:
        return self.view("score")

    @property
    def data(self) -> Any:
        return self.view("data")

    @property
    def velocity(self) -> Any:
        return self.view("velocity")

    @property
    def flow(self) -> Any:
        process = self.field.process
        return process.drift_rate(self.t) * self.x - 0.5 * process.diffusion(self.t) ** 2 * self.score


class Field:
    """A prediction `fn(t, x)` under `process`: t a float, x of shape (batch, *shape), the result like x.

    predicts: "noise" (eps), "score", "data" (x_0) or "velocity" (alpha eps - sigma x_0).
    `field(t, x)` is one evaluation, with the views noise, score, data, velocity and flow; `field.noise(t, x)` and the
    rest are shorthands. Raises ValueError for an unknown `predicts`, FieldOutputError when fn's result is not like x.
    """

    def __init__(
        self, process: Process, fn: Callable[[float, torch.Tensor], torch.Tensor], predicts: str = "noise"
    ) -> None:
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts = {predicts!r} is no prediction; {nearest(predicts, PREDICTIONS)}")
        if not isinstance(process, Process):
            raise TypeError(f"process must be a Process such as hb.VP(), got {type(process).__name__}")
        if not callable(fn):
            raise TypeError(f"fn must be callable as fn(t, x), got {type(fn).__name__}")
        self.process, self.fn, self.predicts = process, fn, predicts

    def __repr__(self) -> str:
        return f"Field({self.process!r}, predicts={self.predicts!r})"

    def evaluate(self, t: float, x: torch.Tensor) -> torch.Tensor:
        """The raw prediction, unchecked."""
        return self.fn(t, x)

    def with_function(self, fn: Callable[[float, torch.Tensor], torch.Tensor]) -> Field:
        """The same problem around another prediction `fn(t, x)`."""
        return Field(self.process, fn, self.predicts)

    def __call__(self, t: float, x: Any) -> Evaluation:
        t = float(t)
        if isinstance(x, Vector):
            raw, stored = x.trace.evaluate(t, x)
            return Evaluation(self, t, stored, raw)
        value = self.evaluate(t, x)
        check_output(value, x, t)
        return Evaluation(self, t, x, value)

    def noise(self, t: float, x: Any) -> Any:
        return self(t, x).noise

    def score(self, t: float, x: Any) -> Any:
        return self(t, x).score

    def data(self, t: float, x: Any) -> Any:
        return self(t, x).data

    def velocity(self, t: float, x: Any) -> Any:
        return self(t, x).velocity

    def flow(self, t: float, x: Any) -> Any:
        return self(t, x).flow

    def reverse_sde(self) -> ReverseSDE:
        """dX = (a X - g^2 score) dt + g dW, in forward-time sign, for grids that decrease (Anderson 1982)."""
        from halfbridge.solvers.problems import ReverseSDE

        return ReverseSDE(self)

    def probability_flow(self) -> ProbabilityFlow:
        """dx/dt = a x - g^2 score / 2, which has the marginals of the process (Song et al. 2021)."""
        from halfbridge.solvers.problems import ProbabilityFlow

        return ProbabilityFlow(self)
