"""`combine`: its value to rounding, in any memory layout, with noise, with gradients, and what it refuses."""

import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from halfbridge.kernels import Noise, combine, normal
from halfbridge.kernels import combine as combine_call
from halfbridge.kernels.combine import combine_reference

module = importlib.import_module(combine_call.__module__)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NOISE = Noise(0.7, 2**63 + 5, 3, 2**32 - 2)


def vectors(count: int, shape: tuple[int, ...] = (4, 5), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [normal(shape, 100, draw, dtype=dtype) for draw in range(count)]


def exact(terms: list[Tensor], coefficients: list[float], noise: Noise | None = None) -> Tensor:
    total = sum(
        (c * v.double() for v, c in zip(terms, coefficients, strict=True)), torch.zeros(terms[0].shape).double()
    )
    if noise is None:
        return total
    dtype = torch.float64 if terms[0].dtype == torch.float64 else torch.float32
    return total + noise.scale * normal(terms[0].shape, *noise[1:], dtype=dtype).double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", [None, NOISE])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(1e-30, 1e30) | st.floats(-1e30, -1e-30) | st.floats(-2, 2), min_size=1, max_size=6),
    st.tuples(st.integers(0, 5), st.integers(0, 9)),
)
def test_value_is_the_sum_to_rounding(
    dtype: torch.dtype, noise: Noise | None, coefficients: list[float], shape: tuple[int, int]
) -> None:
    terms = vectors(len(coefficients), shape, dtype)
    got, want = combine(terms, coefficients, noise=noise), exact(terms, coefficients, noise)
    size = sum((abs(c) * v.double().abs() for v, c in zip(terms, coefficients, strict=True)), want.abs())
    inner = torch.finfo(dtype if dtype == torch.float64 else torch.float32)
    finite = want.abs() < torch.finfo(dtype).max
    slack = (len(terms) + 2) * (inner.eps * size + inner.tiny) + torch.finfo(dtype).eps * want.abs() / 2
    slack += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert got.dtype == dtype
    assert ((got.double() - want).abs() <= slack)[finite].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_states_are_rounded_once(dtype: torch.dtype) -> None:
    terms = vectors(4, (50, 40), dtype)
    coefficients = [0.3, -1.7, 1 / 3, 0.01]
    wide = combine([v.float() for v in terms], coefficients, noise=NOISE)
    assert torch.equal(combine(terms, coefficients, noise=NOISE), wide.to(dtype))


def test_coefficients_of_float64_states_keep_their_digits() -> None:
    x = torch.ones(1, 1, dtype=torch.float64)
    assert combine([x, x], [1 / 3, 1e-12]).item() == 1 / 3 + 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_the_scaled_normal_of_its_counter(dtype: torch.dtype) -> None:
    [x] = vectors(1, (6, 3), dtype)
    z = normal((6, 3), NOISE.seed, NOISE.draw, NOISE.first, torch.float64 if dtype == torch.float64 else torch.float32)
    wide = (x * 2 if dtype == torch.float64 else x.float() * 2).add(z, alpha=NOISE.scale)
    assert torch.equal(combine([x], [2.0], noise=NOISE), wide.to(dtype))
    assert torch.equal(combine([x], [2.0], noise=tuple(NOISE)), wide.to(dtype))


def test_noise_without_vectors_fills_out() -> None:
    out = torch.full((6, 3), math.nan)
    assert combine([], [], noise=Noise(2.0, 1, 2, 3), out=out) is out
    assert torch.equal(out, 2 * normal((6, 3), 1, 2, 3))


def test_noise_of_scale_zero_is_not_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "add_noise", lambda *_: pytest.fail("generated"))
    [x] = vectors(1)
    assert torch.equal(combine([x], [1.0], noise=Noise(0.0, 1, 2)), x)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # float64: the eager normals
def test_noise_is_made_in_chunks_that_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch, layout: str, dtype: torch.dtype
) -> None:
    [x] = vectors(1, (7, 300), dtype)
    if layout == "transposed":
        x = x.t().contiguous().t()
    whole = combine([x], [0.5], noise=NOISE)
    sizes: list[int] = []
    resolve = module.resolve

    def recording(kernel: str, *args: Any) -> Any:
        run = resolve(kernel, *args)
        if kernel != "normal":
            return run

        def make(out: Tensor, *rest: Any) -> None:
            sizes.append(out.numel())
            run(out, *rest)

        return make

    monkeypatch.setattr(module, "resolve", recording)
    for chunk in (4, 128, 300, 700, 10_000):
        monkeypatch.setitem(module.NOISE_CHUNK, "cpu", chunk)
        assert torch.equal(combine([x], [0.5], noise=NOISE), whole)
        assert max(sizes) <= (chunk if layout == "contiguous" else max(chunk, 300))
        sizes.clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 7, 33, 1000])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype, size: int) -> None:
    terms, coefficients = vectors(3, (67, size), dtype), [1 / 3, -0.9, 1.7]
    whole = combine(terms, coefficients, noise=NOISE)
    for start, stop in ((0, 1), (5, 8), (66, 67), (0, 66)):
        noise = NOISE._replace(first=NOISE.first + start)
        part = combine([v[start:stop].clone() for v in terms], coefficients, noise=noise)
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("places", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("same_object", [True, False])
def test_out_may_stand_anywhere_among_the_vectors(
    dtype: torch.dtype, places: tuple[int, ...], same_object: bool
) -> None:
    terms, coefficients = vectors(3, dtype=dtype), [0.3, -1.1, 2.3]
    out = terms[places[0]].clone()
    for place in places:
        terms[place] = out if same_object else out.view(out.shape)
    want = combine([v.clone() for v in terms], coefficients, noise=NOISE)
    got = combine(terms, coefficients, noise=NOISE, out=out)
    assert got is out
    torch.testing.assert_close(got, want, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_out_may_overlap_a_vector_partly() -> None:
    memory = normal((9, 4), 5)
    x, y, out = memory[:8], memory.flip(0)[:8].clone(), memory[1:]
    want = combine([y, x.clone()], [0.5, 2.0], noise=NOISE)
    assert combine([y, x], [0.5, 2.0], noise=NOISE, out=out) is out
    assert torch.equal(out, want)
    assert torch.equal(memory[1:], want)


def test_neighbours_in_one_buffer_are_no_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = normal((3, 4, 5), 5)
    monkeypatch.setattr(module.torch, "empty_like", lambda *_: pytest.fail("a copy was made"))
    assert torch.equal(combine([memory[0], memory[1]], [1.0, 2.0], out=memory[2]), memory[0] + 2 * memory[1])
    assert torch.equal(combine([memory[2], memory[2]], [1.0, 2.0], out=memory[2]), 3 * (memory[0] + 2 * memory[1]))


def test_strided_and_expanded_vectors_are_read_in_logical_order() -> None:
    x, y = normal((5, 4), 1).t(), normal((4, 1), 2).expand(4, 5)
    got = combine([x, y], [1.5, -0.5], noise=NOISE)
    assert torch.equal(got, combine([x.contiguous(), y.contiguous()], [1.5, -0.5], noise=NOISE))
    assert torch.equal(
        combine([y, x], [1.0, 0.0], noise=NOISE)[0], combine([y[:1].contiguous()], [1.0], noise=NOISE)[0]
    )


def test_unchecked_form_agrees() -> None:
    terms = vectors(3)
    assert torch.equal(
        combine_reference(terms, [0.1, 0.2, 0.3], NOISE, None), combine(terms, [0.1, 0.2, 0.3], noise=NOISE)
    )


@pytest.mark.parametrize("noise", [None, NOISE])
def test_gradients_of_every_order_and_mode(noise: Noise | None) -> None:
    terms = [v.requires_grad_() for v in vectors(3, (2, 3), torch.float64)]

    def cubed(*v: Tensor) -> Tensor:
        return combine([w**3 for w in v], [0.5, -2.0, 1.5], noise=noise)

    assert torch.autograd.gradcheck(cubed, terms, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cubed, terms)
    recorded = combine(terms, [0.5, -2.0, 1.5], noise=noise)
    with torch.no_grad():
        assert torch.equal(recorded, combine(terms, [0.5, -2.0, 1.5], noise=noise))


def test_gradient_reaches_half_vectors_and_the_last_one_alone() -> None:
    x, y = vectors(2, dtype=torch.bfloat16)
    y.requires_grad_()
    combine([x, y], [1.0, -2.0]).sum().backward()
    assert torch.equal(y.grad, torch.full_like(y, -2.0))


def test_forward_mode_tangents_pass_without_requires_grad() -> None:
    x, y = vectors(2, dtype=torch.float64)
    with forward_ad.dual_level():
        total = combine([x, forward_ad.make_dual(y, torch.ones_like(y))], [3.0, 0.25])
        assert torch.equal(forward_ad.unpack_dual(total).tangent, torch.full_like(y, 0.25))


def test_combine_works_under_functional_transforms() -> None:
    x, y = vectors(2)
    batched = torch.vmap(lambda v: combine([x[0], v], [2.0, 3.0]))(y)
    assert torch.equal(batched, torch.stack([combine([x[0], v], [2.0, 3.0]) for v in y]))
    slope = torch.func.grad(lambda v: combine([x, v], [2.0, 3.0]).sum())(y)
    assert torch.equal(slope, torch.full_like(y, 3.0))


def bad(vectors: Any, coefficients: Any, error: type[Exception], message: str, **kwargs: Any) -> Any:
    return pytest.param(vectors, coefficients, error, message, kwargs)


X, Y = torch.zeros(2, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("terms", "coefficients", "error", "message", "kwargs"),
    [
        bad([X, Y], [1.0], ValueError, "2 `vectors` but 1 `coefficients`"),
        bad([X, torch.zeros(3, 2)], [1.0, 1.0], ValueError, r"`vectors`\[1\] has shape \(3, 2\) but `vectors`\[0\]"),
        bad([X, Y.double()], [1.0, 1.0], ValueError, r"`vectors`\[1\] has dtype torch.float64"),
        bad([X, Y.to("meta")], [1.0, 1.0], ValueError, r"`vectors`\[1\] has device meta"),
        bad([X.long()], [1.0], ValueError, r"`vectors`\[0\] has dtype torch.int64"),
        bad([X, 1.0], [1.0, 1.0], TypeError, r"`vectors`\[1\] is a float"),
        bad(X, [1.0, 1.0], TypeError, "`vectors` is one tensor"),
        bad([X, Y], [1.0, math.nan], ValueError, r"`coefficients\[1\]` = nan"),
        bad([X, Y], [math.inf, 1.0], ValueError, r"`coefficients\[0\]` = inf"),
        bad([X], [torch.tensor(1.0)], TypeError, r"`coefficients\[0\]` is a Tensor"),
        bad([X], [1e39], ValueError, "overflows float32"),
        bad([], [], ValueError, "pass `out`", noise=Noise(1.0, 0, 0)),
        bad([X], [1.0], ValueError, r"`out` has shape \(3, 3\)", out=torch.zeros(3, 3)),
        bad([X], [1.0], ValueError, "`out` .* repeats one element", out=torch.zeros(1, 3).expand(2, 3)),
        bad([X], [1.0], TypeError, r"pass halfbridge.kernels.Noise", noise=0.5),
        bad([X], [1.0], ValueError, r"`noise.scale` = nan", noise=Noise(math.nan, 0, 0)),
        bad([X], [1.0], ValueError, "`seed` = -1", noise=Noise(1.0, -1, 0)),
        bad([X], [1.0], ValueError, "`first` = ", noise=Noise(0.0, 1, 0, 2**64 - 1)),
        bad([torch.zeros(())], [1.0], ValueError, "batch axis", noise=Noise(1.0, 0, 0)),
        bad([X.clone().requires_grad_()], [1.0], ValueError, "gradients", out=Y),
    ],
)
def test_bad_arguments_are_named(
    terms: Any, coefficients: Any, error: type[Exception], message: str, kwargs: Any
) -> None:
    with pytest.raises(error, match=message):
        combine(terms, coefficients, **kwargs)
