"""Compensated sums in a kernel: what a float32 sum loses is kept beside it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
sums = pytest.importorskip("halfbridge.kernels.gpu.sums")


@triton.jit
def dot_kernel(out, a, b, N: tl.constexpr) -> None:
    high, low = sums.product(tl.load(a + tl.arange(0, N)), tl.load(b + tl.arange(0, N)))
    high, low = sums.sum_pairs(high, low, 0)
    tl.store(out, high)
    tl.store(out + 1, low)


values = arrays.arrays("float32", 16, elements=st.floats(-(2.0**20), 2.0**20, width=32))


@settings(deadline=None, max_examples=60)
@given(values, values)
def test_a_pair_holds_a_dot_product_to_twice_float32(a: object, b: object) -> None:
    x, y, out = torch.tensor(a), torch.tensor(b), torch.zeros(2)
    dot_kernel[(1,)](out, x, y, N=16)
    terms = (x.double() * y.double()).tolist()  # exact
    size = math.fsum(map(abs, terms))
    assert abs(math.fsum([*out.double().tolist(), -math.fsum(terms)])) <= 2.0**-44 * size + 1e-37


def test_what_cancels_leaves_the_small_terms() -> None:
    x, out = torch.tensor([2.0**13, 1.0, 2.0**13, 2.0**-10]), torch.zeros(2)
    dot_kernel[(1,)](out, x, x * torch.tensor([1.0, 1.0, -1.0, 1.0]), N=4)
    assert float(out.double().sum()) == 1.0 + 2.0**-20
