"""`combine` in Triton, run by its interpreter: the exact sum to 2 ulp of the accumulation dtype, whatever the memory looks
like, and the CPU's samples.

Errors are relative to the sum of the terms' sizes. Rounding the result adds half an ulp of float16 and a whole one of
bfloat16, to which the interpreter truncates where a GPU rounds; a normal adds its 2e-6.
"""

import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import only_program, programs_backwards
from layouts import DTYPES, LAYOUTS, inner_dtype, laid_out, shapes
from torch import Tensor
from torch.autograd import forward_ad

from halfbridge.kernels import DeviceNoise, Noise, combine, normal, use
from halfbridge.kernels.combine_operator import combine_operator

pytest.importorskip("triton")
module = pytest.importorskip("halfbridge.kernels.gpu.combine")
combine_operator_module = importlib.import_module("halfbridge.kernels.combine_operator")

ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
LIMITS = {torch.float64: 1e150, torch.float16: 1e2}
seeds = st.integers(0, 2**64 - 1)


def run(vectors: list[Tensor], coefficients: Any, noise: Any = None, out: Tensor | None = None) -> Tensor:
    with use("triton"):
        return combine(vectors, coefficients, noise=noise, out=out)


def wrong(got: Tensor, vectors: list[Tensor], coefficients: list[float], noise: Noise | None, ulps: float = 2) -> float:
    """Largest error above what is allowed; at most 0 for a right result. The exact sum is formed in float64 (float32 products
    are exact there) or, for float64, by fsum of float64 products, whose own error is half an ulp a term."""
    if got.numel() == 0:
        return 0.0
    terms = [c * v.double() for c, v in zip(coefficients, vectors, strict=True)]
    slack = torch.zeros(got.shape, dtype=torch.float64)
    if noise is not None:
        terms.append(noise.scale * normal(tuple(got.shape), *noise[1:], dtype=torch.float64))
        slack += abs(noise.scale) * (1e-14 if got.dtype == torch.float64 else 1.2e-6)
    stacked = torch.stack(terms).view(len(terms), -1)
    want = torch.tensor([math.fsum(column) for column in stacked.T.tolist()], dtype=torch.float64).view(got.shape)
    size = stacked.abs().sum(0).view(got.shape)
    allowed = (ulps + (len(terms) - 2) / 2) * torch.finfo(inner_dtype(got.dtype)).eps * size + slack
    allowed += ROUNDING.get(got.dtype, 0.0) * want.abs() + torch.finfo(got.dtype).smallest_normal
    return float(((got.double() - want).abs() - allowed).max())


@st.composite
def cases(draw: Any) -> tuple[list[Tensor], list[float], Noise | None]:
    dtype, shape, count = draw(st.sampled_from(DTYPES)), draw(shapes(1020, 1024, 1027, 2050)), draw(st.integers(1, 8))
    limit = LIMITS.get(dtype, 1e30)
    sizes = st.floats(1 / limit if dtype != torch.float16 else 1e-2, limit)
    coefficients = [draw(st.sampled_from([-1, 1])) * draw(st.sampled_from([0.0, 1.0]) | sizes) for _ in range(count)]
    plain = [normal(shape, draw(st.integers(0, 99)), j, dtype=dtype) for j in range(count)]
    vectors = [laid_out(v, draw(st.sampled_from(LAYOUTS))) for v in plain]
    noise = None
    if draw(st.booleans()):
        noise = Noise(
            draw(st.floats(-3, 3)), draw(seeds), draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**64 - 9))
        )
    return vectors, coefficients, noise


@settings(deadline=None, max_examples=120)
@given(cases(), st.sampled_from(["new", "given", "strided", "in place"]))
def test_the_sum_is_exact_to_two_ulp(case: Any, where: str) -> None:
    vectors, coefficients, noise = case
    before = [v.clone() for v in vectors]
    like = vectors[-1]
    out: Tensor | None = None
    if where == "given":
        out = torch.full(like.shape, torch.nan, dtype=like.dtype)
    elif where == "strided":
        out = laid_out(torch.full(like.shape, torch.nan, dtype=like.dtype), "strided")
    elif where == "in place":
        out = vectors[-1] = vectors[-1].contiguous().clone()
    got = run(vectors, coefficients, noise, out)
    assert out is None or got is out
    assert wrong(got, before, coefficients, noise) <= 0
    assert all(torch.equal(a, b) for a, b in zip(vectors[:-1], before, strict=False))


@settings(deadline=None, max_examples=60)
@given(cases())
def test_numbers_in_memory_are_numbers_by_value(case: Any) -> None:
    vectors, coefficients, noise = case
    inner = inner_dtype(vectors[0].dtype)
    table = torch.tensor(coefficients, dtype=torch.float64)
    device = noise
    if noise is not None and noise.scale != 0.0:
        words = [w - 2**64 if w >= 2**63 else w for w in noise[1:]]
        counter = torch.tensor([words, [5, 6, 7]]).T.contiguous()[:, 0]  # its words do not follow on each other
        device = DeviceNoise(torch.tensor(noise.scale, dtype=inner), counter)
    want = run(vectors, coefficients, noise)
    assert torch.equal(run(vectors, table, device), want)
    assert torch.equal(run(vectors, table.to(inner), noise), want)


def test_many_vectors_are_summed_in_float32_before_they_are_rounded() -> None:
    vectors = [torch.full((4, 9), 1.0 if j else 256.0, dtype=torch.bfloat16) for j in range(14)]
    assert float(run(vectors, [1.0] * 14)[0, 0]) == 268.0  # in bfloat16 each 1 would be lost beside 256


def test_an_output_among_many_vectors_is_read_before_it_is_written() -> None:
    vectors = [normal((3, 7), j) for j in range(9)]
    want = sum(j * v.double() for j, v in enumerate(vectors))
    out = vectors[8]
    got = run(vectors, [float(j) for j in range(9)], None, out)
    assert got is out
    assert torch.allclose(got.double(), torch.as_tensor(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_that_is_every_vector(dtype: torch.dtype) -> None:
    for as_table in (False, True):
        y = torch.arange(4.0, dtype=dtype).view(1, 4)
        run([y] * 14, torch.ones(14) if as_table else [1.0] * 14, None, y)
        assert y.tolist() == [[0.0, 14.0, 28.0, 42.0]]


def test_a_lazy_sign_is_a_sign() -> None:
    """A tensor of one element is contiguous even where it is the imag of a conj."""
    z = torch.tensor([2.0 + 3.0j])
    x, out = z.conj().imag, z.clone().conj().imag
    assert x.is_neg()
    assert run([x], [1.0]).tolist() == [-3.0]
    assert run([x], [2.0], None, out) is out
    assert out.tolist() == [-6.0]


@pytest.mark.parametrize("noise", [None, Noise(0.5, 3, 1)], ids=["plain", "noise"])
def test_transforms_and_forward_mode_see_the_sum(noise: Noise | None) -> None:
    x, t = normal((2, 3), 1, dtype=torch.float64), normal((2, 3), 2, dtype=torch.float64)

    def f(v: Tensor) -> Tensor:
        return run([v, v * v], [2.0, 3.0], noise)

    assert torch.allclose(torch.func.jvp(f, (x,), (t,))[1], (2 + 6 * x) * t)
    assert torch.allclose(torch.func.jvp(f, (x,), (t,))[0], f(x))
    assert torch.allclose(torch.func.grad(lambda v: f(v).sum())(x), 2 + 6 * x)
    assert torch.allclose(torch.func.vmap(f)(torch.stack([x, t])), torch.stack([f(x), f(t)]))
    assert torch.allclose(torch.func.hessian(lambda v: f(v).sum())(x[:1, :1]), torch.full((1,), 6.0, dtype=x.dtype))
    with forward_ad.dual_level():
        assert torch.allclose(forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent, (2 + 6 * x) * t)


def test_an_output_that_overlaps_an_input_partly() -> None:
    memory = normal((40,), 1, dtype=torch.float64)
    x, out, kept = memory[:24].view(3, 8), memory[8:32].view(3, 8), memory.clone()
    run([x, out], [2.0, -1.0], None, out)
    assert torch.equal(out, 2 * kept[:24].view(3, 8) - kept[8:32].view(3, 8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 8, 1021, 2048])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype, size: int) -> None:
    x, y, first = normal((9, size), 1, dtype=dtype), normal((9, size), 2, dtype=dtype), 2**32 - 4
    whole = run([x, y], [0.3, -0.7], Noise(0.5, 3, 1, first))
    part = run([x[3:7].clone(), y[3:7].clone()], [0.3, -0.7], Noise(0.5, 3, 1, first + 3))
    assert torch.equal(part, whole[3:7])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 517), (700, 3), (3, 2050), (2, 4, 512)])
def test_the_order_of_programs_does_not_matter(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, noise = normal(shape, 1, dtype=dtype), Noise(0.5, 3, 1)
    want = run([x, x], [0.3, -0.7], noise)
    with programs_backwards():
        assert torch.equal(run([x, x], [0.3, -0.7], noise), want)


def test_plain_sums_keep_a_common_order_of_memory() -> None:
    x = normal((2, 3, 4, 5), 1).to(memory_format=torch.channels_last)
    got = run([x, x], [1.0, 2.0])
    assert got.stride() == x.stride()
    assert torch.allclose(got, 3 * x)


@pytest.mark.parametrize(("batch", "size"), [(2, (1 << 30) + 4), ((1 << 20) + 1, 2051)])
@pytest.mark.parametrize("noisy", [False, True])
def test_beyond_two_to_the_31_elements(batch: int, size: int, noisy: bool) -> None:
    x, out = (torch.empty((batch, size), dtype=torch.float16) for _ in range(2))  # memory is taken where it is touched
    x[-1, -600:] = 2.0
    noise = Noise(0.5, 3, 1, 2**33) if noisy else None
    with only_program(-1) as grids:
        module.combine_triton([x], [3.0], noise, out)
    assert x.numel() > 2**31
    assert grids[0][0] * 4096 > x.numel()
    got = out[-1, -1:].float()
    part = torch.full((1, size % 4 + 4), 2.0)
    if noisy:
        from counters import normal_in_python

        part[0, -1] = 2.0 + normal_in_python(3, 1, 2**33 + batch - 1, size - 1) * 0.5 / 3
    assert float(got) == pytest.approx(3 * float(part[0, -1]), rel=2e-3)


def test_the_operator_holds_its_promises() -> None:
    x, y = (normal((3, 5), j).requires_grad_() for j in range(2))
    torch.library.opcheck(combine_operator, ([x, y], [0.5, -2.0], None, 0.3, -5, 2, 1, None, None))
    table, scale, counter = torch.tensor([0.5, -2.0]), torch.tensor(0.3), torch.tensor([1, 2, 3])
    torch.library.opcheck(combine_operator, ([x, y], None, table, 0.0, 0, 0, 0, scale, counter))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gradients_to_second_order(backend: str) -> None:
    x, y = (normal((2, 3), j, dtype=torch.float64).requires_grad_() for j in range(2))

    def f(x: Tensor, y: Tensor) -> Tensor:
        return combine([x * y, y], [0.5, -2.0], noise=Noise(0.3, 1, 2))

    def of_table(x: Tensor, y: Tensor) -> Tensor:
        return combine([x * y, y], torch.tensor([0.5, -2.0], dtype=torch.float64))

    with use(backend):
        assert torch.autograd.gradcheck(of_table, (x, y))
        assert torch.autograd.gradcheck(f, (x, y))
        assert torch.autograd.gradgradcheck(f, (x, y))


@pytest.mark.parametrize("table", [False, True])
def test_backward_makes_the_gradients_that_are_asked_for_and_no_others(
    table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = [normal((3, 5), j) for j in range(6)]
    vectors[2].requires_grad_(), vectors[4].requires_grad_()
    numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    one_way = (None, torch.tensor(numbers)) if table else (numbers, None)
    total = combine_operator(vectors, *one_way, 0.0, 0, 0, 0, None, None).sum()
    calls, whole = [], combine_operator_module.combine_whole

    def counted(vectors: Any, coefficients: Any, noise: Any) -> Tensor:
        calls.append(float(coefficients[0]))
        return whole(vectors, coefficients, noise)

    monkeypatch.setattr(combine_operator_module, "combine_whole", counted)
    found = torch.autograd.grad(total, (vectors[2], vectors[4]))
    assert calls == [3.0, 5.0]
    assert [float(g[0, 0]) for g in found] == calls


def test_a_compiled_function_is_one_graph() -> None:
    x, y = (normal((3, 5), j, dtype=torch.float64).requires_grad_() for j in range(2))

    def f(x: Tensor, y: Tensor) -> Tensor:
        total = combine([x.sin(), y], [0.5, -2.0], noise=Noise(0.3, 2**64 - 1, 2))
        return combine(
            [total], torch.tensor([3.0]), noise=DeviceNoise(torch.tensor(0.5), torch.tensor([1, 2, 3]))
        ).square()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, y), f(x, y))
    for a, b in zip(*(torch.autograd.grad(g(x, y).sum(), (x, y)) for g in (f, compiled)), strict=True):
        assert torch.allclose(a, b, rtol=1e-14, atol=0)
