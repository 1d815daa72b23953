"""`error_norm`: its formula against extended precision, its kernel, what a batch may not change, and its edges."""

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import only_program
from layouts import DTYPES, LAYOUTS, inner_dtype, laid_out, shapes
from torch import Tensor

from halfbridge.kernels import error_norm, normal, use
from halfbridge.kernels import error_norm as error_norm_call
from halfbridge.kernels.error_norm import error_norm_operator

BACKENDS = ["reference", "triton"]
module = importlib.import_module(error_norm_call.__module__)
numbers = st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6) | st.floats(1e-30, 1e-20) | st.just(0.0)
tolerances = st.sampled_from([(1e-3, 1e-6), (0.0, 1e-2), (1e-2, 0.0), (1.0, 1e3)])


def states(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [normal(shape, 50, draw, dtype=dtype) for draw in range(count)]


def exact(
    vectors: list[Tensor], c: list[float], x: Tensor, y: Tensor, rtol: float, atol: float, norm: str = "sample"
) -> tuple[np.ndarray, np.ndarray]:
    """The norm in numpy's long double, and the norm of sum_j |c_j v_j| in place of e: what rounding errors are relative to."""
    rows = 1 if norm == "batch" else len(x)
    d = x.numel() // max(rows, 1)
    a, b, *v = (np.asarray(t.double().reshape(rows, d).numpy(), np.longdouble) for t in (x, y, *vectors))
    tolerance = atol + rtol * np.maximum(abs(a), abs(b))
    e = sum(np.longdouble(k) * u for k, u in zip(c, v, strict=True))
    size = sum(abs(np.longdouble(k) * u) for k, u in zip(c, v, strict=True))
    pair = [np.sqrt(((t / tolerance) ** 2).mean(axis=1)) if a.size else np.zeros(rows) for t in (e, size)]
    return (pair[0][0], pair[1][0]) if norm == "batch" else (pair[0], pair[1])


def measure(backend: str, s: list[Tensor], c: list[float], rtol: float, atol: float, norm: Any = "sample") -> Tensor:
    with use(backend):
        return error_norm(s[2:], c, s[0], s[1], rtol=rtol, atol=atol, norm=norm)


@pytest.mark.usefixtures("dirty_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(numbers, min_size=1, max_size=6), shapes(1023, 1024, 1025, 2500), tolerances,
    st.lists(st.sampled_from(LAYOUTS), min_size=8, max_size=8), st.sampled_from(["sample", "batch"]),
)  # fmt: skip
def test_it_is_the_formula_and_the_kernel_agrees_to_2_ulp(
    dtype: torch.dtype,
    c: list[float],
    shape: tuple[int, ...],
    rtol_atol: tuple[float, float],
    layouts: list[str],
    norm: str,
) -> None:
    s = [laid_out(t, how) for t, how in zip(states(len(c) + 2, shape, dtype), layouts, strict=False)]
    want, size = exact(s[2:], c, s[0], s[1], *rtol_atol, norm)
    eps = torch.finfo(inner_dtype(dtype)).eps
    reference, kernel = (measure(backend, s, c, *rtol_atol, norm) for backend in BACKENDS)
    for got in (reference, kernel):
        assert got.shape == (() if norm == "batch" else shape[:1])
        assert got.dtype == inner_dtype(dtype)
        assert (abs(got.numpy() - want) <= (len(c) / 2 + 3) * eps * size + 1e-37).all()
    assert (abs(reference.double().numpy() - kernel.double().numpy()) <= 2 * eps * size + 1e-37).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 3, 8, 100, 512, 1000, 1025, 3001])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype, size: int, backend: str) -> None:
    s = states(5, (9, size), dtype)
    whole = measure(backend, s, [0.3, -0.2, 1e-3], 1e-3, 1e-6)
    for start, stop in ((0, 1), (3, 7), (8, 9)):
        part = measure(backend, [t[start:stop].clone() for t in s], [0.3, -0.2, 1e-3], 1e-3, 1e-6)
        assert torch.equal(part, whole[start:stop])


def test_chunks_of_samples_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    s = states(4, (23, 6))
    whole = measure("reference", s, [0.3, -0.2], 1e-3, 1e-6)
    for chunk in (6, 30, 100):
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert torch.equal(measure("reference", s, [0.3, -0.2], 1e-3, 1e-6), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_a_sample_are_put_together(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three levels of parts on a GPU, and parts on the CPU."""
    gpu = importlib.import_module("halfbridge.kernels.gpu.error_norm")
    s = states(3, (2, 150), torch.float64)
    monkeypatch.setattr(gpu, "TILE", 8)
    monkeypatch.setattr(module, "CHUNK", 40)
    for norm in ("sample", "batch"):
        want, _ = exact(s[2:], [2.0], s[0], s[1], 1e-3, 1e-6, norm)
        assert np.allclose(measure(backend, s, [2.0], 1e-3, 1e-6, norm).numpy(), want.astype(float), rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [2, 1000, 2000])
@pytest.mark.parametrize("ratio", [1e-30, 1e-15, 1e18, 1e34])
def test_squares_neither_overflow_nor_vanish(ratio: float, size: int, backend: str) -> None:
    s = states(3, (3, size))
    c = [ratio * 1e-3]
    got = measure(backend, s, c, 0.0, 1e-3)
    want, _ = exact(s[2:], c, s[0], s[1], 0.0, 1e-3)
    assert np.allclose(got.numpy(), want.astype(float), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_of_all_sizes_mix(backend: str, dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3000, dtype=dtype)
    v = torch.tensor([1e-30, 1.0, 1e15, 3.0, 1e-5], dtype=dtype).repeat(2, 600)
    v[1] = v[0].flip(0)
    want, _ = exact([v], [1.0], x, x, 0.0, 1.0)
    eps = torch.finfo(dtype).eps
    assert np.allclose(measure(backend, [x, x, v], [1.0], 0.0, 1.0).numpy(), want.astype(float), rtol=4 * eps, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_tolerance_no_error_counts_as_none_and_any_other_is_infinite(
    dtype: torch.dtype, backend: str
) -> None:
    x, y = torch.zeros(3, 4, dtype=dtype), torch.zeros(3, 4, dtype=dtype)
    v = torch.zeros(3, 4, dtype=dtype)
    y[1:] = 1
    v[1] = 2
    y[2, 2], v[2, 2] = 0, -1
    assert measure(backend, [x, y, v], [0.5], 0.5, 0.0).tolist() == [0.0, 2.0, math.inf]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_accepted(bad: float, dtype: torch.dtype, backend: str) -> None:
    for rtol, atol in ((1e-3, 0.0), (1e-3, 1e-6), (0.0, 1e-3)):
        for which in range(3):
            s = [torch.ones(4, 5, dtype=dtype), torch.ones(4, 5, dtype=dtype), torch.zeros(4, 5, dtype=dtype)]
            s[which][2, 3] = bad
            got = measure(backend, s, [1.0], rtol, atol)
            assert not got[2] < math.inf
            assert got[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
            assert which == 2 or math.isnan(got[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_norm_of_a_batch_is_the_root_mean_square_of_its_samples(backend: str) -> None:
    s = states(4, (7, 30), torch.float64)
    of_samples = measure(backend, s, [1.0, 2.0], 1e-2, 1e-3)
    assert torch.allclose(measure(backend, s, [1.0, 2.0], 1e-2, 1e-3, "batch"), of_samples.square().mean().sqrt())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_of_one_tolerance_everywhere_has_norm_1(backend: str) -> None:
    x, y = (t.abs() + 1 for t in states(2, (5, 77)))
    e = 1e-3 * torch.maximum(x, y) + 1e-4
    assert torch.allclose(measure(backend, [x, -y, -e], [1.0], 1e-3, 1e-4), torch.ones(5), rtol=1e-6)


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_a_tile_beyond_32_bits_is_read_where_it_lies(norm: str) -> None:
    gpu = importlib.import_module("halfbridge.kernels.gpu.error_norm")
    samples, d = (1 << 21) + 3, 2 << 10
    x = torch.empty((samples, d), dtype=torch.float16)  # never touched but for the last sample: no memory is used
    x[-1] = 2.0
    batch = samples if norm == "sample" else 1
    numbers = (*gpu.bits([1.0], x.dtype), 0, 0, 0, 0, 0, *gpu.bits([0.25, 0.5], x.dtype))
    with only_program(-1):
        norms = gpu.tile_norms([x, x, x], numbers, batch, x.numel() // batch, 1 / d if norm == "sample" else 1.0)
    assert norms.shape == (batch, samples // batch)
    assert norms[-1, -1] == (2.0 if norm == "sample" else 2.0 * d**0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_carries_no_gradient(backend: str) -> None:
    s = [t.requires_grad_() for t in states(3, (2, 3))]
    assert not measure(backend, s, [1.0], 1e-3, 1e-6).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_stays_in_one_compiled_graph(backend: str) -> None:
    s = states(4, (3, 5))

    def doubled(x: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return 2 * error_norm([v, w], [0.3, -0.2], x, y, rtol=1e-3, atol=1e-6)

    with use(backend):
        assert torch.equal(torch.compile(doubled, fullgraph=True, backend="aot_eager")(*s), doubled(*s))


def test_its_operator_keeps_the_rules_of_torch() -> None:
    s = states(4, (3, 5))
    numbers = [0.3, -0.2, 1e-3, 1e-6]
    for norm in ("sample", "batch"):
        for rest in ((numbers, None), (None, torch.tensor(numbers))):
            torch.library.opcheck(error_norm_operator, (s[2:], *rest, s[0], s[1], norm))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rtol": -1e-3}, "`rtol` = -0.001 is negative"),
        ({"atol": math.nan}, "`atol` = nan is not finite"),
        ({"rtol": 0.0, "atol": 0.0}, "both 0"),
        ({"atol": 1e-40}, "`atol` = 1e-40 is below 1.2e-38"),
        ({"norm": "max"}, "`norm` = 'max'"),
        ({"x": torch.zeros(3, 4)}, r"`x` has shape \(3, 4\) but `vectors`\[0\] has \(2, 3\)"),
        ({"y": torch.zeros(2, 3, dtype=torch.float64)}, "`y` has dtype torch.float64"),
        ({"coefficients": [1.0, 2.0]}, "1 `vectors` but 2 `coefficients`"),
        ({"vectors": [torch.zeros(2, 3)] * 7, "coefficients": [1.0] * 7}, "7 `vectors`, at most 6"),
        ({"vectors": [], "coefficients": []}, "`vectors` is empty; pass 1 to 6"),
        ({name: torch.tensor(1.0) for name in "xy"} | {"vectors": [torch.tensor(1.0)]}, "no batch axis"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    good = {"vectors": [torch.zeros(2, 3)], "coefficients": [1.0], "x": torch.zeros(2, 3), "y": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        error_norm(**{**good, "rtol": 1e-3, "atol": 1e-6, **change})


def test_a_tolerance_that_is_no_number_is_a_type_error() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(TypeError, match="`rtol` is a Tensor"):
        error_norm([x], [1.0], x, x, rtol=torch.tensor(1e-3), atol=1e-6)  # type: ignore[arg-type]


def test_ratios_whose_sum_of_squares_overflows_over_several_tiles() -> None:
    r, x = torch.full((2, 4096), 2e37), torch.zeros(2, 4096)
    for backend in ("reference", "triton"):
        with use(backend):
            for norm in ("sample", "batch"):
                got = error_norm([r], [1.0], x, x, rtol=0.0, atol=1.0, norm=norm)  # type: ignore[arg-type]
                assert torch.allclose(got, torch.full_like(got, 2e37))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_it_can_be_mapped_over_a_new_axis(backend: str) -> None:
    x, errors = normal((2, 5), 1), normal((3, 2, 5), 2)
    with use(backend):
        got = torch.func.vmap(lambda v: error_norm([v], [0.5], x, x, rtol=0.1, atol=0.1))(errors)
    want = torch.stack([error_norm([v], [0.5], x, x, rtol=0.1, atol=0.1) for v in errors])
    assert torch.allclose(got, want)
