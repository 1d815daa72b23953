"""What a kernel's benchmark is made of: our call, a peer's that does the same, the bytes that either must move."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from benchmarks.pairs import Pair, interleaved, provenance
from halfbridge.kernels.dispatch import TABLE, backend, load, select

KERNELS = (
    "combine", "normal", "langevin", "hutchinson_probe", "hutchinson_dot", "error_norm", "ema_update",
    "edm_precondition", "mixture_field",
)  # fmt: skip
TURN = 0.01  # seconds of a turn of calls
MOST = 200  # calls a turn
NORMAL = 9.0  # 2 ulp of it are 2e-6 in float32: how far a normal of any size may be from the reference's on any backend


class Case(NamedTuple):
    """One kernel on one shape, whose result is right: what is off raises before there is a case.

    ours, peer: calls without arguments; peer is plain eager torch, and torch.compile may take it. bytes: what must go
    through memory, every input once and the output once. error: of ours against float64, with normals and signs of the
    reference, in `unit`. operator, dtype: by which `dispatch` finds what runs.
    """

    label: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    bytes: int
    error: float
    unit: str
    operator: str
    dtype: torch.dtype = torch.float32

    def backend(self, device: str) -> str:
        """The one that runs ours, which is the reference where no other has this kernel."""
        return select(self.operator, device, self.dtype)[0]


def load_backend(device: str) -> None:
    """All kernels of the fastest backend there, which a process else loads after some eager work: so the same one is checked
    and timed."""
    for kernel, name in TABLE:
        if name == backend(device):
            load(kernel, name)


def refuse_above(allowed: float, error: float, what: str) -> None:
    """Raise where an error is above what is allowed: a wrong kernel is not timed."""
    if not error <= allowed:
        raise RuntimeError(f"{what} is off by {error:.3g} (allowed: {allowed:.3g}): mend it, then time it")


def timed(case: Case) -> Pair:
    """Ours and the peer's on the CPU, turn by turn; as many calls a turn as the slower one makes in 10 ms."""
    took = []
    for call in (case.ours, case.peer):
        call()
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return interleaved(case.ours, case.peer, 15, max(1, min(MOST, int(TURN / max(took)))))


def show(cases: Callable[[str], Iterable[Case]]) -> None:
    """Print a row for each of a benchmark's cases on the CPU."""
    print(provenance())
    print(f"{'case':34s}   ours ms   torch ms    ratio  [20 %, 80 %]  error")
    load_backend("cpu")
    for case in cases("cpu"):
        print(f"{case.label:34s} {timed(case).row()}   {case.error:.2g} {case.unit}")
