"""Loops shared by threads: every piece once, whoever is late, and errors reach the caller."""

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbridge.kernels.cpu import threads


@pytest.fixture(params=[2, 3, 8])
def count(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.integers(2, 64), st.integers(1, 10**6))
def test_pieces_cover_the_range_and_shrink_to_the_least(total: int, workers: int, least: int) -> None:
    least = max(least, total // 10_000)
    cut = list(threads.pieces(total, workers, least))
    assert [begin for begin, _ in cut] == [0, *(end for _, end in cut)][: len(cut)]
    assert (cut[-1][1] if cut else 0) == total
    sizes = [end - begin for begin, end in cut]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size >= least for size in sizes[:-1])
    assert all(size <= max(least, 2 * total / (3 * workers)) for size in sizes)


@pytest.mark.parametrize("total", [0, 1, 7, 1000, 4321])
def test_every_index_is_done_once(count: int, total: int) -> None:
    done = [0] * total

    def work(begin: int, end: int) -> None:
        for i in range(begin, end):
            done[i] += 1

    threads.share(work, total, 3)
    assert done == [1] * total


def test_a_little_work_stays_in_the_calling_thread(count: int) -> None:
    seen: list[tuple[int, int, int]] = []
    threads.share(lambda begin, end: seen.append((begin, end, threading.get_ident())), 199, 100)
    assert seen == [(0, 199, threading.get_ident())]


def test_a_pool_that_is_busy_holds_up_nothing(count: int) -> None:
    pool, release, done = threads.pool(count - 1), threading.Event(), [0] * 100
    blocked = [pool.submit(release.wait, 60) for _ in range(pool._max_workers)]

    def work(begin: int, end: int) -> None:
        for i in range(begin, end):
            done[i] += 1

    try:
        threads.share(work, 100, 1)
        assert not any(b.done() for b in blocked)
    finally:
        release.set()
    assert done == [1] * 100


def test_an_error_reaches_the_caller_and_ends_the_work(count: int) -> None:
    begun: list[int] = []

    def work(begin: int, end: int) -> None:
        begun.append(begin)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.share(work, 10_000, 1)
    assert len(begun) <= count
