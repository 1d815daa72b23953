"""The order of training: every example once a pass, at any step without replay, and uniform over permutations."""

import itertools
import math

import numpy as np
import pytest
import torch

from halfbridge.kernels.philox import words
from halfbridge.training.data import order
from halfbridge.training.data.bijection import scattered
from halfbridge.training.data.order import shuffled


@pytest.mark.parametrize(("n", "batch"), [(1, 3), (7, 1), (10, 4), (10, 10), (10, 25), (64, 7)])
def test_every_pass_has_every_example_once_whatever_the_batch(n, batch):
    steps = math.lcm(n, batch) * 3 // batch
    rows = torch.cat([shuffled(n, 5, step, batch) for step in range(steps)])
    passes = rows.reshape(-1, n)
    assert torch.equal(passes.sort(dim=1).values, torch.arange(n).expand(len(passes), n))


def test_batches_of_any_size_read_one_sequence():
    whole = shuffled(13, 2, 0, 390)
    for batch in (1, 5, 13, 39):
        assert torch.equal(torch.cat([shuffled(13, 2, step, batch) for step in range(390 // batch)]), whole)


def test_the_batch_is_a_function_of_its_arguments_alone():
    late = shuffled(101, 9, 12345, 8)
    late_copy = late.clone()
    late[:] = -1
    assert torch.equal(shuffled(101, 9, 12345, 8), late_copy)  # what a caller does to a batch stays with the caller
    order._permutations.cache_clear()
    with torch.inference_mode(), torch.device("meta"):
        torch.manual_seed(1)
        again = shuffled(101, 9, 12345, 8)
    assert torch.equal(again, late_copy)
    assert again.device.type == "cpu"
    assert not shuffled(101, 9, 12345, 8).is_inference()
    assert torch.equal(shuffled(101, 9, 12345, 8), late_copy)


@pytest.mark.parametrize(("n", "batch"), [(16, 512), (64, 128), (1, 100), (3, 4096)])
def test_many_short_passes_are_permuted_at_once(n, batch, monkeypatch):
    """And one by one they are the same."""
    order._permutations.cache_clear()
    steps = 3 * order.ROWS // batch
    together = [shuffled(n, 5, step, batch) for step in range(steps)]
    assert order._permutations.cache_info().misses <= 4
    monkeypatch.setattr(order, "ROWS", 1)
    assert torch.equal(shuffled(n, 5, 0, batch * min(steps, 2)), torch.cat(together[:2]))


def test_the_last_passes_are_permutations_too():
    """Of one row, 2^64 - 2 passes are trained on; the group of them that the last is in reaches beyond."""
    last = 2**63 - 1
    assert shuffled(1, 0, last, 1).tolist() == [0]
    for n in (2, 5):
        rows = shuffled(n, 0, last // n, n)
        assert rows.sort().values.tolist() == list(range(n))


def test_passes_and_seeds_have_orders_of_their_own():
    orders = [shuffled(20, seed, step, 20) for seed in (0, 1, 2**32, 2**63) for step in (0, 1, 2, 2**32, 2**33)]
    for a, b in itertools.combinations(orders, 2):
        assert not torch.equal(a, b)


def test_a_sequence_may_begin_with_any_pass():
    whole = torch.cat([shuffled(7, 3, step, 7) for step in range(9)])
    for first in (0, 1, 5):
        parts = torch.cat([shuffled(7, 3, step, 4, first) for step in range(5)])
        assert torch.equal(parts, whole[7 * first : 7 * first + 20])


def test_a_permutation_sorts_the_documented_words_of_philox():
    """300001 rows: of so many, ten pairs share their first word, so that the second decides."""
    n, seed, step = 300001, 2**40 + 3, 2**32 + 5
    block = torch.arange(n // 2 + 1)
    draw, low, high = (torch.tensor([c]) for c in (2**32 - 5, 5, 1))
    w = torch.stack(words(block, draw, (low, high), seed), dim=1).reshape(-1, 2)[:n].numpy()
    major = (w[:, 0] + 2**31) % 2**32  # as signed numbers sort
    assert len(np.unique(major)) < n
    assert np.array_equal(shuffled(n, seed, step, n).numpy(), np.lexsort((w[:, 1], major)))


def test_permutations_of_four_are_equally_likely():
    """4800 passes over 24 permutations: chi-squared has mean 23 and standard deviation sqrt(46); 5 of them allowed."""
    passes = shuffled(4, 11, 0, 19200).reshape(-1, 4)
    counts = (passes * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 24
    chi2 = ((counts - 200.0) ** 2 / 200.0).sum().item()
    assert abs(chi2 - 23.0) < 5.0 * math.sqrt(2 * 23)


def test_each_example_is_first_equally_often():
    """3000 seeds over 10 places, each place 300 times within 5 standard errors, sqrt(3000 * 0.09) = 16.4."""
    first = torch.stack([shuffled(10, seed, 0, 1) for seed in range(3000)]).flatten()
    assert ((first.bincount(minlength=10) - 300).abs() < 5.0 * math.sqrt(3000 * 0.1 * 0.9)).all()


def test_a_split_deals_every_row_once_and_takes_no_pass_of_training():
    for n, fraction, held in ((2, 0.9, 1), (10, 0.01, 1), (10, 0.25, 2), (1000, 0.1, 100)):
        train, holdout = order.split(n, fraction, seed=4)
        assert len(holdout) == held
        assert torch.equal(torch.cat([train, holdout]).sort().values, torch.arange(n))
        assert (train.diff() > 0).all()
        assert (holdout.diff() > 0).all()
    split = order.split(1000, 0.1, seed=4)
    assert torch.equal(split.holdout, order.split(1000, 0.1, seed=4).holdout)
    assert not torch.equal(split.holdout, order.split(1000, 0.1, seed=5).holdout)
    assert not torch.equal(split.holdout, shuffled(1000, 4, 0, 100).sort().values)
    assert not torch.equal(split.holdout, order.pick(1000, 100, seed=4))


def test_a_larger_pick_adds_to_a_smaller_one():
    small, large = (set(order.pick(50, count, seed=3).tolist()) for count in (10, 20))
    assert len(small) == 10
    assert small < large
    assert order.pick(50, 50, seed=3).tolist() == list(range(50))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shuffled(0, 0, 0, 1), "`n` = 0"),
        (lambda: shuffled(5, 0, 0, 0), "`batch` = 0"),
        (lambda: shuffled(5, 0, -1, 2), "`step` = -1"),
        (lambda: shuffled(5, -1, 0, 2), "`seed` = -1"),
        (lambda: shuffled(5, 0, 0, 2, -1), "`first` = -1"),
        (lambda: shuffled(1, 0, 2**62, 8), "beyond the last pass"),
        (lambda: order.split(1, 0.5, 0), "n = 1 rows cannot be split"),
        (lambda: order.split(5, 1.0, 0), r"fraction = 1\.0"),
        (lambda: order.pick(5, 6, 0), "count = 6 is more than the 5"),
    ],
)
def test_bad_numbers_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_of_rows_is_an_integer():
    with pytest.raises(TypeError, match=r"`n` must be an integer, got 5\.0"):
        shuffled(5.0, 0, 0, 1)


@pytest.mark.parametrize("n", [1, 2, 3, 97, 16384, 20_001, 65_537])
def test_a_bijection_has_each_row_once_a_pass_and_each_batch_is_part_of_one_sequence(n):
    whole = scattered(n, 5, 0, 3 * n)
    for one in whole.view(3, n):
        assert torch.equal(one.sort().values, torch.arange(n))
    batch = -(-3 * n // 7)
    batches = torch.cat([scattered(n, 5, step, batch) for step in range(7)])
    assert torch.equal(batches[: 3 * n], whole)
    if n > 90:
        assert not torch.equal(whole[:n], whole[n : 2 * n])
        assert not torch.equal(whole, scattered(n, 6, 0, 3 * n))


def test_a_bijection_puts_rows_and_their_neighbours_in_each_place_as_often():
    """chi^2 of 12 rows in 12 places, and of the pairs in each two places that follow, over 2000 passes: within 5 standard
    deviations, as a sort's are. Over one pass of 200 003, place, row, the row before and the next pass's are uncorrelated: 5
    standard errors 1/sqrt(n)."""
    n, passes = 12, 2000
    found = torch.stack([scattered(n, 1, k, n) for k in range(passes)])
    counts = torch.stack([torch.bincount(column, minlength=n) for column in found.mT]).double()
    degrees = (n - 1) ** 2
    chi = float((counts - passes / n).square().sum() / (passes / n)) * (n - 1) / n
    assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)
    for i in range(n - 1):
        pairs = torch.bincount(found[:, i] * n + found[:, i + 1], minlength=n * n).view(n, n).double()
        expected, degrees = passes / (n * (n - 1)), n * (n - 1) - 1
        chi = float((pairs - expected).fill_diagonal_(0.0).square().sum() / expected)
        assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)
    n = 200_003
    row, other, place = scattered(n, 5, 0, n), scattered(n, 5, 1, n), torch.arange(n)
    for a, b in ((row, place), (row[1:], row[:-1]), (row, other), (row % 2, place), (row % 448, place % 448)):
        assert abs(float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])) < 5 / math.sqrt(n)


def test_a_bijection_of_any_number_of_rows_costs_what_one_of_few_does():
    """A pass over 2^39 rows would take 4 TiB to sort."""
    rows = scattered(1 << 39, 3, 10**7, 512)
    assert len(torch.unique(rows)) == 512
    assert 0.4 < float(rows.double().mean()) / (1 << 39) < 0.6
    for bad in ({"n": 0}, {"batch": 0}, {"step": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            scattered(**{"n": 5, "seed": 0, "step": 0, "batch": 2, **bad})
