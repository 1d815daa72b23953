"""The order in which training sees its examples: counted, not streamed, so that any step knows its batch at once."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from halfbridge.kernels.philox import check_seed, integer, sample_words, words
from halfbridge.solvers.draws import TRAINING_ORDER

__all__ = ["Split", "pick", "shuffled", "split"]

SPLIT = 2**64 - 1  # the pass, never reached by training, whose permutation deals examples to training or holdout
PICK = 2**64 - 2  # the same for subsets
ROWS = 4096  # of short passes, so many rows' worth are permuted at once: 64 passes of 64 rows cost little more than one


class Split(NamedTuple):
    """Row numbers in ascending order, int64; together every row once."""

    train: torch.Tensor
    holdout: torch.Tensor


def shuffled(n: int, seed: int, step: int, batch: int, first: int = 0) -> torch.Tensor:
    """The rows, (batch,) int64 in 0 .. n - 1, of the batch at `step` = 0, 1, ... of an endless sequence of shuffled passes.

    The sequence begins with the pass `first`. Place p = first n + step batch + i is place p mod n of pass p // n, so that
    each pass has every row once and a batch may end one pass and begin the next (or, larger than n, hold whole ones). The
    permutation of a pass sorts the rows by 64-bit keys: words of Philox under `seed` at the counter (row // 2, draw 2^32 - 5,
    pass), two for each row. So the batch is a function of the arguments alone, on any machine, and a late step costs what
    the first does. The permutations last used are kept in memory, 8 n bytes each and those of short passes many together.

    Raises TypeError for what is not an integer, ValueError for n, batch < 1, step, first < 0 or a seed outside 0 .. 2^64 - 1.
    """
    n, batch = _count("n", n), _count("batch", batch)
    step = integer("step", step, 0, 1 << 63, "steps are counted from 0")
    begin = integer("first", first, 0, 1 << 63, "passes are counted from 0") * n
    place, end = begin + step * batch, begin + (step + 1) * batch
    if (end - 1) // n >= PICK:
        raise ValueError(
            f"`step` = {step} with a batch of {batch} after pass {first} is beyond the last pass, 2**64 - 3"
        )
    parts, passes = [], max(1, ROWS // n)
    while place < end:
        group, start = divmod(place, n * passes)
        parts.append(_permutations(n, check_seed(seed), group * passes, passes)[start : start + end - place])
        place += len(parts[-1])
    return torch.cat(parts)  # a copy: what the caller does to it does not reach the permutations kept


def split(n: int, fraction: float, seed: int) -> Split:
    """Deal n rows to training and to a holdout of round(fraction n) of them, at least 1 row each; at random, by `seed`.

    The same rows whatever is trained: its passes take other counters. Raises ValueError for n < 2 or a fraction not
    strictly between 0 and 1.
    """
    n = _count("n", n)
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction = {fraction} must be strictly between 0 and 1, e.g. 0.1 to hold out a tenth")
    if n < 2:
        raise ValueError(f"n = {n} rows cannot be split in two; pass at least 2")
    held = min(max(round(fraction * n), 1), n - 1)
    order = _permutations(n, check_seed(seed), SPLIT)
    return Split(order[held:].sort().values, order[:held].sort().values)


def pick(n: int, count: int, seed: int) -> torch.Tensor:
    """`count` of n rows at random, ascending, int64. A larger count of the same seed adds to a smaller one's rows.

    Raises ValueError unless 1 <= count <= n.
    """
    n, count = _count("n", n), _count("count", count)
    if count > n:
        raise ValueError(f"count = {count} is more than the {n} rows there are")
    return _permutations(n, check_seed(seed), PICK)[:count].sort().values


@lru_cache(maxsize=4)  # a batch needs two at most unless it is larger than what they hold
def _permutations(n: int, seed: int, first: int, passes: int = 1) -> torch.Tensor:
    """Of the passes from `first` on, one after the other: (passes n,)."""
    with torch.inference_mode(False):
        block = torch.arange(-(-n // 2), dtype=torch.int64, device="cpu")[None]
        draw = torch.full((1, 1), TRAINING_ORDER, dtype=torch.int64, device="cpu")
        numbers = sample_words(first, torch.arange(passes, dtype=torch.int64, device="cpu")[:, None])
        w0, w1, w2, w3 = words(block, draw, numbers, seed)
        keys = torch.stack([(w0 << 32) | w1, (w2 << 32) | w3], dim=2).flatten(1)[:, :n]
        # the keys' first bit is a sign: another order of the same uniform numbers
        return keys.argsort(dim=1, stable=True).flatten()


def _count(name: str, value: object) -> int:
    return integer(name, value, 1, 1 << 32, "pass the number of rows, at least 1")
