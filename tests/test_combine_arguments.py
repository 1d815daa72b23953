"""`combine`'s arguments: gradients of every kind, numbers that lie in tensors, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from test_combine import NOISE, on_backends, vectors
from torch import Tensor
from torch.autograd import forward_ad

from halfbridge.kernels import DeviceNoise, Noise, combine, dispatch, use
from halfbridge.kernels.arguments import on_host
from halfbridge.kernels.combine import combine_reference


def test_unchecked_form_agrees() -> None:
    terms = vectors(3)
    with use("reference"):
        checked = combine(terms, [0.1, 0.2, 0.3], noise=NOISE)
    assert torch.equal(combine_reference(terms, [0.1, 0.2, 0.3], NOISE, None), checked)


@on_backends
@pytest.mark.parametrize("noise", [None, NOISE])
def test_gradients_of_every_order_and_mode(backend: str, noise: Noise | None) -> None:
    terms = [v.requires_grad_() for v in vectors(3, (2, 3), torch.float64)]

    def cubed(*v: Tensor) -> Tensor:
        return combine([w**3 for w in v], [0.5, -2.0, 1.5], noise=noise)

    with use(backend):
        assert torch.autograd.gradcheck(cubed, terms, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(cubed, terms)
        recorded = combine(terms, [0.5, -2.0, 1.5], noise=noise)
        with torch.no_grad():
            assert torch.equal(recorded, combine(terms, [0.5, -2.0, 1.5], noise=noise))


@on_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradient_reaches_half_vectors_and_the_last_one_alone(backend: str, dtype: torch.dtype) -> None:
    x, y = vectors(2, dtype=dtype)
    y.requires_grad_()
    with use(backend):
        combine([x, y], [1.0, -2.0]).sum().backward()
    assert torch.equal(y.grad, torch.full_like(y, -2.0))


@on_backends
@pytest.mark.parametrize("recording", [True, False])
def test_forward_mode_tangents_pass_without_requires_grad(backend: str, recording: bool) -> None:
    x, y = vectors(2, dtype=torch.float64)
    with use(backend), forward_ad.dual_level():
        dual = forward_ad.make_dual(y, torch.ones_like(y))
        with torch.set_grad_enabled(recording):
            total = combine([x, dual], [3.0, 0.25])
        assert torch.equal(forward_ad.unpack_dual(total).tangent, torch.full_like(y, 0.25))


@on_backends
def test_combine_works_under_functional_transforms(backend: str) -> None:
    x, y = vectors(2)
    with use(backend):
        batched = torch.vmap(lambda v: combine([x[0], v], [2.0, 3.0]))(y)
        assert torch.equal(batched, torch.stack([combine([x[0], v], [2.0, 3.0]) for v in y]))
        slope = torch.func.grad(lambda v: combine([x, v], [2.0, 3.0]).sum())(y)
        assert torch.equal(slope, torch.full_like(y, 3.0))
        value, tangent = torch.func.jvp(lambda v: combine([x, v], [2.0, 3.0]), (y,), (y,))
        assert torch.equal(value, combine([x, y], [2.0, 3.0]))
        assert torch.equal(tangent, 3 * y)


@on_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", [3, 2**63 + 5, 2**64 - 1])
def test_numbers_in_tensors_are_the_same_numbers(backend: str, dtype: torch.dtype, seed: int) -> None:
    terms, coefficients = vectors(3, dtype=dtype), [0.5, -2.25, 1.5]
    noise = Noise(0.75, seed, 2**32 - 1, 2**63 + 1)
    patterns = [n - (1 << 64) if n >= 1 << 63 else n for n in noise[1:]]
    on_device = DeviceNoise(torch.tensor(noise.scale), torch.tensor(patterns))
    assert on_host(on_device) == noise
    with use(backend):
        want = combine(terms, coefficients, noise=noise)
        for table in (
            torch.tensor(coefficients),
            torch.tensor(coefficients).double(),
            torch.tensor(coefficients).half(),
        ):
            assert torch.equal(combine(terms, table, noise=on_device), want)
        out = torch.full_like(want, math.nan)
        assert torch.equal(combine(terms, coefficients, noise=on_device, out=out), want)


def test_a_table_keeps_the_digits_of_float64() -> None:
    x = torch.ones(1, 2, dtype=torch.float64)
    assert combine([x], torch.tensor([1 / 3], dtype=torch.float64)).tolist() == [[1 / 3] * 2]


def test_triton_gets_numbers_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def launcher(vectors: Any, coefficients: Any, noise: Any = None, out: Any = None) -> Tensor:
        seen.append((coefficients, noise))
        return torch.zeros(())

    monkeypatch.setitem(dispatch.TABLE, ("combine", "triton"), dispatch.Implementation("", ""))
    monkeypatch.setitem(dispatch._loaded, ("combine", "triton"), launcher)
    monkeypatch.setattr(dispatch, "found", lambda package: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    noise = DeviceNoise(torch.tensor(math.nan), torch.tensor([1, 2, 3]))
    table = torch.tensor([math.inf])
    with use("triton"):
        combine([X], table, noise=noise)
        combine([X], [2], noise=Noise(1.0, 1, 2, 3))
        combine([X], [2.0], noise=Noise(0.0, 1, 2, 3))
    assert seen[0][0] is table
    assert seen[0][1] is noise
    assert seen[1:] == [((2.0,), Noise(1.0, 1, 2, 3)), ((2.0,), None)]


def bad(vectors: Any, coefficients: Any, error: type[Exception], message: str, **kwargs: Any) -> Any:
    return pytest.param(vectors, coefficients, error, message, kwargs)


X, Y = torch.zeros(2, 3), torch.zeros(2, 3)
SCALE, COUNTER = torch.tensor(1.0), torch.tensor([0, 1, 2])


@on_backends
@pytest.mark.parametrize(
    ("terms", "coefficients", "error", "message", "kwargs"),
    [
        bad([X, Y], [1.0], ValueError, "2 `vectors` but 1 `coefficients`"),
        bad([X, torch.zeros(3, 2)], [1.0, 1.0], ValueError, r"`vectors`\[1\] has shape \(3, 2\) but `vectors`\[0\]"),
        bad([X, Y.double()], [1.0, 1.0], ValueError, r"`vectors`\[1\] has dtype torch.float64"),
        bad([X, Y.to("meta")], [1.0, 1.0], ValueError, r"`vectors`\[1\] has device meta"),
        bad([X.long()], [1.0], ValueError, r"`vectors`\[0\] has dtype torch.int64"),
        bad([X, 1.0], [1.0, 1.0], TypeError, r"`vectors`\[1\] is a float"),
        bad([1.0, X], [1.0, 1.0], TypeError, r"`vectors`\[0\] is a float"),
        bad(X, [1.0, 1.0], TypeError, "`vectors` is one tensor"),
        bad([X, Y], [1.0, math.nan], ValueError, r"`coefficients\[1\]` = nan"),
        bad([X, Y], [math.inf, 1.0], ValueError, r"`coefficients\[0\]` = inf"),
        bad([X.double()], [-math.inf], ValueError, r"`coefficients\[0\]` = -inf"),
        bad([X], [torch.tensor(1.0)], TypeError, r"`coefficients\[0\]` is a Tensor"),
        bad([X], [1e39], ValueError, "overflows float32"),
        bad([X.half()], [-1e39], ValueError, "overflows float32"),
        bad([], [], ValueError, "pass `out`", noise=Noise(1.0, 0, 0)),
        bad([X], [1.0], ValueError, r"`out` has shape \(3, 3\)", out=torch.zeros(3, 3)),
        bad([X], [1.0], ValueError, r"`out` has dtype torch.float64", out=Y.double()),
        bad([X], [1.0], ValueError, r"`out` has device meta", out=Y.to("meta")),
        bad([X], [1.0], TypeError, r"`out` is a list", out=[]),
        bad([X], [1.0], ValueError, "`out` .* repeats one element", out=torch.zeros(1, 3).expand(2, 3)),
        bad([X], [1.0], TypeError, r"pass halfbridge.kernels.Noise", noise=0.5),
        bad([X], [1.0], ValueError, r"`noise.scale` = nan", noise=Noise(math.nan, 0, 0)),
        bad([X], [1.0], ValueError, "`seed` = -1", noise=Noise(1.0, -1, 0)),
        bad([X], [1.0], ValueError, "`first` = ", noise=Noise(0.0, 1, 0, 2**64 - 1)),
        bad([torch.zeros(())], [1.0], ValueError, "batch axis", noise=Noise(1.0, 0, 0)),
        bad([X.clone().requires_grad_()], [1.0], ValueError, "gradients", out=Y),
        bad([X], [1.0], ValueError, "gradients", out=Y.clone().requires_grad_()),
        bad([X], torch.ones(2), ValueError, "1 `vectors` but 2 `coefficients`"),
        bad([X], torch.ones(1, 1), ValueError, r"`coefficients` is a tensor of shape \(1, 1\)"),
        bad([X], torch.ones(1).long(), ValueError, "`coefficients` is a tensor of shape .* torch.int64"),
        bad([X], torch.ones(1, device="meta"), ValueError, "`coefficients` is on meta but the vectors are on cpu"),
        bad([X], torch.ones(1, requires_grad=True), ValueError, r"pass coefficients.detach\(\)"),
        bad([X, Y], torch.tensor([1.0, math.nan]), ValueError, r"`coefficients\[1\]` = nan"),
        bad([X], torch.tensor([1e39]).double() * 1e39, ValueError, r"`coefficients\[0\]` = inf"),
        bad([X], [1.0], TypeError, "`noise.scale` is a float", noise=DeviceNoise(1.0, COUNTER)),  # type: ignore[arg-type]
        bad([X], [1.0], ValueError, r"`noise.scale` has shape \(1,\)", noise=DeviceNoise(torch.ones(1), COUNTER)),
        bad([X], [1.0], ValueError, "`noise.scale` has .* torch.int64", noise=DeviceNoise(torch.tensor(1), COUNTER)),
        bad([X], [1.0], ValueError, r"`noise.counter` has shape \(2,\)", noise=DeviceNoise(SCALE, COUNTER[:2])),
        bad([X], [1.0], ValueError, "`noise.counter` has .* torch.int32", noise=DeviceNoise(SCALE, COUNTER.int())),
        bad([X], [1.0], ValueError, "`noise.counter` is on meta", noise=DeviceNoise(SCALE, COUNTER.to("meta"))),
        bad([X], [1.0], ValueError, "`noise.scale` = inf", noise=DeviceNoise(SCALE / 0, COUNTER)),
        bad([X], [1.0], ValueError, "`draw` = -1", noise=DeviceNoise(SCALE, COUNTER - 2)),
        bad([X], [1.0], ValueError, r"pass noise.scale.detach\(\)", noise=DeviceNoise(SCALE.clone().requires_grad_(), COUNTER)),
        bad([X], [1.0], ValueError, "`first` = 184", noise=DeviceNoise(SCALE, torch.tensor([0, 0, -1]))),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(
    backend: str, terms: Any, coefficients: Any, error: type[Exception], message: str, kwargs: Any
) -> None:
    with use(backend), pytest.raises(error, match=message):
        combine(terms, coefficients, **kwargs)


def test_a_dtype_that_is_not_summed_is_refused() -> None:
    x = torch.ones(2, 3).to(torch.float8_e4m3fn)
    with pytest.raises(
        ValueError, match=r"`vectors`\[0\] has dtype torch.float8_e4m3fn; pass a floating dtype of 16 bits"
    ):
        combine([x], [1.0])
