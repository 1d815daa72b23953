"""Python threads for compiled loops that release the interpreter's lock: as many as torch uses.

numba's own thread layers abort when two threads call them at once (workqueue) and after a fork (OpenMP); these do
neither.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process id, workers, threads


def share(work: Callable[[int, int], None], total: int, least: int) -> None:
    """Run work(begin, end) over 0 .. total in contiguous parts of at least `least`, one a thread; back when all are
    done.
    """
    parts = max(1, min(torch.get_num_threads(), total // least))
    if parts == 1:
        work(0, total)
        return
    ends = [total * i // parts for i in range(parts + 1)]
    threads = pool(parts - 1)
    pending = [threads.submit(work, a, b) for a, b in pairwise(ends[1:])]
    work(0, ends[1])
    for part in pending:
        part.result()


def pool(workers: int) -> ThreadPoolExecutor:
    """The threads of this process: a forked child inherits the object but not its threads, hence the process id."""
    global _pool
    current = _pool
    if current is None or current[0] != os.getpid() or current[1] < workers:
        current = _pool = (os.getpid(), workers, ThreadPoolExecutor(workers, thread_name_prefix="halfbridge"))
    return current[2]
