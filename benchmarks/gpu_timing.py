"""Times on a GPU: cold caches, events around every call, quantiles of many calls; and the same call as a CUDA graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

FLUSH = 512 << 20  # bytes written between calls: more than any L2 cache holds
CALLS = 50


def microseconds(call: Callable[[], Any], calls: int = CALLS) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Device time of each of `calls` calls whose inputs are not in the L2 cache; the first few calls are not counted."""
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
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


def as_graph(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, captured: replaying it costs no launch overhead on the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def bandwidth() -> float:
    """Bytes per second of a triad, a + 2 b -> c, on arrays of 1 GiB: reads two, writes one."""
    n = 1 << 28
    a, b, c = (torch.ones(n, device="cuda") for _ in range(3))
    best = microseconds(lambda: torch.add(a, b, alpha=2.0, out=c), 20).min()
    return 12 * n / (best * 1e-6)
