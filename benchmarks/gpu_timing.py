"""Times on a GPU, of two kinds: of the device with cold caches, and of the host's clock for calls in a row; and the same call as
a CUDA graph or under torch.compile."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

DEVICE = "cuda"
FLUSH = 512 << 20  # bytes written between calls: more than any L2 cache holds
CALLS = 50
Times = np.ndarray[Any, np.dtype[np.float64]]


def microseconds(call: Callable[[], Any], calls: int = CALLS) -> Times:
    """Device time of each of `calls` calls whose inputs are not in the L2 cache; the first few calls are not counted.

    The host queues the call while the device still flushes, so what a launch costs the host is not in it: see `in_a_row`.
    """
    flush = torch.empty(FLUSH, dtype=torch.int8, device=DEVICE)
    times = []
    for i in range(calls + 5):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(start.elapsed_time(end) * 1e3)
    return np.array(times)


def in_a_row(call: Callable[[], Any], turns: int = 20, calls: int = CALLS) -> Times:
    """Time of a call by the host's clock, of each turn of `calls` calls with warm caches, begun on an idle device and ended by
    waiting for it: the larger of what the host takes to launch and what the device takes to run. One turn is not counted."""
    times = []
    for _ in range(turns + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e6 / calls)
    return np.array(times[1:])


def as_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, captured: replaying it is one launch, whatever the call does on the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compiled(call: Callable[[], Any], backend: str = "inductor") -> Callable[[], Any] | None:
    """`call` under torch.compile, for its own shapes; None, with a warning, where torch compiles nothing of it and would run
    it as it is."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()  # else a case is one more recompilation of the case before, and from the ninth on nothing is
    counters.clear()
    result = torch.compile(lambda: call(), dynamic=False, backend=backend)
    result()
    if counters["stats"]["unique_graphs"]:
        return result
    warnings.warn(f"torch.compile compiled nothing of {call}; it gets no row", RuntimeWarning, stacklevel=2)
    return None


def bandwidth() -> float:
    """Bytes per second of a triad, a + 2 b -> c, on arrays of 1 GiB: reads two, writes one."""
    n = 1 << 28
    a, b, c = (torch.ones(n, device=DEVICE) for _ in range(3))
    best = microseconds(lambda: torch.add(a, b, alpha=2.0, out=c), 20).min()
    return 12 * n / (best * 1e-6)
