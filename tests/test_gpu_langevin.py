"""`langevin` in Triton, run by its interpreter: the eager reference's step, in one launch or in two passes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import only_program
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halfbridge.kernels import DeviceNoise, Noise, langevin, normal, use
from halfbridge.kernels.langevin import langevin_operator, langevin_reference, operands

pytest.importorskip("triton")
module = pytest.importorskip("halfbridge.kernels.gpu.langevin")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NOISE = Noise(1.0, 2**63 + 77, 4, 2**32 - 3)
RULE: dict[str, Any] = {"snr": 0.16, "scale": -1.7, "factor": 0.9}


def state(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return normal(shape, 1, 1, dtype=dtype), 3 * normal(shape, 1, 2, dtype=dtype)


def ulps(got: Tensor, x: Tensor, score: Tensor, noise: Any, rule: dict[str, Any], norm: str) -> float:
    """Largest error against the step in float64 with the same normals, in units of the last place of the accumulation dtype
    relative to the terms that are summed. What rounding to a half dtype may add is taken off: half an ulp in float16, a whole
    one in bfloat16, to which the interpreter truncates where a GPU rounds."""
    inner = torch.float64 if x.dtype == torch.float64 else torch.float32
    with use("triton"):
        z = noise if isinstance(noise, Tensor) else normal(tuple(x.shape), *NOISE[1:], dtype=inner)
    want = langevin_reference(x.double(), score.double(), z.double(), **rule, norm=norm)
    error = (got.double() - want).abs()
    error -= {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}.get(x.dtype, 0.0) * want.abs()
    size = x.double().abs() + (want - x.double()).abs() + z.double().abs()
    return float((error / size).max()) / torch.finfo(inner).eps


@pytest.fixture(params=[4096, 8], ids=["one launch", "two passes"])
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "ROW", request.param)
    monkeypatch.setattr(module, "TILE", {2: 64, 4: 32, 8: 16})
    monkeypatch.setattr(module, "PART", 3)
    return int(request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 16), (2, 5, 41)])
@pytest.mark.parametrize("source", ["noise", "tensor", "device"])
def test_the_step_is_the_references(
    row: int, dtype: torch.dtype, norm: str, shape: tuple[int, ...], source: str
) -> None:
    x, score = state(shape, dtype)
    rule: dict[str, Any] = dict(RULE)
    noise: Any = NOISE
    if source == "tensor":
        noise = normal(shape, 9, dtype=dtype)
    elif source == "device":
        counters = torch.tensor([[NOISE.seed - 2**64, NOISE.draw, NOISE.first], [5, 6, 7]]).T.contiguous()
        noise = DeviceNoise(torch.ones(()), counters[:, 0])
        rule = {"snr": 0.16, "scale": torch.tensor(-1.7, dtype=torch.float64), "factor": torch.tensor(0.9)}
    out = torch.full(shape, torch.nan, dtype=dtype)
    with use("triton"):
        got = langevin(x, score, noise=noise, norm=norm, out=out, **rule)
    assert got is out
    assert ulps(got, x, score, noise, {**RULE, "factor": float(rule["factor"])}, norm) <= 2


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 6), st.integers(1, 45), st.sampled_from(DTYPES), st.sampled_from(["sample", "batch"]), st.booleans()
)
def test_any_shape(batch: int, size: int, dtype: torch.dtype, norm: str, passes: bool) -> None:
    x, score = state((batch, size), dtype)
    with pytest.MonkeyPatch.context() as patch, use("triton"):
        patch.setattr(module, "ROW", 4 if passes else 64)
        patch.setattr(module, "TILE", {2: 16, 4: 16, 8: 16})
        got = langevin(x, score, noise=NOISE, norm=norm, out=torch.full_like(x, torch.nan), **RULE)
    assert batch == 0 or ulps(got, x, score, NOISE, RULE, norm) <= 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sample_does_not_depend_on_its_batch(row: int, dtype: torch.dtype) -> None:
    x, score = state((9, 21), dtype)
    with use("triton"):
        whole = langevin(x, score, noise=NOISE, **RULE)
        for start, stop in ((0, 1), (4, 7), (8, 9)):
            noise = NOISE._replace(first=NOISE.first + start)
            part = langevin(x[start:stop].clone(), score[start:stop].clone(), noise=noise, **RULE)
            assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("which", ["x", "score", "strided", "expanded"])
def test_memory_may_be_shared_or_strided(row: int, which: str) -> None:
    x, score = state((4, 6, 2), torch.float64)
    want = langevin(x, score, noise=NOISE, **RULE)
    out = {"x": x, "score": score}.get(which)
    if which == "strided":
        x, score, out = x.mT.contiguous().mT, score.mT.contiguous().mT, torch.empty(4, 2, 6).double().mT
    if which == "expanded":
        x = x[:1].expand(4, 6, 2)
        want = langevin(x.contiguous(), score, noise=NOISE, **RULE)
    with use("triton"):
        got = langevin(x, score, noise=NOISE, out=out, **RULE)
    assert out is None or got is out
    assert torch.allclose(got, want, rtol=1e-14, atol=1e-14)


def test_a_zero_score_gives_nan_to_its_sample_only(row: int) -> None:
    x, score = state((3, 10), torch.float32)
    score[1] = 0
    with use("triton"):
        got = langevin(x, score, noise=NOISE, **RULE)
    assert got.isfinite().all(1).tolist() == [True, False, True]


def test_norms_keep_float32_sums_right_to_an_ulp() -> None:
    x, score = torch.zeros(1, 4096), torch.full((1, 4096), 1e-3)
    score[0, 0] = 1e4  # naive float32 sums lose the 4095 small squares beside it
    z = torch.ones(1, 4096)
    with use("triton"):
        got = langevin(x, score, snr=1.0, noise=z)
    e = 2 * 4096 / (1e8 + 4095e-6)
    assert float(got[0, 1]) == pytest.approx(e * 1e-3 + (2 * e) ** 0.5, rel=3e-7)


@pytest.mark.parametrize("exponent", [-36, -23, 17, 30])
def test_norms_have_the_range_of_float32(row: int, exponent: int) -> None:
    x, score, z = torch.zeros(2, 50), normal((2, 50), 1) * 10.0**exponent, normal((2, 50), 2)
    rule: dict[str, Any] = {"snr": 0.1, "scale": 10.0**-exponent}
    want = langevin(x.double(), score.double(), noise=z.double(), **rule)
    with use("triton"):
        got = langevin(x, score, noise=z, **rule)
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("snr", [1e-25, 1e-12])
def test_a_step_whose_square_vanishes_still_has_its_noise(row: int, snr: float) -> None:
    x, score = torch.zeros(1, 8), torch.ones(1, 8)
    with use("triton"):
        got = langevin(x, score, snr=snr, noise=torch.ones(1, 8))
    assert torch.allclose(got, torch.full_like(x, 2 * snr), rtol=1e-6, atol=0)


def test_numbers_of_a_captured_step_are_not_copied_from_the_host() -> None:
    """Of those, CUDA captures none; tensors that are only claimed to be on a GPU show where copies would be made."""
    copied: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            devices = [[t.device.type for t in tree_leaves(part) if isinstance(t, Tensor)] for part in (args, made)]
            copied.extend([str(func)] if "cpu" in devices[0] and "cuda" in devices[1] else [])
            return made

    with FakeTensorMode(allow_non_fake_inputs=True):
        x, scale = torch.empty(4, 4, device="cuda"), torch.empty((), device="cuda")
        with Watch():
            *_, table = module.numbers(0.16, scale, 1.0, x)
    assert table.shape == (3,)
    assert table.device.type == "cuda"
    assert not copied


def test_beyond_two_to_the_31_elements() -> None:
    batch, size = (1 << 21) + 1, 1024  # memory is taken where it is touched
    x, score, out = (torch.empty((batch, size), dtype=torch.bfloat16) for _ in range(3))
    x[-1], score[-1] = 0.5, 2.0
    with only_program(batch - 1):
        module.langevin_triton(x, score, Noise(1.0, 3, 1, 5), 0.16, 1.0, 1.0, "sample", out)
    noise = Noise(1.0, 3, 1, 5 + batch - 1)
    want = langevin(x[-1:].float(), score[-1:].float(), snr=0.16, noise=noise)
    assert torch.allclose(out[-1:].float(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("source", [NOISE, normal((3, 5), 9)], ids=["noise", "tensor"])
def test_the_operator_holds_its_promises(source: Any) -> None:
    x, score = (t.requires_grad_() for t in state((3, 5), torch.float32))
    numbers, scale = [0.16, -1.7, 0.9], torch.tensor(-1.7)
    for rest in ((numbers, None, None, None, None), (None, torch.tensor(numbers), None, scale, None)):
        torch.library.opcheck(langevin_operator, (x, score, *operands(source), *rest, "sample"))


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("source", [NOISE, normal((3, 5), 9, dtype=torch.float64)], ids=["noise", "tensor"])
def test_compiled_graphs_are_whole_and_differentiable(norm: Any, source: Any) -> None:
    def loss(x: Tensor, score: Tensor) -> Tensor:
        return langevin(x.sin(), score, noise=source, norm=norm, **RULE).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for f in (loss, compiled):
        x, score = (t.requires_grad_() for t in state((3, 5), torch.float64))
        value = f(x, score)
        results.append((value, *torch.autograd.grad(value, (x, score))))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_numbers_in_tensors_are_compiled_too(norm: Any) -> None:
    def loss(x: Tensor, score: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
        return langevin(x, score, snr=0.16, noise=tuple(NOISE), scale=scale, factor=factor, norm=norm).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for scale, factor in ((-1.7, 0.9), (2.0, 0.5)):
        results = []
        for f in (loss, compiled):
            x, score = (t.requires_grad_() for t in state((3, 5), torch.float64))
            value = f(x, score, torch.tensor(scale), torch.tensor(factor, dtype=torch.float64))
            results.append((value, *torch.autograd.grad(value, (x, score))))
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=0)


def test_a_compiled_call_refuses_a_scale_of_its_noise_as_an_eager_one_does() -> None:
    x, score = state((3, 5), torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(langevin, backend="aot_eager")
    for f in (langevin, compiled):
        with pytest.raises(ValueError, match=r"`noise`\.scale = 2\.0, but the step sets the scale"):
            f(x, score, snr=0.1, noise=Noise(2.0, 1, 1))


def test_gradients_are_the_references_whatever_runs() -> None:
    x, score = (t.requires_grad_() for t in state((3, 5), torch.float64))
    with use("triton"):
        assert torch.autograd.gradcheck(
            lambda x, s: langevin(x, s, noise=NOISE, **RULE), (x, score), check_forward_ad=True
        )
