"""Elementary functions on floats and tensors: the one home of every formula that could cancel.

`exp`, `log`, `sqrt`, ... take a float (and use `math`) or a float64 tensor (and use `torch`), so that a closed form is
written once for both. They differ from `math` in one point: `log(0.0)` is -inf, as in torch and in the limit t -> 0.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def _either(of_float: Callable[[float], float], of_tensor: Callable[[Tensor], Tensor], x: Any) -> Any:
    return of_tensor(x) if isinstance(x, Tensor) else of_float(x)


def exp(x: Number) -> Number:
    """e^x."""
    return _either(math.exp, torch.exp, x)  # type: ignore[no-any-return]


def expm1(x: Number) -> Number:
    """e^x - 1 without cancellation at small x."""
    return _either(math.expm1, torch.expm1, x)  # type: ignore[no-any-return]


def log(x: Number) -> Number:
    """The natural logarithm, -inf at 0."""
    return _either(lambda y: math.log(y) if y else -math.inf, torch.log, x)  # type: ignore[no-any-return]


def sqrt(x: Number) -> Number:
    """The square root."""
    return _either(math.sqrt, torch.sqrt, x)  # type: ignore[no-any-return]


def sin(x: Number) -> Number:
    """The sine, x in radians."""
    return _either(math.sin, torch.sin, x)  # type: ignore[no-any-return]


def cos(x: Number) -> Number:
    """The cosine, x in radians."""
    return _either(math.cos, torch.cos, x)  # type: ignore[no-any-return]


def asinh(x: Number) -> Number:
    """The inverse hyperbolic sine."""
    return _either(math.asinh, torch.asinh, x)  # type: ignore[no-any-return]


def atan2(y: Number, x: Number) -> Number:
    """The angle of the point (x, y), in (-pi, pi]."""
    return torch.atan2(y, x) if isinstance(y, Tensor) else math.atan2(y, x)


def softplus(x: Number) -> Number:
    """log(1 + e^x) at any x: relative error of a few ulp where it is tiny, no overflow where x is large.

    `torch.nn.functional.softplus` returns x itself beyond its threshold of 20, an error of 2e-9.
    """
    if isinstance(x, Tensor):
        return torch.logaddexp(x, torch.zeros_like(x))
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_expm1(x: Number) -> Number:
    """log(e^x - 1) for x >= 0, the inverse of `softplus`: -inf at 0, x - e^-x + ... without overflow at large x."""
    return x + log(-expm1(-x))


def logistic(x: Number) -> Number:
    """1 / (1 + e^-x) at any x, with a small relative error where it is tiny too."""
    if isinstance(x, Tensor):
        return torch.sigmoid(x)
    e = math.exp(-abs(x))
    return 1.0 / (1.0 + e) if x >= 0 else e / (1.0 + e)


def phi_1(z: float) -> float:
    """(e^z - 1) / z, and 1 at 0: the weight of a constant integrand in an exponential integrator."""
    return math.expm1(z) / z if z else 1.0


def phi_2(z: float) -> float:
    """(e^z - 1 - z) / z^2, and 1/2 at 0. Relative error under 2e-14 for |z| <= 30."""
    return _phi_series(2, z) if abs(z) < 1.0 else (math.expm1(z) - z) / z**2


def phi_3(z: float) -> float:
    """(e^z - 1 - z - z^2/2) / z^3, and 1/6 at 0. Relative error under 2e-14 for |z| <= 30."""
    return _phi_series(3, z) if abs(z) < 1.0 else (math.expm1(z) - z - z**2 / 2) / z**3


def _phi_series(k: int, z: float) -> float:
    """phi_k(z) = sum_j z^j / (j + k)! for |z| < 1, by Horner's rule.

    The quotients lose eps k!/|z|^(k-1); eighteen terms leave a remainder of 1/20! = 4e-19.
    """
    value = 0.0
    for j in reversed(range(18)):
        value = value * z + 1.0 / math.factorial(j + k)
    return value
