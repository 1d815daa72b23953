"""`combine`: its value to rounding on every backend, in any memory layout, with noise, into any output."""

import importlib
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import DTYPES, LAYOUTS, inner_dtype, laid_out, shapes
from torch import Tensor

from halfbridge.kernels import Noise, combine, normal, use
from halfbridge.kernels import combine as combine_call
from halfbridge.kernels.arguments import check_noise
from halfbridge.kernels.dispatch import available

module = importlib.import_module(combine_call.__module__)
BACKENDS = [name for name in ("reference", "numba") if name in available()]
NOISE = Noise(0.7, 2**63 + 5, 3, 2**32 - 2)
on_backends = pytest.mark.parametrize("backend", BACKENDS)
numbers = st.floats(1e-30, 1e30) | st.floats(-1e30, -1e-30) | st.floats(-2, 2)


def vectors(count: int, shape: tuple[int, ...] = (4, 5), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [normal(shape, 100, draw, dtype=dtype) for draw in range(count)]


def check(got: Tensor, terms: list[Tensor], coefficients: list[float], noise: Noise | None = None) -> None:
    """Every element is the sum of the exact products, up to half a unit in the last place of sum_j |c_j v_j| for each
    addition, for the products together (they may be rounded before they are added), and for coefficients that are
    merged because their vectors are the output; and half a unit of its own where the state is narrower.
    """
    inner = inner_dtype(got.dtype)
    columns = [v.double().reshape(-1).tolist() for v in terms]
    exact = [Fraction(torch.tensor(c, dtype=inner).item()) for c in coefficients]
    if noise is not None:
        columns.append(normal(tuple(got.shape), *noise[1:], dtype=inner).double().reshape(-1).tolist())
        exact.append(Fraction(torch.tensor(noise.scale, dtype=inner).item()))
    unit, smallest = Fraction(torch.finfo(inner).eps) / 2, Fraction(torch.finfo(inner).smallest_normal)
    own, largest = Fraction(torch.finfo(got.dtype).eps) / 2, torch.finfo(got.dtype).max
    for i, value in enumerate(got.double().reshape(-1).tolist()):
        products = [c * Fraction(column[i]) for c, column in zip(exact, columns, strict=True)]
        want, size = sum(products), sum(map(abs, products))
        slack = (len(products) + 2) * unit * (size + smallest)
        if got.dtype != inner:
            if abs(want) > largest * (1 - own):
                continue
            slack += own * (abs(want) + Fraction(torch.finfo(got.dtype).smallest_normal)) * (1 + own)
        assert abs(Fraction(value) - want) <= slack, (i, value, float(want))


@on_backends
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", [None, NOISE])
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(numbers, st.sampled_from(LAYOUTS)), min_size=1, max_size=8),
    shapes(31, 64),
    st.sampled_from([None, *LAYOUTS[:-1]]),
)
def test_value_is_the_sum_to_rounding_in_any_layout(
    backend: str,
    dtype: torch.dtype,
    noise: Noise | None,
    factors: list[tuple[float, str]],
    shape: tuple[int, ...],
    target: str | None,
) -> None:
    coefficients = [c for c, _ in factors]
    terms = [laid_out(normal(shape, 100, j, dtype=dtype), layout) for j, (_, layout) in enumerate(factors)]
    out = None if target is None else laid_out(torch.full(shape, math.nan, dtype=dtype), target)
    with use(backend):
        got = combine(terms, coefficients, noise=noise, out=out)
    assert (got.shape, got.dtype) == (shape, dtype)
    assert out is None or got is out
    check(got, terms, coefficients, noise)


@on_backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_states_are_rounded_once(backend: str, dtype: torch.dtype) -> None:
    terms = vectors(4, (50, 40), dtype)
    coefficients = [0.3, -1.7, 1 / 3, 0.01]
    with use(backend):
        wide = combine([v.float() for v in terms], coefficients, noise=NOISE)
        assert torch.equal(combine(terms, coefficients, noise=NOISE), wide.to(dtype))


@on_backends
def test_coefficients_of_float64_states_keep_their_digits(backend: str) -> None:
    x = torch.ones(1, 2, dtype=torch.float64)
    with use(backend):
        assert combine([x, x], [1 / 3, 1e-12]).tolist() == [[1 / 3 + 1e-12] * 2]


@on_backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_the_scaled_normal_of_its_counter(backend: str, dtype: torch.dtype) -> None:
    [x] = vectors(1, (6, 3), dtype)
    z = normal((6, 3), NOISE.seed, NOISE.draw, NOISE.first, inner_dtype(dtype))
    wide = (x.to(z.dtype) * 2).add(z, alpha=NOISE.scale)
    with use(backend):
        assert torch.equal(combine([x], [2.0], noise=NOISE), wide.to(dtype))
        assert torch.equal(combine([x], [2.0], noise=tuple(NOISE)), wide.to(dtype))


@on_backends
def test_noise_without_vectors_fills_out(backend: str) -> None:
    out = torch.full((6, 3), math.nan)
    with use(backend):
        assert combine([], [], noise=Noise(2.0, 1, 2, 3), out=out) is out
        assert torch.equal(out, 2 * normal((6, 3), 1, 2, 3))
        assert torch.equal(combine([], [], out=out), torch.zeros(6, 3))


@on_backends
def test_noise_of_scale_zero_is_not_generated(backend: str) -> None:
    [x] = vectors(1)
    assert check_noise(Noise(0.0, 1, 2), x) is None
    x[0, 0] = -0.0
    with use(backend):
        assert combine([x], [1.0], noise=Noise(0.0, 1, 2))[0, 0].signbit()


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_made_in_chunks_that_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch, layout: str, dtype: torch.dtype
) -> None:
    [x] = vectors(1, (7, 300), dtype)
    if layout == "transposed":
        x = x.t().contiguous().t()
    sizes: list[int] = []
    resolve = module.resolve

    def recording(kernel: str, *args: Any) -> Any:
        run = resolve(kernel, *args)

        def make(out: Tensor, *rest: Any) -> None:
            sizes.append(out.numel())
            run(out, *rest)

        return make

    with use("reference"):
        whole = combine([x], [0.5], noise=NOISE)
        monkeypatch.setattr(module, "resolve", recording)
        for chunk in (4, 128, 300, 700, 10_000):
            monkeypatch.setitem(module.NOISE_CHUNK, "cpu", chunk)
            assert torch.equal(combine([x], [0.5], noise=NOISE), whole)
            assert max(sizes) <= (chunk if layout == "contiguous" else max(chunk, 300))
            sizes.clear()


@on_backends
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 33, 1000, 4097])
def test_a_sample_does_not_depend_on_its_batch(backend: str, dtype: torch.dtype, size: int) -> None:
    terms, coefficients = vectors(3, (67, size), dtype), [1 / 3, -0.9, 1.7]
    with use(backend):
        for noise in (None, NOISE):
            whole = combine(terms, coefficients, noise=noise)
            for start, stop in ((0, 1), (5, 8), (66, 67), (0, 66)):
                here = noise and noise._replace(first=noise.first + start)
                part = combine([v[start:stop].clone() for v in terms], coefficients, noise=here)
                assert torch.equal(part, whole[start:stop])


@on_backends
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("same_object", [True, False])
def test_out_may_stand_anywhere_among_the_vectors(
    backend: str, dtype: torch.dtype, places: tuple[int, ...], same_object: bool
) -> None:
    terms, coefficients = vectors(3, dtype=dtype), [0.3, -1.1, 2.3]
    out = terms[places[0]].clone()
    for place in places:
        terms[place] = out if same_object else out.view(out.shape)
    before = [v.clone() for v in terms]
    with use(backend):
        for noise in (NOISE, None):
            out.copy_(before[places[0]])
            got = combine(terms, coefficients, noise=noise, out=out)
            assert got is out
            check(got, before, coefficients, noise)


@on_backends
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 24), st.floats(-2, 2)), min_size=1, max_size=7),
    st.integers(0, 24) | st.sampled_from([0, 24]),  # all vectors begin behind it, or before
    st.tuples(st.integers(1, 3), st.integers(1, 8)),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from([None, NOISE]),
)
def test_out_may_overlap_the_vectors_in_any_way(
    backend: str,
    windows: list[tuple[int, float]],
    place: int,
    shape: tuple[int, int],
    by_columns: tuple[bool, bool],
    noise: Noise | None,
) -> None:
    memory = normal((48,), 5)

    def window(start: int, turned: bool) -> Tensor:
        part = memory[start : start + shape[0] * shape[1]]
        return part.view(shape[::-1]).t() if turned else part.view(shape)

    terms, out = [window(start, by_columns[0]) for start, _ in windows], window(place, by_columns[1])
    coefficients = [c for _, c in windows]
    before, around = [v.clone() for v in terms], memory.clone()
    with use(backend):
        assert combine(terms, coefficients, noise=noise, out=out) is out
    check(out, before, coefficients, noise)
    beyond = torch.ones(48, dtype=torch.bool)
    beyond[place : place + out.numel()] = False
    assert torch.equal(memory[beyond], around[beyond])


@on_backends
def test_out_may_be_a_vector_with_another_stride_along_an_axis_of_one(backend: str) -> None:
    memory = normal((2,), 5)
    x, out = memory.view(1, 2), memory.view(2, 1).t()
    assert x.stride() != out.stride()
    want = 6 * x.clone()
    with use(backend):
        assert torch.equal(combine([x, x, x], [1.0, 2.0, 3.0], out=out), want)


@on_backends
def test_out_may_lie_where_a_strided_vector_reaches(backend: str) -> None:
    memory = normal((24,), 5)
    out, reaching = memory[12:].view(3, 4), memory[::2].view(3, 4)
    want = 3 * out.clone() + 2 * reaching.clone()
    with use(backend):
        assert torch.equal(combine([out, reaching], [3.0, 2.0], out=out), want)


@on_backends
def test_neighbours_in_one_buffer_are_no_overlap(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = normal((3, 4, 5), 5)
    monkeypatch.setattr(torch, "empty_like", lambda *_: pytest.fail("a copy was made"))
    with use(backend):
        assert torch.equal(combine([memory[0], memory[1]], [1.0, 2.0], out=memory[2]), memory[0] + 2 * memory[1])
        assert torch.equal(combine([memory[2], memory[2]], [1.0, 2.0], out=memory[2]), 3 * (memory[0] + 2 * memory[1]))


@on_backends
def test_an_empty_batch_stays_empty(backend: str) -> None:
    with use(backend):
        for shape in ((0,), (0, 3), (3, 0), (2, 0, 4)):
            x = torch.zeros(shape)
            assert combine([x, x], [1.0, 2.0], noise=NOISE).shape == shape
            assert combine([x, x], [1.0, 2.0], out=x) is x
