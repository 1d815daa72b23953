"""The embedding of the log-SNR, and labels that are whole numbers."""

import math

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import MLP, Fourier, Sinusoidal, as_field
from halfbridge.nets.adapter import default_labels
from halfbridge.nets.embedding import LogSNR
from halfbridge.solvers.processes.described import describe

PROCESSES = [
    hb.VP(),
    hb.CosineVP(),
    hb.SubVP(),
    hb.VE(),
    hb.EDM(),
    hb.OU(),
    hb.Brownian(),
    hb.DiscreteVP([1e-4 + 2e-5 * k for k in range(1000)]),
    hb.LinearProcess(lambda t: torch.exp(-t), lambda t: torch.sqrt(-torch.expm1(-2 * t)), 3.0, 1e-3),
]
by_name = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def times(process):
    """From t_min to T, both included, evenly in time and evenly in lambda."""
    even = torch.linspace(process.t_min, process.T, 17, dtype=torch.float64)
    lambdas = torch.linspace(process.half_log_snr(process.t_min), process.half_log_snr(process.T), 17).double()
    return torch.cat([even, process.time_at(lambdas[1:-1])])


@by_name
def test_the_label_of_a_time_is_embedded_as_the_half_log_snr_at_that_time(process):
    embedding = LogSNR(8, process, scale=3.0, period=50.0)
    t = times(process)
    angles = process.half_log_snr(t)[:, None] * torch.tensor([3.0 * 50.0 ** (-k / 3) for k in range(4)]).double()
    out = embedding(torch.as_tensor(default_labels(process)(t)))
    assert torch.allclose(out, torch.cat([angles.sin(), angles.cos()], dim=1), rtol=0, atol=3e-6)


@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_finite_and_precise_at_every_time_from_t_min_to_the_end(process, dtype):
    """The embedding of a float32 label differs from the exact label's by the label's rounding alone: lambda' t eps 30."""
    label = torch.as_tensor(default_labels(process)(times(process)))
    out = LogSNR(16, process)(label.to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()
    exact = LogSNR(16, process)(label.to(dtype).double())
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps / 2


def test_two_processes_at_one_noise_level_are_embedded_alike():
    vp, edm = hb.VP(), hb.EDM()
    level = torch.tensor([0.01, 0.3, 5.0, 70.0], dtype=torch.float64)
    a = LogSNR(16, vp)(vp.time_at(-level.log()))
    assert torch.allclose(a, LogSNR(16, edm)(level), rtol=0, atol=1e-11)


def test_the_scale_is_that_of_a_quarter_of_the_log_of_the_noise_level():
    level = torch.tensor([0.02, 0.7, 40.0], dtype=torch.float64)
    quarter = Sinusoidal(16)(-level.log() / 4)
    assert torch.allclose(LogSNR(16, hb.EDM())(level), quarter, rtol=0, atol=3e-5)


def test_a_label_without_a_log_snr_gives_nan_and_whole_steps_are_labels():
    discrete = LogSNR(8, hb.DiscreteVP([0.1, 0.2, 0.3]))
    steps = discrete(torch.tensor([0, 1, 2]))
    assert torch.equal(steps, discrete(torch.tensor([0.0, 1.0, 2.0])))
    assert steps.dtype == torch.float32
    assert discrete(torch.tensor([-1.5, 2.5, 7.0, math.nan])).isnan().all()
    assert LogSNR(8, hb.VP())(torch.tensor([0.0, -1.0])).isnan().all()
    assert LogSNR(8, hb.CosineVP())(torch.tensor([1.0, 1.5])).isnan().all()


@pytest.mark.parametrize("make", [lambda: Sinusoidal(8, scale=1.0), lambda: Fourier(8)])
def test_whole_numbers_are_embedded_as_the_floats_they_are(make):
    assert torch.equal(make()(torch.tensor([0, 3, 999])), make()(torch.tensor([0.0, 3.0, 999.0])))


@by_name
def test_a_network_on_the_log_snr_is_a_field_of_its_process(process):
    net = MLP(2, hidden=16, depth=1, time="log_snr", process=process).double()
    with torch.no_grad():
        net.last.weight.copy_(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    field = as_field(net, process)
    start, end = (field.evaluate(t, x) for t in (process.t_min, process.T))
    assert start.isfinite().all()
    assert (start - end).abs().max() > 1e-3


def test_the_frequencies_of_steps_fall_from_one():
    net = MLP(2, hidden=16, time="steps")
    assert net.time.frequencies[0] == 1.0
    assert net.time.frequencies[-1] == pytest.approx(1e-4, rel=1e-6)


def test_half_precision_moves_the_weights_and_not_the_log_snr():
    label = torch.tensor([0.3, 0.9])
    assert torch.equal(LogSNR(16, hb.VP()).bfloat16()(label), LogSNR(16, hb.VP())(label))


def test_a_process_goes_with_the_log_snr_alone_and_is_a_process():
    with pytest.raises(ValueError, match=r"time = 'log_snr' needs the process.*process=, such as hb.VP"):
        MLP(2, time="log_snr")
    with pytest.raises(ValueError, match="process is read by time = 'log_snr' alone, but time = 'fourier'"):
        MLP(2, time="fourier", process=hb.VP())
    with pytest.raises(TypeError, match="process is a str"):
        LogSNR(8, "vp")
    with pytest.raises(TypeError, match="time is a int"):
        MLP(2, time=3)
    assert LogSNR(8, describe(hb.VP(0.2))).process == hb.VP(0.2)
    assert math.isclose(LogSNR(8, hb.VP()).scale, 7.5)
