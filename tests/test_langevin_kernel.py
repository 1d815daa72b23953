"""`langevin`: the formula per sample and per batch, bits that ignore the batch, gradients, and the undefined step."""

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from halfbridge.kernels import Noise, langevin, normal
from halfbridge.kernels import langevin as langevin_call

module = importlib.import_module(langevin_call.__module__)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NOISE = Noise(1.0, 77, 4, 2**40)


def state(shape: tuple[int, ...] = (5, 3, 4), dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return normal(shape, 1, 1, dtype=dtype), 3 * normal(shape, 1, 2, dtype=dtype)


def by_hand(x: Tensor, score: Tensor, z: Tensor, snr: float, scale: float, factor: float, norm: str) -> Tensor:
    x, s, z = x.double(), scale * score.double(), z.double()
    lengths = [torch.stack([v[i].norm() for i in range(len(v))]) for v in (z, s)]
    out = torch.empty_like(x)
    for i in range(len(x)):
        of_z, of_s = (v.mean() if norm == "batch" else v[i] for v in lengths)
        e = 2 * factor * (snr * of_z / of_s) ** 2
        out[i] = x[i] + e * s[i] + (2 * e) ** 0.5 * z[i]
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize(("snr", "scale", "factor"), [(0.16, 1.0, 1.0), (0.3, -2.5, 0.98), (0.05, 1e-3, 0.5)])
def test_step_is_the_formula(dtype: torch.dtype, norm: Any, snr: float, scale: float, factor: float) -> None:
    x, score = state(dtype=dtype)
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    z = normal(x.shape, *NOISE[1:], dtype=inner)
    got = langevin(x, score, snr=snr, noise=NOISE, scale=scale, factor=factor, norm=norm)
    want = by_hand(x, score, z, snr, scale, factor, norm)
    assert got.dtype == dtype
    eps = torch.finfo(inner).eps
    assert ((got.double() - want).abs() <= 8 * eps * (1 + want.abs()) + torch.finfo(dtype).eps / 2 * want.abs()).all()


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_noise_and_its_tensor_give_the_same_bits(norm: Any, dtype: torch.dtype) -> None:
    x, score = state((50, 7), dtype)
    z = normal(x.shape, *NOISE[1:], dtype=dtype)
    a, b = (langevin(x, score, snr=0.16, noise=noise, norm=norm) for noise in (NOISE, z))
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 5, 64, 1001])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype, size: int) -> None:
    x, score = state((41, size), dtype)
    whole = langevin(x, score, snr=0.2, noise=NOISE)
    for start, stop in ((0, 1), (3, 7), (40, 41)):
        noise = NOISE._replace(first=NOISE.first + start)
        part = langevin(x[start:stop].clone(), score[start:stop].clone(), snr=0.2, noise=noise)
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_chunks_leave_no_trace(monkeypatch: pytest.MonkeyPatch, norm: Any) -> None:
    x, score = state((23, 6), torch.float32)
    whole = langevin(x, score, snr=0.2, noise=NOISE, norm=norm)
    for chunk in (1, 6, 30, 100):
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert torch.equal(langevin(x, score, snr=0.2, noise=NOISE, norm=norm), whole)


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("which", ["x", "score", "shifted"])
def test_out_may_share_memory_with_the_inputs(norm: Any, which: str) -> None:
    memory = normal((7, 4), 3)
    x, score = memory[:6], 3 * normal((6, 4), 4)
    want = langevin(x.clone(), score.clone(), snr=0.3, noise=NOISE, norm=norm)
    out = {"x": x, "score": score, "shifted": memory[1:]}[which]
    assert langevin(x, score, snr=0.3, noise=NOISE, norm=norm, out=out) is out
    assert torch.equal(out, want)


def test_norm_of_long_samples_keeps_its_digits() -> None:
    v = normal((2, 100_003), 6)
    exact = [math.sqrt(math.fsum(float(a) ** 2 for a in row)) for row in v]
    assert torch.allclose(module.norms(v), torch.tensor(exact, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_gradients_flow_through_the_step_size(norm: Any) -> None:
    x, score = (v.requires_grad_() for v in state((3, 2)))
    z = normal((3, 2), 8, dtype=torch.float64).requires_grad_()

    def step(*v: Tensor) -> Tensor:
        return langevin(v[0], v[1], snr=0.4, noise=v[2], scale=-1.5, norm=norm)

    assert torch.autograd.gradcheck(step, (x, score, z), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(step, (x, score, z))
    recorded = langevin(x, score, snr=0.4, noise=NOISE, norm=norm)
    with torch.no_grad():
        assert torch.equal(recorded, langevin(x, score, snr=0.4, noise=NOISE, norm=norm))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_score_without_a_step_is_refused_and_named(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, score = state((6, 4))
    score[4] = value
    monkeypatch.setattr(module, "CHUNK", 8)
    with pytest.raises(ValueError, match=r"`score` of sample 4 has norm (0|nan|inf)"):
        langevin(x, score, snr=0.16, noise=NOISE)


def test_with_batch_norms_one_zero_score_is_a_legal_step_and_all_zero_is_not() -> None:
    x, score = state((6, 4))
    score[4] = 0
    assert langevin(x, score, snr=0.16, noise=NOISE, norm="batch").isfinite().all()
    with pytest.raises(ValueError, match=r"`score` of the batch .* norm 0"):
        langevin(x, 0 * score, snr=0.16, noise=NOISE, norm="batch")


def test_empty_states_pass_through() -> None:
    for shape in ((0, 3), (3, 0)):
        x = torch.zeros(shape)
        assert langevin(x, x, snr=0.16, noise=NOISE).shape == shape


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"score": torch.ones(3, 2)}, r"`score` has shape \(3, 2\)"),
        ({"score": torch.ones(2, 3).double()}, "`score` has dtype torch.float64"),
        ({"x": torch.ones(()), "score": torch.ones(())}, "no batch axis"),
        ({"snr": 0.0}, "`snr` = 0.0"),
        ({"snr": -0.1}, "`snr` = -0.1"),
        ({"snr": math.nan}, "`snr` = nan"),
        ({"scale": 0.0}, "`scale` = 0.0"),
        ({"factor": 0.0}, "`factor` = 0.0"),
        ({"norm": "mean"}, "`norm` = 'mean'"),
        ({"noise": Noise(2.0, 1, 1)}, "`noise`.scale = 2.0"),
        ({"noise": Noise(0.0, 1, 1)}, "`noise`.scale = 0.0"),
        ({"noise": Noise(1.0, -1, 1)}, "`seed` = -1"),
        ({"noise": torch.ones(2, 4)}, r"`noise` has shape \(2, 4\)"),
        ({"out": torch.ones(2, 4)}, r"`out` has shape \(2, 4\)"),
        ({"x": torch.ones(2, 3, requires_grad=True), "out": torch.ones(2, 3)}, "gradients"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "score": X, "snr": 0.16, "noise": Noise(1.0, 1, 1), **kwargs}
    with pytest.raises(ValueError, match=message):
        langevin(arguments.pop("x"), arguments.pop("score"), **arguments)


def test_forward_mode_sees_the_step() -> None:
    x, s, t = (normal((2, 3), j, dtype=torch.float64) for j in range(3))

    def step(score: Tensor) -> Tensor:
        return langevin(x, score, snr=0.1, noise=Noise(1.0, 1, 2))

    h = 1e-6
    want = (step(s + h * t) - step(s - h * t)) / (2 * h)
    assert torch.allclose(torch.func.jvp(step, (s,), (t,))[1], want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["snr", "scale", "factor"])
def test_a_number_that_leaves_float32_is_refused_for_its_states(name: str) -> None:
    numbers = {"snr": 0.1, name: 1e39}
    x = torch.ones(1, 3)
    with pytest.raises(ValueError, match=f"`{name}` = 1e\\+39 overflows float32"):
        langevin(x, x, noise=Noise(1.0, 1, 2), **numbers)  # type: ignore[arg-type]
