"""Numbers of a call while torch.compile traces it: a float in an operator's schema would make a graph for every value of it."""

import torch
from torch import Tensor

Numbers = list[float] | None


def as_operands(numbers: list[float]) -> tuple[Numbers, Tensor | None]:
    """(numbers, None), constants of the graph; or, where torch.compile holds one of them as a symbol (from the second value
    on), (None, them all in a float64 tensor in host memory), which an operator reads without waiting for a device.
    """
    if not torch.compiler.is_compiling():
        return numbers, None
    from torch.fx.experimental.symbolic_shapes import has_static_value  # the compiler has paid for this import

    if all(not isinstance(n, (int, float)) or has_static_value(n) for n in numbers):
        return numbers, None
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return None, torch.stack([one * n for n in numbers])  # torch.full of a symbol would make a constant of its value


def constant(number: float) -> float:
    """The number as a constant of the graph that torch.compile traces: another value makes another graph."""
    if not torch.compiler.is_compiling():
        return number
    from torch.fx.experimental.symbolic_shapes import guard_scalar

    known: float = guard_scalar(number)
    return known


def numbers_of(numbers: Numbers, table: Tensor | None) -> list[float]:
    """The numbers that an operator was given, in one way or the other."""
    if numbers is not None:
        return numbers
    assert table is not None
    return table.tolist()
