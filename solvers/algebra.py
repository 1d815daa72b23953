"""Symbolic vectors: what a solver's step runs on when it is traced instead of executed.

A `Vector` is a real linear combination of named vectors: states, evaluations of the field, standard normals. A step that
uses only `+`, `-`, products with real numbers, evaluations and draws therefore turns into a list of operations with
float64 coefficients. Everything else is refused with `NotLinear`, naming the operation.

Each sum that takes in a normal receives a name at once (static single assignment): whoever uses it later reads that name,
so one draw is generated once. `solvers.lowering` inlines the names that turn out to be used only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch

__all__ = ["Apply", "Combine", "Draw", "Evaluate", "NotLinear", "Op", "Trace", "Vector"]


class NotLinear(TypeError):
    """A step did something to a vector other than `+`, `-`, products with real numbers, evaluations and draws."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"step is not a linear combination: {operation}; a plan holds only +, -, products with real numbers, "
            "evaluations and draws (hb.solve runs such a step on tensors, without a plan)"
        )


@dataclass(frozen=True)
class Draw:
    """The `index`-th standard normal of a run (1 is the first). The first of a step has the step's `t` and `s`, and is what
    drives it; later ones (a corrector's) are no increment of anything and have `t` = `s`, the time that the step reaches.
    """

    index: int
    t: float
    s: float

    @property
    def name(self) -> str:
        return f"z{self.index}"


@dataclass(frozen=True)
class Evaluate:
    """out = f(t, x): one evaluation of the field or drift."""

    out: str
    t: float
    x: str


@dataclass(frozen=True)
class Combine:
    """out = sum_j coefficient_j * vector_j + scale * N(0, I)."""

    out: str
    terms: tuple[tuple[str, float], ...]
    draw: Draw | None = None
    scale: float = 0.0


@dataclass(frozen=True)
class Apply:
    """out = an opaque primitive of `vectors` and at most one draw: not linear, with a kernel of its own.

    `run(vectors, noise, out, *numbers)` gets the tensors, a function `noise(shape=None)` that makes the draw's normal, a
    buffer that it may write, and what depends on the grid (times, coefficients), which a captured run may change. `label`
    is what the table prints.
    """

    out: str
    label: str
    vectors: tuple[str, ...]
    run: Callable[..., torch.Tensor]
    draw: Draw | None = None
    numbers: tuple[float, ...] = ()


Op: TypeAlias = Evaluate | Combine | Apply


class Vector:
    """A symbolic vector: `terms` maps names to float64 coefficients."""

    __slots__ = ("terms", "trace")
    __array_priority__ = 1000

    def __init__(self, trace: Trace, terms: dict[str, float]) -> None:
        self.trace = trace
        self.terms = terms

    def __repr__(self) -> str:
        return " ".join(f"{c:+.6g} {name}" for name, c in self.terms.items()) or "0"

    def __add__(self, other: object) -> Vector:
        return self._plus(other, 1.0, "+")

    def __sub__(self, other: object) -> Vector:
        return self._plus(other, -1.0, "-")

    def __radd__(self, other: object) -> Vector:
        return self._plus(other, 1.0, "+")

    def __rsub__(self, other: object) -> Vector:
        return (-self)._plus(other, 1.0, "-")

    def __neg__(self) -> Vector:
        return self * -1.0

    def __pos__(self) -> Vector:
        return self

    def __mul__(self, scalar: object) -> Vector:
        c = _real(scalar, "*")
        return Vector(self.trace, {name: c * v for name, v in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, scalar: object) -> Vector:
        c = _real(scalar, "/")
        return Vector(self.trace, {name: v / c for name, v in self.terms.items()})

    def _plus(self, other: object, sign: float, operation: str) -> Vector:
        if isinstance(other, (int, float)) and other == 0:  # so that sum(...) works
            return self
        if not isinstance(other, Vector):
            raise NotLinear(f"{operation} of a vector and {_describe(other)}")
        if other.trace is not self.trace:
            raise NotLinear(f"{operation} of vectors of two different runs")
        terms = dict(self.terms)
        for name, c in other.terms.items():
            total = terms.get(name, 0.0) + sign * c
            if total == 0.0:
                terms.pop(name, None)
            else:
                terms[name] = total
        return self.trace.name_if_noisy(Vector(self.trace, terms))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Vector:
        """numpy scalars on the left: np.float64(2) * v arrives here; any other numpy function is refused."""
        operation = {"add": "__add__", "subtract": "__sub__", "multiply": "__mul__", "divide": "__truediv__"}.get(
            ufunc.__name__
        )
        if method != "__call__" or operation is None or kwargs or len(inputs) != 2:
            raise NotLinear(f"numpy.{ufunc.__name__}")
        return _binary(operation, *inputs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Vector:
        """0-dim tensors on the left, and torch functions called on a symbol."""
        name = getattr(func, "__name__", str(func))
        operation = _TORCH_LINEAR.get(name)
        if operation is None or kwargs or len(args) != 2:
            raise NotLinear(name)
        if name in {"rsub", "__rsub__"}:
            args = args[::-1]
        return _binary(operation, *args)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotLinear(f".{name}")


def _refusal(name: str, what: str) -> Callable[..., NoReturn]:
    def refuse(self: Vector, *others: object, **options: object) -> NoReturn:
        raise NotLinear(what)

    refuse.__name__ = name
    return refuse


_REFUSED = {
    "division by a vector": "__rtruediv__",
    "**": "__pow__ __rpow__",
    "@": "__matmul__ __rmatmul__",
    "%, // or divmod": "__mod__ __rmod__ __floordiv__ __rfloordiv__ __divmod__ __rdivmod__",
    "a bit operation": "__invert__ __and__ __rand__ __or__ __ror__ __xor__ __rxor__",
    "rounding": "__abs__ __round__ __floor__ __ceil__ __trunc__",
    "a number made of a vector": "__float__ __int__ __index__ __complex__ __array__",
    "a comparison (a step may not branch on a state)": "__bool__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __contains__",
    "indexing": "__getitem__ __setitem__ __delitem__ __iter__ __len__",
    "an update in place (write x = x + ..., not x += ...)": "__iadd__ __isub__ __imul__ __itruediv__",
}
for _what, _names in _REFUSED.items():
    for _name in _names.split():
        setattr(Vector, _name, _refusal(_name, _what))
Vector.__hash__ = object.__hash__  # type: ignore[method-assign]


_TORCH_LINEAR = {
    "add": "__add__", "__add__": "__add__", "__radd__": "__add__",
    "sub": "__sub__", "__sub__": "__sub__", "rsub": "__sub__", "__rsub__": "__sub__",
    "mul": "__mul__", "__mul__": "__mul__", "__rmul__": "__mul__",
    "div": "__truediv__", "true_divide": "__truediv__", "__truediv__": "__truediv__",
}  # fmt: skip


def _binary(operation: str, left: Any, right: Any) -> Vector:
    """left <operation> right, where either may be the symbol."""
    if isinstance(left, Vector):
        return getattr(Vector, operation)(left, right)  # type: ignore[no-any-return]
    if operation == "__mul__":
        return right * left  # type: ignore[no-any-return]
    if operation == "__add__":
        return right + left  # type: ignore[no-any-return]
    if operation == "__sub__":
        return (-right) + left  # type: ignore[no-any-return]
    raise NotLinear("division by a vector")


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"


def _real(scalar: object, operation: str) -> float:
    if isinstance(scalar, torch.Tensor) and scalar.ndim == 0 and scalar.requires_grad:
        raise NotLinear(f"{operation} by a tensor that requires a gradient (a plan's coefficients are constants)")
    if isinstance(scalar, (int, float, np.integer, np.floating)) or (
        isinstance(scalar, (torch.Tensor, np.ndarray)) and scalar.ndim == 0
    ):
        c = float(scalar)
        if not math.isfinite(c):
            raise ValueError(
                f"a coefficient of the step is {c}; check the times of the grid and the solver's formula there"
            )
        return c
    raise NotLinear(f"{operation} of a vector and {_describe(scalar)}")


class Trace:
    """Records what a step does to symbols. One trace a run; `ops` collects the operations of the current step."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.draws: dict[str, Draw] = {}
        self.span = (math.nan, math.nan)
        self._counts: dict[str, int] = {}
        self._known: dict[tuple[tuple[str, float], ...], str] = {}

    def begin_step(self, t: float, s: float) -> None:
        self.ops, self.span, self._known = [], (t, s), {}

    def vector(self, name: str) -> Vector:
        return Vector(self, {name: 1.0})

    def draw(self) -> Vector:
        """A fresh standard normal vector."""
        draw = Draw(len(self.draws) + 1, *self.span)
        self.span = (self.span[1], self.span[1])
        self.draws[draw.name] = draw
        return self.vector(draw.name)

    def evaluate(self, t: float, x: Vector) -> tuple[Vector, Vector]:
        """(the evaluation at (t, x), the stored vector it was taken at)."""
        name = self.materialise(x)
        out = self._fresh("e")
        self.ops.append(Evaluate(out, float(t), name))
        return self.vector(out), self.vector(name)

    def apply(
        self, label: str, run: Callable[..., torch.Tensor], vectors: Iterable[Vector], normal: Vector | None,
        numbers: tuple[float, ...] = (),
    ) -> Vector:  # fmt: skip
        """An opaque primitive of stored vectors and one normal (the symbol `draw()` returned); see Apply."""
        names = tuple(self.materialise(v) for v in vectors)
        draw = None
        if normal is not None:
            ((name, scale),) = normal.terms.items()
            if scale != 1.0 or name not in self.draws:
                raise ValueError(f"{label}: the normal must be what draw() returned, got {normal!r}")
            draw = self.draws[name]
        out = self._fresh("v")
        self.ops.append(Apply(out, label, names, run, draw, numbers))
        return self.vector(out)

    def name_if_noisy(self, v: Vector) -> Vector:
        if len(v.terms) > 1 and any(name in self.draws for name in v.terms):
            return self.vector(self.materialise(v))
        return v

    def materialise(self, v: Vector) -> str:
        """The name of a stored vector equal to `v`; adds the combination that makes it if there is none yet."""
        if not isinstance(v, Vector):
            raise NotLinear(f"a vector was expected, got {_describe(v)}")
        terms = tuple(v.terms.items())
        if len(terms) == 1 and terms[0][1] == 1.0 and terms[0][0] not in self.draws:
            return terms[0][0]
        if terms not in self._known:
            self._known[terms] = self._combine(terms)
        return self._known[terms]

    def _combine(self, terms: tuple[tuple[str, float], ...]) -> str:
        stored = tuple((name, c) for name, c in terms if name not in self.draws)
        normals = [(self.draws[name], c) for name, c in terms if name in self.draws]
        for draw, scale in normals[:-1]:  # one normal a kernel call: the others go first, into the partial sum
            partial = self._fresh("v")
            self.ops.append(Combine(partial, stored, draw, scale))
            stored = ((partial, 1.0),)
        last_draw, last_scale = normals[-1] if normals else (None, 0.0)
        out = self._fresh("v")
        self.ops.append(Combine(out, stored, last_draw, last_scale))
        return out

    def _fresh(self, letter: str) -> str:
        self._counts[letter] = self._counts.get(letter, 0) + 1
        return f"{letter}{self._counts[letter]}"
