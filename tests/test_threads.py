"""Loops shared by threads: every piece once, whoever is late, and errors reach the caller."""

import gc
import threading
import weakref
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


def test_threads_that_never_wake_hold_up_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_team", threads.Team())
    monkeypatch.setattr(threads.Thread, "start", lambda thread: None)
    for total in (100, 101):
        done = [0] * total

        def work(begin: int, end: int, done: list[int] = done) -> None:
            for i in range(begin, end):
                done[i] += 1

        threads.share(work, total, 1)
        assert done == [1] * total
    assert len(threads._team.workers) == count - 1
    assert all(worker.job is None for worker in threads._team.workers)


def test_callers_that_meet_and_nested_calls_do_their_own_work(count: int) -> None:
    done, callers = [0] * 100, set()

    def inner(begin: int, end: int) -> None:
        callers.add(threading.get_ident())
        for i in range(begin, end):
            done[i] += 1

    def outer(begin: int, end: int) -> None:
        me = threading.get_ident()
        callers.clear()
        threads.share(inner, 100, 1)
        assert callers == {me}

    def alone(begin: int, end: int) -> None:
        if begin == 0:
            outer(begin, end)

    threads.share(alone, 10, 1)
    assert done == [1] * 100
    assert not threads._team.busy.locked()


def test_an_error_reaches_the_caller_and_ends_the_work(count: int) -> None:
    begun: list[int] = []

    def work(begin: int, end: int) -> None:
        begun.append(begin)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.share(work, 10_000, 1)
    assert len(begun) <= count
    assert not threads._team.busy.locked()


def test_an_error_of_another_thread_reaches_the_caller(count: int) -> None:
    caller, late = threading.get_ident(), threading.Event()

    def work(begin: int, end: int) -> None:
        if threading.get_ident() == caller:
            assert late.wait(60)
        else:
            late.set()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.share(work, 10_000, 1)
    done = [0] * 100
    threads.share(lambda begin, end: done.__setitem__(slice(begin, end), [1] * (end - begin)), 100, 1)
    assert done == [1] * 100


def test_jobs_are_not_kept(count: int) -> None:
    class Work:
        def __call__(self, begin: int, end: int) -> None:
            pass

    work = Work()
    kept = weakref.ref(work)
    threads.share(work, 100, 1)
    del work
    gc.collect()
    assert kept() is None


def test_a_forked_child_has_threads_of_its_own(count: int) -> None:
    threads.share(lambda begin, end: None, 100, 1)
    before = threads._team
    before.process -= 1  # what a child sees
    threads.share(lambda begin, end: None, 100, 1)
    assert threads._team is not before
