"""A shuffled order of which nothing is kept: a bijection of the rows, computed place by place."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from halfbridge.kernels.philox import check_seed, integer, sample_words, words
from halfbridge.solvers.draws import TRAINING_ORDER

__all__ = ["scattered"]

ROUNDS = 8
BLOCK = 1 << 14  # places computed at once: those of many batches cost little more than those of one
FACTORS = (-7046029254386353131, -4658895280553007687)  # odd, of bits without a pattern: SplitMix64's, as int64


def scattered(n: int, seed: int, step: int, batch: int, first: int = 0) -> torch.Tensor:
    """The rows, (batch,) int64, of the batch at `step` of an endless sequence of shuffled passes over n rows: as `shuffled`, in
    another order, in a time and a memory that do not depend on n: 16384 places are computed at once, and a few such are kept.

    Place p of a pass is l c + r with 0 <= l < a, 0 <= r < c, where a c >= n is nearly n. Eight rounds (Feistel's, generalised)
    add to l and to r in turn a hash of the other, mod a and mod c: each can be undone, so they permute the a c places. A place
    that comes beyond the rows is moved on until it comes to one, which leaves a permutation of n. The keys of the rounds are
    words of Philox under `seed` at the counter (round, draw 2^32 - 5, pass). Not all n! orders can come; but unless n is
    tiny, every row is in every place, and any two rows in any two, as often as by chance.

    Raises TypeError for what is not an integer, ValueError for n, batch < 1, step, first < 0 or a seed outside 0 .. 2^64 - 1.
    """
    n, batch = (integer(name, value, 1, 1 << 40, "pass 1 or more") for name, value in (("n", n), ("batch", batch)))
    step = integer("step", step, 0, 1 << 63, "steps are counted from 0")
    begin = integer("first", first, 0, 1 << 62, "passes are counted from 0") * n
    place, end, parts = begin + step * batch, begin + (step + 1) * batch, []
    while place < end:
        number, at = divmod(place, n)
        block, start = divmod(at, BLOCK)
        parts.append(_rows(n, check_seed(seed), number, block)[start : start + end - place])
        place += len(parts[-1])
    return torch.cat(parts)  # a copy, as of `shuffled`


@lru_cache(maxsize=4)
def _rows(n: int, seed: int, number: int, block: int) -> torch.Tensor:
    """Of a block of places of a pass."""
    c = math.isqrt(n - 1) + 1
    sides, keys = (-(-n // c), c), _keys(seed, number)
    with torch.inference_mode(False):
        rows = _permuted(torch.arange(block * BLOCK, min(n, (block + 1) * BLOCK), device="cpu"), sides, keys)
        while len(beyond := (rows >= n).nonzero()[:, 0]):
            rows[beyond] = _permuted(rows[beyond], sides, keys)
    return rows


def _permuted(places: torch.Tensor, sides: tuple[int, int], keys: tuple[int, ...]) -> torch.Tensor:
    """Of 0 ... a c - 1."""
    halves = [torch.div(places, sides[1], rounding_mode="floor"), places % sides[1]]
    for k, key in enumerate(keys):
        mine = k % 2
        halves[mine] = (halves[mine] + _hash(halves[1 - mine], key)) % sides[mine]
    return halves[0] * sides[1] + halves[1]


def _hash(values: torch.Tensor, key: int) -> torch.Tensor:
    """31 bits of each; products wrap."""
    mixed = (values + key) * FACTORS[0]
    mixed = (mixed ^ (mixed >> 29)) * FACTORS[1]
    return (mixed ^ (mixed >> 32)) >> 24 & 0x7FFFFFFF


def _keys(seed: int, number: int) -> tuple[int, ...]:
    """Of the rounds of a pass: 64 bits each, as int64."""
    blocks, draw = torch.arange(ROUNDS, device="cpu"), torch.full((1,), TRAINING_ORDER, dtype=torch.int64, device="cpu")
    w0, w1, _, _ = words(blocks, draw, sample_words(number, torch.zeros(1, dtype=torch.int64, device="cpu")), seed)
    return tuple(((w0 << 32) | w1).tolist())
