"""Python threads for compiled loops that release the interpreter's lock: as many as torch uses.

numba's own thread layers abort when two threads call them at once (workqueue) and after a fork (OpenMP); these do
neither.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process id, workers, threads


def share(work: Callable[[int, int], None], total: int, least: int) -> None:
    """Run work(begin, end) on pieces of 0 .. total, on a thread for each `least` of it; back when all are done.

    A thread takes the next piece when it is done with one, the largest first: one that wakes late or loses its core holds
    up the others for a small piece, and one that does not wake at all for nothing.
    """
    threads = max(1, min(torch.get_num_threads(), total // least))
    if threads == 1:
        work(0, total)
        return
    left = pieces(total, threads, max(1, least // 2))

    def take() -> None:
        while left:
            try:
                begin, end = left.popleft()
            except IndexError:  # another thread was quicker
                return
            work(begin, end)

    workers = pool(threads - 1)
    pending = [workers.submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        left.clear()
        failed = [error for part in pending if not part.cancel() and (error := part.exception())]
    if failed:
        raise failed[0]


def pieces(total: int, threads: int, least: int) -> deque[tuple[int, int]]:
    """0 .. total cut into pieces of 2 / (3 threads) of what is left, but not below `least`: guided self-scheduling
    (Polychronopoulos and Kuck 1987), whose 1 / threads would leave a late thread no time to catch up.
    """
    cut: deque[tuple[int, int]] = deque()
    begin = 0
    while begin < total:
        end = min(total, begin + max(least, 2 * (total - begin) // (3 * threads)))
        cut.append((begin, end))
        begin = end
    return cut


def pool(workers: int) -> ThreadPoolExecutor:
    """The threads of this process: a forked child inherits the object but not its threads, hence the process id."""
    global _pool
    current = _pool
    if current is None or current[0] != os.getpid() or current[1] < workers:
        current = _pool = (os.getpid(), workers, ThreadPoolExecutor(workers, thread_name_prefix="halfbridge"))
    return current[2]
