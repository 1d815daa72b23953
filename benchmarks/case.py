"""What a kernel's benchmark is made of: our call, a peer's that does the same, the bytes that either must move."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One kernel on one shape, whose result is right: what is off raises before there is a case.

    ours, peer: calls without arguments; peer is plain eager torch, and torch.compile may take it. bytes: what must go
    through memory, every input once and the output once. error: of ours against float64, in the unit that the benchmark names.
    """

    label: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    bytes: int
    error: float


def refuse_above(allowed: float, error: float, what: str) -> None:
    """Raise where an error is above what is allowed: a wrong kernel is not timed."""
    if not error <= allowed:
        raise RuntimeError(f"{what} is off by {error:.3g} (allowed: {allowed:.3g}): mend it, then time it")
