"""Probes for traces: each sign from the documented bit of the documented counter, and the estimator's two variances."""

import importlib
import math
from typing import Any

import pytest
import torch
from counters import philox_in_python
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbridge.kernels import hutchinson_probe, normal, use
from halfbridge.kernels import hutchinson_probe as probe_call

module = importlib.import_module(probe_call.__module__)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["rademacher", "gaussian"]


def sign_in_python(seed: int, draw: int, sample: int, element: int) -> int:
    words = philox_in_python([element // 128, draw, sample % 2**32, sample // 2**32], [seed % 2**32, seed // 2**32])
    return -1 if words[element % 128 // 32] // 2 ** (element % 32) % 2 else 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "seed", "draw", "first"),
    [
        ((3, 5), 0, 0, 0),
        ((2, 3, 43), 2**64 - 1, 2**32 - 1, 2**64 - 2),
        ((4, 300), 0x0123456789ABCDEF, 7, 2**32 - 2),
        ((5,), 1, 2, 2**63 - 2),
    ],
)
def test_each_sign_is_its_bit(shape: tuple[int, ...], seed: int, draw: int, first: int, dtype: torch.dtype) -> None:
    got = hutchinson_probe(shape, seed, draw, first, dtype=dtype)
    assert got.dtype == dtype
    rows = got.view(shape[0], -1)
    n = rows.shape[1]
    assert rows.tolist() == [[sign_in_python(seed, draw, first + i, j) for j in range(n)] for i in range(shape[0])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_probes_are_the_normals(dtype: torch.dtype) -> None:
    got = hutchinson_probe((3, 7, 2), 5, 9, 2**40, kind="gaussian", dtype=dtype)
    assert torch.equal(got, normal((3, 7, 2), 5, 9, 2**40, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(37, 5), (20, 3, 43), (3, 70_001), (9000, 1)])
def test_a_probe_depends_on_its_global_index_only(kind: Any, shape: tuple[int, ...]) -> None:
    whole = hutchinson_probe(shape, 11, 4, first=100, kind=kind)
    for start, stop in ((0, 1), (1, 3), (shape[0] - 2, shape[0])):
        part = hutchinson_probe((stop - start, *shape[1:]), 11, 4, first=100 + start, kind=kind)
        assert torch.equal(part, whole[start:stop])


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 20), st.one_of(st.integers(1, 40), st.integers(100, 700))),
    st.sampled_from([1, 2, 3, 30]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 100),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_chunks_and_the_numpy_path_leave_no_trace(
    shape: tuple[int, int, int], chunk: int, seed: int, first: int, dtype: torch.dtype, in_torch: bool
) -> None:
    draws = [3, 2**32 - 1, 0, 3][: shape[0]]
    with pytest.MonkeyPatch.context() as patch, use("reference"):
        whole = [hutchinson_probe(shape[1:], seed, draw, first, dtype=dtype) for draw in draws]
        patch.setitem(module.CHUNK, "cpu", chunk)
        if in_torch:
            patch.setattr(module, "write_numpy", module.write_torch)
        block = torch.full(shape, math.nan, dtype=dtype)
        module.fill_probes(block, seed, draws, first, "rademacher")
        assert torch.equal(block, torch.stack(whole))


def test_a_start_skips_whole_counters() -> None:
    whole = hutchinson_probe((2, 1000), 3, 1)
    part = torch.full((1, 2, 600), math.nan)
    module.hutchinson_probe_reference(part, 3, (1,), 0, 384)
    assert torch.equal(part[0], whole[:, 384:984])


@pytest.mark.parametrize("kind", KINDS)
def test_out_is_filled_whatever_its_strides(kind: Any) -> None:
    expected = hutchinson_probe((4, 6), 9, 1, 2, kind=kind)
    for out in (
        torch.full((4, 6), math.nan),
        torch.full((6, 4), math.nan).t(),
        torch.full((4, 12), math.nan)[:, ::2],
        torch.full((25,), math.nan)[1:].view(4, 6),
    ):
        assert hutchinson_probe((4, 6), 9, 1, 2, kind=kind, out=out) is out
        assert torch.equal(out, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,), (2, 0, 4), (1,), (1, 1, 1)])
def test_empty_and_single_shapes_work(kind: Any, shape: tuple[int, ...]) -> None:
    assert hutchinson_probe(shape, 3, kind=kind).shape == shape


def quadratic_form(kind: Any, a: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    v = hutchinson_probe((n, len(a)), seed, 1, kind=kind, dtype=torch.float64)
    return ((v @ a) * v).sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_variance_of_the_estimator_are_the_stated_ones(kind: Any) -> None:
    """Means within 5 standard errors; so is the variance, whose own comes from the fourth moment."""
    a, n = normal((6, 6), 2, dtype=torch.float64), 400_000
    form = quadratic_form(kind, a, n, 3)
    symmetric = (a + a.T) / 2
    exact = 2 * (symmetric**2).sum() - (2 * (a.diagonal() ** 2).sum() if kind == "rademacher" else 0)
    deviation = form - a.trace()
    assert abs(deviation.mean()) < 5 * (exact / n).sqrt()
    square = deviation**2
    assert abs(square.mean() - exact) < 5 * square.std() / math.sqrt(n)
    assert 5 * square.std() / math.sqrt(n) < 0.03 * exact


def test_signs_are_exact_on_a_diagonal_jacobian_and_normals_are_not() -> None:
    a = torch.diag(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    assert (quadratic_form("rademacher", a, 50, 0) == a.trace()).all()
    assert (quadratic_form("gaussian", a, 50, 0) != a.trace()).all()


BAD = [
    (((), 0), {}, ValueError, r"`shape` = \(\) has no batch axis"),
    ((4, 0), {}, TypeError, r"`shape` must be a sequence.*\(4,\)"),
    (((1, 2**35), 0), {}, ValueError, r"2\*\*34"),
    (((1, 2), -1), {}, ValueError, "`seed` = -1"),
    (((1, 2), 0.5), {}, TypeError, "`seed`"),
    (((1, 2), 0, 2**32), {}, ValueError, "`draw` = "),
    (((3, 2), 0, 0, 2**64 - 2), {}, ValueError, "`first` = "),
    (((1, 2), 0), {"kind": "sphere"}, ValueError, "`kind` = 'sphere' .*'rademacher', 'gaussian'"),
    (((1, 2), 0), {"dtype": torch.int32}, ValueError, "`dtype` = torch.int32"),
    (((1, 2), 0), {"out": torch.empty(2, 2)}, ValueError, r"`out` has shape \(2, 2\)"),
    (((1, 2), 0), {"out": torch.empty(1, 2, dtype=torch.float64)}, ValueError, "dtype=out.dtype"),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "message"), BAD)
def test_bad_arguments_are_named(args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hutchinson_probe(*args, **kwargs)
