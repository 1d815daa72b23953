"""Philox4x32-10: the published known answers, an independent implementation in Python ints, the project's counters."""

import pytest
import torch
from counters import philox_in_python
from hypothesis import given
from hypothesis import strategies as st

from halfbridge.kernels.philox import check_draw, check_first, check_seed, philox, sample_words, words

WORD = st.integers(0, 2**32 - 1)

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, answer
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_random123_known_answers(counter: str, key: str, answer: str) -> None:
    c, k, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, answer))
    got = philox(*(torch.tensor(word, dtype=torch.int64) for word in c), *k)
    assert [int(word) for word in got] == expected
    assert philox_in_python(c, k) == expected


@given(st.lists(WORD, min_size=4, max_size=4), WORD, WORD)
def test_tensors_and_python_ints_give_the_same_words(counter: list[int], low: int, high: int) -> None:
    block, draw, *sample = (torch.tensor([word], dtype=torch.int64) for word in counter)
    got = words(block, draw, (sample[0], sample[1]), low + (high << 32))
    assert [int(word) for word in got] == philox_in_python(counter, [low, high])


def test_words_broadcast_blocks_against_samples() -> None:
    blocks, samples = torch.arange(3).unsqueeze(0), torch.arange(5).unsqueeze(1)
    got = torch.stack(words(blocks, torch.full((5, 1), 7), (samples, samples + 100), 9), dim=-1)
    assert got.shape == (5, 3, 4)
    assert got[4, 2].tolist() == philox_in_python([2, 7, 4, 104], [9, 0])


@pytest.mark.parametrize("first", [0, 2**32 - 2, 2**63 - 2, 2**64 - 4, 5 * 2**32 - 1])
def test_sample_index_splits_into_words_without_overflow(first: int) -> None:
    low, high = sample_words(first, torch.arange(4))
    assert [int(a) + (int(b) << 32) for a, b in zip(low, high, strict=True)] == [first + i for i in range(4)]


@pytest.mark.parametrize("seed", [-1, 2**64, 2**70])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"`seed` = {seed} .*2\*\*64"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None, torch.tensor(1.5)])
def test_seed_of_another_type_is_refused(seed: object) -> None:
    with pytest.raises(TypeError, match="`seed` must be an integer"):
        check_seed(seed)


def test_ends_of_the_ranges_are_accepted() -> None:
    assert (check_seed(2**64 - 1), check_draw(2**32 - 1), check_first(2**64 - 3, 3)) == (
        2**64 - 1,
        2**32 - 1,
        2**64 - 3,
    )


@pytest.mark.parametrize("draw", [-1, 2**32])
def test_draw_out_of_range_is_refused(draw: int) -> None:
    with pytest.raises(ValueError, match=f"`draw` = {draw} "):
        check_draw(draw)


def test_first_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="`first` = -1 "):
        check_first(-1, 1)
    with pytest.raises(ValueError, match=f"pass `first` <= {2**64 - 3}"):
        check_first(2**64 - 2, 3)
