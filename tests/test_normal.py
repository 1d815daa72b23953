"""Counter-based normals: each one's exact value, the same bits on every path, and nothing else in the counter."""

import importlib.util
import math
import sys
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from counters import box_muller_in_mpmath, normal_in_python
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbridge.kernels import boxmuller, normal, normal_block, use
from halfbridge.kernels import normal as normal_call

HAS_NUMBA = importlib.util.find_spec("numba") is not None
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
BACKENDS = ["reference", pytest.param("numba", marks=needs_numba)]
BOUND = {torch.float32: 1e-6, torch.float64: 1e-14}
TOP = 2**32 - 1

BORDERS = sorted(
    {word for q in range(9) for word in range(q * 2**29 - 3, q * 2**29 + 4) if 0 <= word <= TOP}
    | {2**k + d for k in range(33) for d in (-1, 0, 1) if 0 <= 2**k + d <= TOP}
    | {TOP - 2**k for k in range(32)}
    | {round(math.sqrt(0.5) * 2**32) + d for d in range(-4, 4)}
)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "seed", "draw", "first"),
    [
        ((3, 5), 0, 0, 0),
        ((2, 3, 3), 2**64 - 1, 2**32 - 1, 2**64 - 2),
        ((4, 4), 0x0123456789ABCDEF, 7, 2**32 - 2),
        ((5,), 1, 2, 2**63 - 2),
    ],
)
def test_normals_are_box_muller_of_the_counters_words(
    shape: tuple[int, ...], seed: int, draw: int, first: int, name: str, dtype: torch.dtype
) -> None:
    with use(name):
        got = normal(shape, seed, draw, first, dtype=dtype).double().view(shape[0], -1)
    n = got.shape[1]
    exact = [[normal_in_python(seed, draw, first + i, j) for j in range(n)] for i in range(shape[0])]
    assert (got - torch.tensor(exact, dtype=torch.float64)).abs().max() < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_words_at_the_borders_of_range_quadrants_and_logarithm_give_accurate_normals(dtype: torch.dtype) -> None:
    first = torch.tensor([0, 1, 170, 2**31 - 1, 2**31, TOP - 1, TOP, *BORDERS])
    w0, w1 = (w.reshape(-1) for w in torch.meshgrid(first, torch.tensor(BORDERS), indexing="ij"))
    every = torch.arange(0, len(w0), 17)
    w0, w1 = w0[every].contiguous(), w1[every].contiguous()
    x, y = boxmuller.box_muller(w0, w1, dtype)
    exact = torch.tensor(
        [box_muller_in_mpmath(a, b) for a, b in zip(w0.tolist(), w1.tolist(), strict=True)], dtype=torch.float64
    )
    assert (torch.stack((x, y), 1) - exact).abs().max() < BOUND[dtype]


@pytest.mark.parametrize(
    ("table", "log", "sin", "cos"),
    [(boxmuller.FLOAT32, 1e-9, 9e-9, 8e-10), (boxmuller.FLOAT64, 2.5e-18, 1.2e-17, 6e-19)],
)
def test_coefficients_are_minimax_fits(table: boxmuller.Table, log: float, sin: float, cos: float) -> None:
    """The same functions run on 30-digit numbers: what is left is the error of the coefficients, relative."""
    with mpmath.workdps(30):
        for i in range(1, 60):
            b = mpmath.mpf(i) / 472  # 59 / 472 = 1/8
            half = (mpmath.sqrt(2) - 1) * i / 59
            for f in (half, -half / (1 + half)):
                assert abs(boxmuller.logarithm(f, 0, table) / mpmath.log1p(f) - 1) < log
            assert abs(boxmuller.sine(b, b * b, table) / mpmath.sinpi(2 * b) - 1) < sin
            assert abs(boxmuller.cosine(b * b, table) - mpmath.cospi(2 * b)) < cos
        assert abs(mpmath.mpf(table.ln2) + table.ln2_rest - mpmath.log(2)) < log * 1e-4


def test_radius_near_one_keeps_its_digits() -> None:
    words = TOP - torch.arange(2000)
    exact = [math.sqrt(-2 * math.log1p(-(i + 0.5) / 2**32)) for i in range(2000)]
    for dtype, bound in ((torch.float32, 2.5e-7), (torch.float64, 1e-15)):
        relative = boxmuller.radius(words, dtype).double() / torch.tensor(exact, dtype=torch.float64) - 1
        assert relative.abs().max() < bound


def test_float32_normals_stay_within_1e_6_over_dense_random_words() -> None:
    generator = torch.Generator().manual_seed(0)
    w0, w1 = (torch.randint(0, 2**32, (1 << 19,), generator=generator) for _ in range(2))
    w0[::2] >>= torch.randint(0, 33, (1 << 18,), generator=generator)  # large radii too
    narrow, wide = boxmuller.box_muller(w0, w1, torch.float32), boxmuller.box_muller(w0, w1, torch.float64)
    assert max((a.double() - b).abs().max() for a, b in zip(narrow, wide, strict=True)) < 1e-6


def test_worst_pair_of_words_found_by_exhaustion() -> None:
    """All 2^32 radii and all 2^30 angles of a quadrant were scanned, and all pairs that the two scans left possible."""
    w0, w1 = 172, (-535085072) % 2**32
    got = boxmuller.box_muller(torch.tensor([w0]), torch.tensor([w1]), torch.float32)
    error = max(abs(float(a) - b) for a, b in zip(got, box_muller_in_mpmath(w0, w1), strict=True))
    assert 9.9e-7 < error < 1e-6


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 1500), st.integers(1, 5)),
        st.tuples(st.integers(1, 3), st.integers(2030, 4200)),
    ),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 4),
    st.one_of(st.integers(0, 2**64 - 2000), st.integers(2**32 - 1500, 2**32)),
)
def test_numba_and_reference_have_the_same_bits(
    dtype: torch.dtype, draws: int, shape: tuple[int, int], seed: int, draw: int, first: int
) -> None:
    with use("numba"):
        compiled = normal_block(shape, seed, range(draw, draw + draws), first, dtype)
    with use("reference"):
        eager = normal_block(shape, seed, range(draw, draw + draws), first, dtype)
    assert torch.equal(compiled, eager)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_stages_have_the_bits_of_the_formulas_at_every_border(dtype: torch.dtype) -> None:
    stages = importlib.import_module("halfbridge.kernels.cpu.normal").compiled(dtype)
    some = torch.randint(0, 2**32, (100_000,), generator=torch.Generator().manual_seed(1))
    w = torch.cat([torch.tensor(BORDERS), some])
    signed = w.numpy().astype(np.uint32).view(np.int32)
    r, cos, sin = (torch.empty(len(w), dtype=dtype) for _ in range(3))
    stages["radii"](signed, r.numpy(), len(w))
    assert torch.equal(r, boxmuller.radius(w, dtype))
    stages["turns"](signed, torch.ones(len(w), dtype=dtype).numpy(), cos.numpy(), sin.numpy(), len(w))
    assert torch.equal(torch.stack([cos, sin]), torch.stack(boxmuller.direction(w, dtype)))


@needs_numba
@pytest.mark.parametrize("shape", [(2, 700_001), (1, 1_200_000), (600_000, 2), (5000, 131)])
def test_the_number_of_threads_leaves_no_trace(shape: tuple[int, int], threads: int) -> None:
    with use("numba"):
        many = normal(shape, 5, 3)
    with use("reference"):
        assert torch.equal(many[:1], normal((1, shape[1]), 5, 3))
        assert torch.equal(many[-1:], normal((1, shape[1]), 5, 3, first=shape[0] - 1))
    torch.set_num_threads(1)
    with use("numba"):
        assert torch.equal(many, normal(shape, 5, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", [(37, 5), (20, 3, 7), (3, 70_001), (40_000, 1)])
def test_a_sample_depends_on_its_global_index_only(shape: tuple[int, ...], name: str, dtype: torch.dtype) -> None:
    with use(name):
        whole = normal(shape, 11, 4, first=100, dtype=dtype)
        for start, stop in ((0, 1), (1, 3), (shape[0] - 2, shape[0])):
            part = normal((stop - start, *shape[1:]), 11, 4, first=100 + start, dtype=dtype)
            assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_of_the_reference_leave_no_trace(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    module = importlib.import_module(normal_call.__module__)
    with use("reference"):
        whole = normal_block((9, 103), 3, (1, 5, 2), dtype=dtype)
        for chunk in (1, 7, 26, 60, 1000):
            monkeypatch.setitem(module.CHUNK, "cpu", chunk)
            assert torch.equal(normal_block((9, 103), 3, (1, 5, 2), dtype=dtype), whole)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_block_holds_the_single_draws(name: str, dtype: torch.dtype) -> None:
    with use(name):
        block = normal_block((3, 2), 8, (4, 0, 2**32 - 1), 6, dtype=dtype)
        for k, draw in enumerate((4, 0, 2**32 - 1)):
            assert torch.equal(block[k], normal((3, 2), 8, draw, 6, dtype=dtype))
        assert normal_block((3, 2), 8, ()).shape == (0, 3, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_normals_are_the_float32_ones_rounded(dtype: torch.dtype) -> None:
    assert torch.equal(normal((50, 9), 1, dtype=dtype), normal((50, 9), 1).to(dtype))


def test_the_default_dtype_changes_nothing() -> None:
    with use("reference"):
        before = normal((10, 7), 2), normal((10, 7), 2, dtype=torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            after = normal((10, 7), 2), normal((10, 7), 2, dtype=torch.float64)
        finally:
            torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 4), (1,), (1, 1, 1)])
def test_empty_and_single_shapes_work(name: str, shape: tuple[int, ...]) -> None:
    with use(name):
        assert normal(shape, 3).shape == shape


@pytest.mark.parametrize("name", BACKENDS)
def test_out_is_filled_whatever_its_strides(name: str) -> None:
    with use(name):
        expected = normal((4, 6), 9, 1, 2)
        for out in (
            torch.full((4, 6), math.nan),
            torch.full((6, 4), math.nan).t(),
            torch.full((4, 12), math.nan)[:, ::2],
        ):
            assert normal((4, 6), 9, 1, 2, out=out) is out
            assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_and_independence_of_neighbouring_counters(dtype: torch.dtype) -> None:
    n = 200_000
    a = normal((n, 4), 21, 1, dtype=dtype).double()
    others = (normal((n, 4), 21, 2, dtype=dtype), normal((n, 4), 22, 1, dtype=dtype), a.roll(1, 0), a.roll(1, 1))
    se = 1 / math.sqrt(4 * n)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((a**power).mean() - mean) < 5 * math.sqrt(variance) * se
    for b in others:
        assert abs((a * b).mean()) < 5 * se


BAD = [
    (((), 0), {}, ValueError, r"`shape` = \(\) has no batch axis"),
    ((4, 0), {}, TypeError, r"`shape` must be a sequence.*\(4,\)"),
    (((2, -1), 0), {}, ValueError, r"`shape`\[1\] = -1"),
    (((2, 1.5), 0), {}, ValueError, r"`shape`\[1\] = 1.5"),
    (((1, 2**35), 0), {}, ValueError, r"2\*\*34"),
    (((0, 2**34 - 2047), 0), {}, ValueError, r"ends at 2\*\*34 - 2048"),
    (((1, 2), -1), {}, ValueError, "`seed` = -1"),
    (((1, 2), 2**64), {}, ValueError, "`seed` = "),
    (((1, 2), True), {}, TypeError, "`seed`"),
    (((1, 2), 0.5), {}, TypeError, "`seed`"),
    (((1, 2), 0, 2**32), {}, ValueError, "`draw` = "),
    (((1, 2), 0, 0, -1), {}, ValueError, "`first` = -1"),
    (((3, 2), 0, 0, 2**64 - 2), {}, ValueError, "`first` = "),
    (((1, 2), 0), {"dtype": torch.int32}, ValueError, "`dtype` = torch.int32"),
    (((1, 2), 0), {"out": torch.empty(2, 2)}, ValueError, r"`out` has shape \(2, 2\)"),
    (((1, 2), 0), {"out": torch.empty(1, 2, dtype=torch.float64)}, ValueError, "dtype=out.dtype"),
    (((1, 2), 0), {"out": torch.empty(1, 2, device="meta")}, ValueError, "device=out.device"),
    (((1, 2), 0), {"out": torch.empty(1, 2, requires_grad=True)}, ValueError, "requires gradients"),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "message"), BAD)
def test_bad_arguments_are_named(args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        normal(*args, **kwargs)


def test_numpy_integers_are_integers() -> None:
    assert torch.equal(normal((2, 3), np.int64(5), np.uint32(1), np.int32(7)), normal((2, 3), 5, 1, 7))  # type: ignore[arg-type]


def test_the_numpy_path_for_few_numbers_has_the_bits_of_the_eager_one(monkeypatch):
    """Small requests take numpy, which costs a third per call: no bit may show it."""
    module = sys.modules["halfbridge.kernels.normal"]
    draws = [0, 1, 5, 2**32 - 1]
    for dtype in (torch.float32, torch.float64):
        for shape, first in (((1, 2), 0), ((3, 5), 7), ((7,), 2**32 - 3), ((2, 3, 4), 2**64 - 2), ((20, 50), 5)):
            for seed in (0, 1, 2**63, 2**64 - 1):
                with use("reference"):
                    monkeypatch.setattr(module, "FEW", 4096)
                    few = normal_block(shape, seed, draws, first=first, dtype=dtype)
                    monkeypatch.setattr(module, "FEW", -1)
                    assert torch.equal(few, normal_block(shape, seed, draws, first=first, dtype=dtype))
