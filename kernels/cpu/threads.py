"""Python threads for compiled loops that release the interpreter's lock: as many as torch uses.

numba's own thread layers abort when two threads call them at once (workqueue) and after a fork (OpenMP); these do
neither. A thread waits at a lock for its next job: woken that way it begins 0.1 ms sooner than through an executor, in
which time a core adds two vectors of 3e5 numbers.
"""

import os
from collections import deque
from collections.abc import Callable
from threading import Lock, Thread

import torch


class Worker:
    """A thread that does one job at a time. `finish` belongs to every `start`."""

    def __init__(self) -> None:
        self.begin, self.end = Lock(), Lock()
        self.begin.acquire()
        self.end.acquire()
        self.job: Callable[[], None] | None = None
        self.error: BaseException | None = None
        Thread(target=self.run, name="halfbridge", daemon=True).start()

    def run(self) -> None:
        while True:
            self.begin.acquire()
            try:
                if self.job is not None:
                    self.job()
            except BaseException as error:
                self.error = error
            self.job = None
            self.end.release()

    def start(self, job: Callable[[], None]) -> None:
        self.job, self.error = job, None
        self.begin.release()

    def finish(self) -> BaseException | None:
        """What the job raised, once it is done; a job that the thread has not begun is taken back."""
        if self.begin.acquire(blocking=False):
            self.job = None
        else:
            self.end.acquire()
        error, self.error = self.error, None
        return error


class Team:
    """The workers of a process, for one `share` at a time."""

    def __init__(self) -> None:
        self.process, self.busy = os.getpid(), Lock()
        self.workers: list[Worker] = []

    def first(self, count: int) -> list[Worker]:
        while len(self.workers) < count:
            self.workers.append(Worker())
        return self.workers[:count]


_team = Team()


def share(work: Callable[[int, int], None], total: int, least: int) -> None:
    """Run work(begin, end) on pieces of 0 .. total, on a thread for each `least` of it; back when all are done.

    A thread takes the next piece when it is done with one, the largest first: one that wakes late or loses its core holds
    up the others for a small piece, and one that does not wake at all for nothing. Where another `share` has the threads,
    the calling one does it all.
    """
    global _team
    threads = max(1, min(torch.get_num_threads(), total // least))
    if _team.process != os.getpid():  # a forked child inherits the object but not its threads
        _team = Team()
    team = _team
    if threads == 1 or not team.busy.acquire(blocking=False):
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

    begun: list[Worker] = []
    try:
        for worker in team.first(threads - 1):
            worker.start(take)
            begun.append(worker)
        take()
    finally:
        left.clear()
        try:
            failed = [error for worker in begun if (error := worker.finish())]
        except KeyboardInterrupt:  # nobody waits for these workers any more, so they get no other job
            _team = Team()
            raise
        team.busy.release()
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
