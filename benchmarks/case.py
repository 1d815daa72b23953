"""What a kernel's benchmark is made of: our call, a peer's that does the same, the bytes that either must move."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.pairs import Pair, interleaved, provenance

KERNELS = (
    "combine", "normal", "langevin", "hutchinson_probe", "hutchinson_dot", "error_norm", "ema_update",
    "edm_precondition", "mixture_field",
)  # fmt: skip
SMALL = 1 << 18  # bytes below which a turn is many calls


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


def timed(case: Case) -> Pair:
    """Ours and the peer's on the CPU, turn by turn."""
    return interleaved(case.ours, case.peer, 15, 200 if case.bytes < SMALL else 2)


def show(cases: Iterable[Case], error: str) -> None:
    """Print a row for each case; error: what its error is measured in."""
    print(provenance())
    print(f"{'case':34s}   ours ms   torch ms    ratio  [20 %, 80 %]  {error}")
    for case in cases:
        print(f"{case.label:34s} {timed(case).row()}   {case.error:.2g}")
