"""normal_sum: the weighted sum of `normal`'s own bits, on every backend, for any batch and chunking."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbridge.kernels import normal, use
from halfbridge.kernels.dispatch import available
from halfbridge.kernels.normal_sum import normal_sum

module = sys.modules["halfbridge.kernels.normal_sum"]
CPU = [name for name in available() if name != "triton"]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(1,), (3, 1), (2, 3), (5, 4), (3, 5, 7), (300, 2), (2, 1500)]),
    draws=st.lists(st.integers(0, 2**32 - 1), max_size=5),
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**64 - 400),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    chunk=st.sampled_from([4, 8, 64, 1 << 14]),
)
def test_it_is_the_sum_of_the_normals_in_their_order(shape, draws, seed, first, dtype, chunk):
    coefficients = [(-1.3) ** k for k in range(len(draws))]
    want = torch.zeros(shape, dtype=torch.float64)
    for draw, c in zip(draws, coefficients, strict=True):
        want = want + normal(shape, seed, draw, first, dtype=dtype).double() * c
    whole, module.CHUNK["cpu"] = module.CHUNK["cpu"], chunk
    try:
        for name in CPU:
            with use(name):
                assert torch.equal(normal_sum(shape, seed, draws, coefficients, first, dtype), want)
    finally:
        module.CHUNK["cpu"] = whole


def test_threads_change_no_bit():
    one = normal_sum((64, 5000), 3, range(8), [0.5] * 8)
    torch.set_num_threads(2)
    try:
        assert torch.equal(normal_sum((64, 5000), 3, range(8), [0.5] * 8), one)
    finally:
        torch.set_num_threads(1)


def test_half_states_take_float32_normals():
    want = normal_sum((4, 3), 3, [1, 2], [1.0, 2.0])
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(normal_sum((4, 3), 3, [1, 2], [1.0, 2.0], dtype=dtype), want)


def test_it_runs_in_tritons_interpreter_by_way_of_the_reference():
    if "triton" not in available():
        return
    with use("triton"):
        got = normal_sum((4, 3), 3, [1, 2], [1.0, 2.0])
    torch.testing.assert_close(got, normal_sum((4, 3), 3, [1, 2], [1.0, 2.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"coefficients": [1.0]}, ValueError, r"1 entries for 2 `draws`"),
        ({"coefficients": [1.0, math.nan]}, ValueError, "nan"),
        ({"draws": [1, 2**32]}, ValueError, "draw"),
        ({"draws": [1, 2.0]}, TypeError, r"2\.0"),
        ({"seed": -1}, ValueError, "seed"),
        ({"first": 2**64 - 1}, ValueError, "first"),
        ({"shape": ()}, ValueError, "shape"),
        ({"dtype": torch.int64}, ValueError, "int64"),
    ],
)
def test_bad_input_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        normal_sum(**{"shape": (4, 3), "seed": 3, "draws": [1, 2], "coefficients": [1.0, 2.0], **changes})
