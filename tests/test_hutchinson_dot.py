"""`hutchinson_dot`: the sum with the probe's own entries to 2 ulp, bits that ignore the batch, and its derivative."""

import importlib
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halfbridge.kernels import hutchinson_dot, hutchinson_probe, normal, use
from halfbridge.kernels import hutchinson_dot as dot_call

module = importlib.import_module(dot_call.__module__)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["rademacher", "gaussian"]


def of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ulps(got: Tensor, jv: Tensor, v: Tensor) -> float:
    """Largest error in units of eps sum_i |v_i jv_i|, from exact sums of the products as rational numbers."""
    worst, eps = 0.0, Fraction(torch.finfo(got.dtype).eps)
    for i, total in enumerate(got.tolist()):
        pairs = zip(jv[i].reshape(-1).tolist(), v[i].reshape(-1).tolist(), strict=True)
        terms = [Fraction(a) * Fraction(b) for a, b in pairs]
        size = sum(map(abs, terms))
        error = abs(Fraction(total) - sum(terms))
        worst = max(worst, float(error / (eps * size)) if size else float(error))
    return worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3,), (4, 1), (5, 3, 7), (2, 1000), (3, 129)])
def test_it_is_the_sum_of_products_to_2_ulp(shape: tuple[int, ...], kind: Any, dtype: torch.dtype) -> None:
    jv = normal(shape, 1, dtype=dtype)
    got = hutchinson_dot(jv, 5, 3, 2**40, kind)
    assert got.shape == shape[:1]
    assert got.dtype == of(dtype)
    assert ulps(got, jv, hutchinson_probe(shape, 5, 3, 2**40, kind, dtype=dtype)) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_long_samples_that_cancel_keep_2_ulp(monkeypatch: pytest.MonkeyPatch, kind: Any, dtype: torch.dtype) -> None:
    """All products of one sign, where rounding errors of plain sums grow, then a sum that cancels to nothing."""
    monkeypatch.setattr(module, "PART", 1 << 13)
    n = module.PART + 1001
    v = hutchinson_probe((2, n), 5, 3, kind=kind, dtype=dtype)
    jv = v.sign() * (normal((2, n), 1, dtype=dtype).abs() + 1)
    jv[1, n // 2 :] = -jv[1, : -(-n // 2)].flip(0) * v[1, : -(-n // 2)].flip(0) * v[1, n // 2 :].sign()
    assert ulps(hutchinson_dot(jv, 5, 3, kind=kind), jv, v) <= 2


@pytest.mark.parametrize("part", [128, 256, 1 << 17])
def test_sums_of_doubles_are_compensated(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Large terms cancel and leave what rounding took from them, within parts of a sample and between them."""
    monkeypatch.setattr(module, "PART", part)
    terms = torch.full((1, 512), 2.0**-60, dtype=torch.float64)
    terms[0, [0, 3, 130, 300]] = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    terms[0, 500] = 3 * 2.0**-110
    v = hutchinson_probe((1, 512), 5, dtype=torch.float64)
    assert hutchinson_dot(v * terms, 5).item() == 507 * 2.0**-60 + 3 * 2.0**-110


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 130, 1001])
def test_a_sample_does_not_depend_on_its_batch(
    monkeypatch: pytest.MonkeyPatch, kind: Any, size: int, dtype: torch.dtype
) -> None:
    jv = normal((41, size), 1, dtype=dtype)
    monkeypatch.setattr(module, "PART", 256)
    whole = hutchinson_dot(jv, 7, 2, 50, kind)
    for start, stop in ((0, 1), (3, 7), (40, 41)):
        assert torch.equal(hutchinson_dot(jv[start:stop].clone(), 7, 2, 50 + start, kind), whole[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_alone_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Terms of magnitudes 2^-60 to 2^60 that add up to zero: what is left is made of the order of additions."""
    monkeypatch.setattr(module, "PART", 256)
    half = normal((41, 500), 1, dtype=dtype) * 2.0 ** (20 * normal((41, 500), 2)).round().clamp(-60, 60).to(dtype)
    jv = torch.cat([half, -half[:, torch.randperm(500, generator=torch.Generator().manual_seed(0))]], 1)
    jv *= hutchinson_probe((41, 1000), 7, 2, 50, dtype=dtype)
    whole = hutchinson_dot(jv, 7, 2, 50)
    assert (whole != 0).sum() > 15
    for i in range(41):
        assert torch.equal(hutchinson_dot(jv[i : i + 1], 7, 2, 50 + i), whole[i : i + 1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_leave_no_trace(threads: int) -> None:
    jv = normal((3, 300_001), 1)
    whole = hutchinson_dot(jv, 7)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(hutchinson_dot(jv, 7), whole)
        assert torch.equal(hutchinson_dot(jv[1:2], 7, first=1), whole[1:2])
    finally:
        torch.set_num_threads(1)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.one_of(st.integers(1, 10), st.integers(120, 700)),
    st.sampled_from([128, 256, 1 << 17]),
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
)
def test_several_draws_give_the_bits_of_single_ones(
    draws: int, batch: int, n: int, part: int, kind: Any, dtype: torch.dtype
) -> None:
    jv = normal((draws, batch, n), 4, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", part)
        block = module.dot_block(jv, 9, range(2, 2 + draws), 3, kind)
        assert torch.equal(block, torch.stack([hutchinson_dot(jv[k], 9, 2 + k, 3, kind) for k in range(draws)]))


@pytest.mark.parametrize("kind", KINDS)
def test_strides_change_no_bit(kind: Any) -> None:
    jv = normal((4, 6, 5), 1)
    expected = hutchinson_dot(jv, 2, kind=kind)
    for other in (
        jv.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([jv, jv], -1)[..., 1],
        jv.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    ):
        assert not other.is_contiguous()
        assert torch.equal(hutchinson_dot(other, 2, kind=kind), expected)
    row = normal((1, 30), 1).expand(4, 30)
    assert torch.equal(hutchinson_dot(row, 2, kind=kind), hutchinson_dot(row.contiguous(), 2, kind=kind))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_probe(kind: Any, dtype: torch.dtype) -> None:
    jv = normal((3, 2, 65), 1, dtype=dtype).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=of(dtype))
    (hutchinson_dot(jv, 4, 6, 10, kind) * weights).sum().backward()
    v = hutchinson_probe((3, 2, 65), 4, 6, 10, kind, dtype=dtype)
    assert jv.grad is not None
    assert jv.grad.dtype == dtype
    assert torch.equal(jv.grad, (weights.view(3, 1, 1) * v).to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_both_modes_and_any_order(kind: Any) -> None:
    jv = normal((3, 4), 1, dtype=torch.float64).requires_grad_()

    def square(w: Tensor) -> Tensor:  # of the dots, so that second derivatives are not zero
        return hutchinson_dot(w.sin(), 4, kind=kind) ** 2

    assert torch.autograd.gradcheck(square, (jv,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(square, (jv,))
    with torch.no_grad():
        assert not hutchinson_dot(jv, 4, kind=kind).requires_grad


def test_torch_func_sees_through_it() -> None:
    w = normal((2, 5), 1, dtype=torch.float64)
    v = hutchinson_probe((2, 5), 3, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return 0.5 * (hutchinson_dot(w, 3) ** 2).sum()

    hessian = torch.func.hessian(loss)(w)
    exact = torch.zeros(2, 5, 2, 5, dtype=torch.float64)
    for i in range(2):
        exact[i, :, i] = v[i].outer(v[i])
    assert torch.equal(hessian, exact)
    assert torch.equal(torch.func.jacrev(lambda w: hutchinson_dot(w, 3))(w)[0, 0], v[0])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_keeps_one_graph_with_its_gradient(kind: Any) -> None:
    seed, first = 2**64 - 3, 2**64 - 9

    def loss(w: Tensor) -> Tensor:
        v = hutchinson_probe((3, 5), seed, 2, first, kind=kind, dtype=torch.float64)
        return (hutchinson_dot(w * v, seed, 3, first, kind) ** 2).sum()

    w = normal((3, 5), 1, dtype=torch.float64).requires_grad_()
    (want,) = torch.autograd.grad(loss(w), w)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(w), w)
    assert torch.allclose(got, want, rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    jv = normal((3, 5), 1, dtype=dtype).requires_grad_()
    torch.library.opcheck(module.dot_operator, (jv, -3, 2, -9, "rademacher"))
    torch.library.opcheck(module.probe_operator, ([3, 5], -3, 2, -9, "gaussian", dtype, torch.device("cpu")))
    (got,) = torch.autograd.grad(module.dot_operator(jv, -3, 2, -9, "gaussian").sum(), jv)
    assert torch.equal(got, hutchinson_probe((3, 5), 2**64 - 3, 2, 2**64 - 9, "gaussian", dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_empty_sums_are_zero_and_differentiable(kind: Any, shape: tuple[int, ...]) -> None:
    jv = torch.zeros(shape, requires_grad=True)
    got = hutchinson_dot(jv, 0, kind=kind)
    assert torch.equal(got, torch.zeros(shape[0]))
    got.sum().backward()
    assert jv.grad is not None
    assert jv.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    jv = hutchinson_probe((4, 300), 0, dtype=dtype)
    jv[0, 7] *= math.inf
    jv[1, 8] *= -math.inf
    jv[2, 9] = math.nan
    jv[3] *= 2
    got = hutchinson_dot(jv, 0)
    assert got[:2].tolist() == [math.inf, -math.inf]
    assert got[2].isnan()
    assert got[3] == 600


def test_the_input_is_left_as_it_was() -> None:
    jv = normal((3, 40), 1)
    before = jv.clone()
    for kind in KINDS:
        hutchinson_dot(jv, 0, kind=kind)  # type: ignore[arg-type]
    assert torch.equal(jv, before)


def test_the_default_dtype_changes_nothing() -> None:
    jv = normal((3, 40), 1)
    with use("reference"):
        before = hutchinson_dot(jv, 2)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(hutchinson_dot(jv, 2), before)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([1.0], 0), TypeError, "`jv` is a list"),
        ((torch.ones(2, 3, dtype=torch.int64), 0), ValueError, "`jv` has dtype torch.int64"),
        ((torch.ones(()), 0), ValueError, "no batch axis"),
        ((torch.ones(2, 3), -1), ValueError, "`seed` = -1"),
        ((torch.ones(2, 3), 0, 2**32), ValueError, "`draw` = "),
        ((torch.ones(2, 3), 0, 0, 2**64 - 1), ValueError, "`first` = "),
        ((torch.ones(2, 3), 0, 0, 0, "sphere"), ValueError, "`kind` = 'sphere'"),
    ],
)
def test_bad_arguments_are_named(args: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hutchinson_dot(*args)
