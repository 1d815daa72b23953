"""The EDM scalings: their formulas from 1e-8 to 1e8, their kernels, and what they refuse."""

import importlib
import math
from typing import Any

import pytest
import torch
from edm import close, columns, exact
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import only_program
from layouts import DTYPES, LAYOUTS, inner_dtype, laid_out, shapes
from torch import Tensor

from halfbridge.kernels import edm_input, edm_output, edm_precondition, normal, use

BACKENDS = ["reference", "triton"]
levels = st.floats(1e-8, 1e8)


@pytest.mark.usefixtures("dirty_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=50, deadline=None)
@given(
    shapes(1023, 1024, 2100), st.lists(levels, min_size=7, max_size=7), st.floats(1e-3, 1e3), st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.sampled_from(["plain", "shifted", "strided", "repeated"]),
)  # fmt: skip
def test_they_are_the_table_of_karras_and_the_kernels_agree_to_2_ulp(
    dtype: torch.dtype, shape: tuple[int, ...], sigma: list[float], data: float, other: torch.dtype,
    layout: str, other_layout: str, sigma_layout: str,
) -> None:  # fmt: skip
    x, output = laid_out(normal(shape, 1, dtype=dtype), layout), laid_out(normal(shape, 2, dtype=other), other_layout)
    s = laid_out(torch.tensor(sigma[: shape[0]], dtype=inner_dtype(dtype)), sigma_layout)
    data = torch.tensor(data, dtype=inner_dtype(dtype)).item()
    skip, out, into, label = columns(s.tolist(), data, len(shape))
    both = skip * x.double(), out * output.double()
    found = []
    for backend in BACKENDS:
        with use(backend):
            inner, labels = edm_input(x, s, data)
            found.append((inner, edm_output(x, output, s, data), labels))
        assert [t.dtype for t in found[-1]] == [dtype, dtype, inner_dtype(dtype)]
        assert [tuple(t.shape) for t in found[-1]] == [shape, shape, shape[:1]]
        assert close(inner, into * x.double(), (into * x.double()).abs(), 3)
        assert close(found[-1][1], sum(both), sum(t.abs() for t in both), 4)
        assert close(labels, label, label.abs(), 3)
    for reference, kernel, size in zip(
        *found, (found[0][0].double().abs(), sum(t.abs() for t in both), label.abs()), strict=True
    ):
        ulps = 4 if dtype == torch.float64 else 2  # in float64 the reference rounds as often itself
        assert close(kernel, reference.double(), size, ulps, roundings=2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
def test_a_number_is_a_level_for_all_samples(dtype: torch.dtype, other: torch.dtype, backend: str) -> None:
    x, output = normal((3, 5), 1, dtype=dtype), normal((3, 5), 2, dtype=other)
    with use(backend):
        for sigma, data in ((1e-8, 0.5), (0.3, 1e-3), (80.0, 0.5), (1e8, 2.0)):
            skip, out, into, label = columns([sigma] * 3, data, 2)
            inner, labels = edm_input(x, sigma, data)
            both = skip * x.double(), out * output.double()
            assert inner.dtype == dtype
            assert close(inner, into * x.double(), (into * x.double()).abs(), 3)
            assert torch.equal(labels, label.to(inner_dtype(dtype)))
            assert close(edm_output(x, output, sigma, data), sum(both), sum(t.abs() for t in both), 4)
            of_0_dim = edm_output(x, output, torch.tensor(sigma, dtype=torch.float64), data)
            assert close(of_0_dim, sum(both), sum(t.abs() for t in both), 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_ratio_of_levels_overflows(dtype: torch.dtype, backend: str) -> None:
    top = 1e37 if dtype == torch.float32 else 1e300
    table = [(s, d) for s in (1 / top, 1e-20, 1.0, 1e20, top) for d in (1 / top, 1e-20, 1.0, 1e20, top)]
    for s, d in table:
        sigma, data = torch.full((2,), s, dtype=dtype), torch.tensor(d, dtype=dtype).item()
        skip, out, into, _ = exact(sigma[0].item(), data)
        one, none = torch.ones(2, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype)
        with use(backend):
            found = (
                edm_output(one, none, sigma, data),
                edm_output(none, one, sigma, data),
                edm_input(one, sigma, data)[0],
            )
        for got, want in zip(found, (skip, out, into), strict=True):
            want = torch.full_like(got, want, dtype=torch.float64)
            assert close(got, want, want, 3)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_input_and_target_of_the_network_have_unit_variance(sigma: float) -> None:
    """For data of variance sigma_data^2: of c_in (x0 + sigma z), and of (x0 - c_skip (x0 + sigma z)) / c_out."""
    data = 0.7
    x = torch.tensor([[data], [sigma]], dtype=torch.float64)  # x0 and sigma z, of one standard deviation each
    s = torch.full((2,), sigma, dtype=torch.float64)
    of_input = edm_input(x, s, data)[0]
    of_target = edm_output(x, torch.zeros_like(x), s, data)
    of_target[0] -= data
    c_out = edm_output(torch.zeros_like(x), torch.ones_like(x), s, data)[0]
    assert of_input.square().sum().item() == pytest.approx(1, rel=1e-14)
    assert (of_target / c_out).square().sum().item() == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3, 100, 930, 1023, 2048, 3000])
def test_a_sample_does_not_depend_on_its_batch(size: int, dtype: torch.dtype, backend: str) -> None:
    x, output = normal((12, size), 1, dtype=dtype), normal((12, size), 2)
    sigma = normal((12,), 3).exp()
    with use(backend):
        whole = *edm_input(x, sigma), edm_output(x, output, sigma)
        for k in (slice(0, 1), slice(3, 7), slice(11, 12)):
            part = (
                *edm_input(x[k].clone(), sigma[k].clone()),
                edm_output(x[k].clone(), output[k].clone(), sigma[k].clone()),
            )
            assert all(torch.equal(a, b[k]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_the_state_is_the_answer_and_negative_levels_have_no_label(
    dtype: torch.dtype, backend: str
) -> None:
    x, output = normal((2, 3), 1, dtype=dtype), normal((2, 3), 2, dtype=dtype)
    with use(backend):
        assert torch.allclose(
            edm_output(x, output, torch.zeros(2, dtype=dtype), 0.3), x, rtol=2 * torch.finfo(dtype).eps
        )
        label = edm_input(x, torch.tensor([0.0, -1.0], dtype=dtype))[1]
    assert label[0] == -math.inf
    assert label[1].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["tensor", "number"])
def test_the_denoiser_wraps_the_network_in_both(form: str, backend: str) -> None:
    x = normal((4, 3), 1, dtype=torch.float64)
    sigma: Any = 0.8 if form == "number" else torch.tensor([0.1, 0.8, 3.0, 80.0], dtype=torch.float64)
    skip, out, into, label = columns([0.8] * 4 if form == "number" else sigma.tolist(), 0.6, 2)

    def net(inner: Tensor, labels: Tensor) -> Tensor:
        assert torch.allclose(inner, into * x, rtol=1e-14)
        assert torch.allclose(labels, label, rtol=1e-14)
        return inner.sin() + labels[:, None]

    with use(backend):
        got = edm_precondition(net, x, sigma, 0.6)
    assert torch.allclose(got, skip * x + out * ((into * x).sin() + label[:, None]), rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_states_stay_so(backend: str) -> None:
    x = normal((2, 3, 4, 5), 1).to(memory_format=torch.channels_last)
    sigma = torch.tensor([0.2, 3.0])
    with use(backend):
        for got in (edm_input(x, sigma)[0], edm_output(x, x.contiguous(), sigma)):
            assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(edm_input(x, sigma)[0], edm_input(x.contiguous(), sigma)[0])


def test_every_sample_of_many_small_ones_gets_its_label() -> None:
    sigma = torch.linspace(0.1, 9.0, 3000)
    with use("triton"):
        label = edm_input(torch.ones(3000, 1), sigma)[1]
    assert torch.allclose(label, sigma.log() / 4, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("samples", "d"), [(3, 1 << 30), ((1 << 21) + 3, 1 << 10)])
def test_a_tile_beyond_31_bits_meets_its_own_sample(samples: int, d: int) -> None:
    gpu = importlib.import_module("halfbridge.kernels.gpu.edm_precondition")
    x = torch.empty((samples, d), dtype=torch.float16)  # never touched but for the last elements: no memory is used
    x[-1, -8:] = 2.0
    sigma = torch.ones(samples)
    sigma[-1] = 3.0
    with only_program(-1):
        got = gpu.edm_scale_triton(x, sigma, 4.0, "into", torch.float16)
    assert torch.allclose(got[-1, -8:], torch.tensor(0.4, dtype=torch.float16))


@pytest.mark.parametrize("shape", [(4, 1500), (40, 7)])
def test_the_long_division_finds_the_same_samples(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = importlib.import_module("halfbridge.kernels.gpu.edm_precondition")
    x, sigma = normal(shape, 1), normal(shape[:1], 2).exp()
    short = gpu.edm_input_triton(x, sigma, 0.5)
    monkeypatch.setattr(gpu, "WORD", 1)
    assert all(torch.equal(a, b) for a, b in zip(gpu.edm_input_triton(x, sigma, 0.5), short, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "`sigma` = 0.0 is no standard deviation"),
        ({"sigma": math.inf}, ValueError, "`sigma` = inf is no standard"),
        ({"sigma": torch.ones(3)}, ValueError, r"`sigma` has shape \(3,\) and dtype torch.float32; pass \(2,\)"),
        ({"sigma": torch.ones(2, 1)}, ValueError, r"`sigma` has shape \(2, 1\)"),
        ({"sigma": torch.ones(2, dtype=torch.int64)}, ValueError, "dtype torch.int64"),
        ({"sigma": torch.ones(2, device="meta")}, ValueError, "`sigma` is on meta but `x` is on cpu"),
        ({"sigma": torch.ones(2, requires_grad=True)}, ValueError, "`sigma` requires grad.*sigma.detach"),
        ({"sigma": "1"}, TypeError, "`sigma` is a str"),
        ({"sigma_data": -0.5}, ValueError, "`sigma_data` = -0.5"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, ValueError, "`x` has dtype torch.int64"),
        ({"x": torch.tensor(1.0)}, ValueError, r"`x` has shape \(\)"),
        ({"x": [1.0]}, TypeError, "`x` is a list"),
        ({"output": torch.ones(3, 2)}, ValueError, r"`output` has shape \(3, 2\) on cpu but `x` has \(2, 3\)"),
        ({"output": torch.ones(2, 3, dtype=torch.int64)}, ValueError, "`output` has dtype torch.int64"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"x": torch.ones(2, 3), "output": torch.ones(2, 3), "sigma": 1.0, "sigma_data": 0.5} | change
    with pytest.raises(error, match=message):
        edm_output(**good)
    if "output" not in change:
        good.pop("output")
        with pytest.raises(error, match=message):
            edm_input(**good)
