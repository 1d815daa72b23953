"""Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), in torch.

The layout of key and counter is the project's: key = the 64-bit seed, low word first; counter = (element index // 4,
draw, global sample index low word, high word), the element index running over the flattened sample. One counter gives
four words of 32 bits, for the elements 4j .. 4j + 3. Words are held in int64: 0 <= word < 2^32, with no sign to mind.
"""

from numbers import Integral
from typing import Any

from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(c0: Any, c1: Any, c2: Any, c3: Any, key: Any, key_high: Any) -> tuple[Any, Any, Any, Any]:
    """Output words of the counter (c0, c1, c2, c3) under the key (low word, high word): 32-bit values in int64.

    Operators only, so that torch runs it on tensors (which broadcast) and numba compiles it for scalars. The 64-bit
    products wrap; `(p >> 32) & MASK` is their high word whatever the sign. Bits above 32 of c1 and c3 stay dirty
    between rounds: they meet only xors that a mask follows.
    """
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) ^ c1 ^ key) & MASK, ((p0 >> 32) ^ c3 ^ key_high) & MASK
        c1, c3 = p1, p0
        key, key_high = (key + KEY_STEPS[0]) & MASK, (key_high + KEY_STEPS[1]) & MASK
    return c0, c1 & MASK, c2, c3 & MASK


def words(
    blocks: Tensor, draws: Tensor, samples: tuple[Tensor, Tensor], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words w0 .. w3 of the counters (blocks, draws, *samples): int64 tensors that broadcast, samples = (low, high).

    With blocks of shape (1, m) and the others (rows, 1), the first round works on vectors only.
    """
    return philox(blocks, draws, *samples, *halves(seed))


def sample_words(first: int, offsets: Any) -> tuple[Any, Any]:
    """Low and high words of the global sample indices first + offsets, int64 offsets (tensor or array) in [0, 2^32)."""
    low = offsets + (first & MASK)
    return low & MASK, (low >> 32) + (first >> 32)


def halves(number: int) -> tuple[int, int]:
    """Low and high 32 bits."""
    return number & MASK, number >> 32


def integer(name: str, value: object, low: int, high: int, remedy: str) -> int:
    """`value` as a Python int in [low, high), else a TypeError or ValueError that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r} ({type(value).__name__}); {remedy}")
    if not low <= int(value) < high:
        raise ValueError(f"`{name}` = {int(value)} is outside [{low}, 2**{high.bit_length() - 1}); {remedy}")
    return int(value)


def check_seed(seed: object) -> int:
    """The seed as an int, refused unless 0 <= seed < 2^64 (bool and float too)."""
    return integer("seed", seed, 0, 1 << 64, "pass an int from 0 to 2**64 - 1, it is the generator's whole key")


def check_draw(draw: object) -> int:
    """The draw index as an int, refused unless 0 <= draw < 2^32."""
    return integer(
        "draw", draw, 0, 1 << 32, "pass an int from 0 to 2**32 - 1; draw 0 is the prior's, k >= 1 the k-th of a run"
    )


def check_first(first: object, batch: int) -> int:
    """The global index of sample 0 as an int, refused unless every index first .. first + batch - 1 fits in 64 bits."""
    index = integer("first", first, 0, 1 << 64, "pass the global index of the batch's first sample")
    if index + batch > 1 << 64:
        raise ValueError(
            f"`first` = {index} with a batch of {batch} ends beyond the last sample index 2**64 - 1; "
            f"pass `first` <= {(1 << 64) - batch}"
        )
    return index
