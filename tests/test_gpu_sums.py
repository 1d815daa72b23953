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
def sum_kernel(out, a, N: tl.constexpr) -> None:
    high, low = sums.sum_pairs(tl.load(a + tl.arange(0, N)), tl.zeros([N], tl.float32), 0)
    tl.store(out, high)
    tl.store(out + 1, low)


@triton.jit
def norm_kernel(out, a, N: tl.constexpr) -> None:
    """The norms of the halves of `a`, and of the whole as their sum."""
    i = tl.arange(0, N)[None, :]
    k, high = sums.squares(tl.load(a + i), 1, N, True)
    more_k, more = sums.squares(tl.load(a + N + i), 1, N, True)
    low = tl.zeros_like(high)
    tl.store(out + tl.arange(0, 1), sums.norms(k, high, low, True))
    k, high, low = sums.add_squares(k, high, low, more_k, more, True)
    tl.store(out + 1 + tl.arange(0, 1), sums.norms(k, high, low, True))


values = arrays.arrays("float32", 16, elements=st.floats(-(2.0**40), 2.0**40, width=32))
exponents = st.integers(-120, 120)


@settings(deadline=None, max_examples=60)
@given(values)
def test_a_pair_holds_a_sum_to_twice_float32(a: object) -> None:
    x, out = torch.tensor(a), torch.zeros(2)
    sum_kernel[(1,)](out, x, N=16)
    terms = x.double().tolist()
    size = math.fsum(map(abs, terms))
    assert abs(math.fsum([*out.double().tolist(), -math.fsum(terms)])) <= 2.0**-44 * size + 1e-37


def test_what_cancels_leaves_the_small_terms() -> None:
    x, out = torch.tensor([2.0**26, 1.0, -(2.0**26), 2.0**-20]), torch.zeros(2)
    sum_kernel[(1,)](out, x, N=4)
    assert float(out.double().sum()) == 1.0 + 2.0**-20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=60)
@given(exponents, exponents, st.integers(0, 99))
def test_a_norm_has_the_range_of_its_dtype(dtype: torch.dtype, here: int, there: int, seed: int) -> None:
    """Also where the squares, or those of one half beside the other's, leave it."""
    more = 7 if dtype == torch.float64 else 1
    half = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x, out = (
        half * torch.tensor([[2.0 ** (more * here)], [2.0 ** (more * there)]], dtype=dtype),
        torch.zeros(2, dtype=dtype),
    )
    norm_kernel[(1,)](out, x, N=16)
    for got, part in zip(out.tolist(), (x[0], x.flatten()), strict=True):
        assert got == pytest.approx(math.hypot(*part.tolist()), rel=4 * torch.finfo(dtype).eps)
