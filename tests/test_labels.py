"""Labels of networks that count time in their own way, and networks whose variances are split off."""

import pytest
import torch

import halfbridge as hb
from halfbridge.nets.adapter import as_field
from halfbridge.nets.labels import default_labels, network_labels, scaled, steps, time_of_label

BETAS = [0.1, 0.2, 0.3, 0.4]


def labels_seen(field, t, x=None):
    """The label tensor that the field's network is called with."""
    seen = []
    net = field(lambda x, label: (seen.append(label), x)[1])
    net.evaluate(t, torch.zeros(3, 2) if x is None else x)
    return seen[0]


def test_a_scaled_label_is_the_time_times_the_factor_rounded_once():
    t = 0.123456789
    for dtype in (torch.float32, torch.float64):
        seen = labels_seen(lambda net: as_field(net, hb.VP(), labels=scaled(999.0)), t, torch.zeros(2, 1, dtype=dtype))
        assert seen.tolist() == [torch.tensor(999.0 * t, dtype=dtype).item()] * 2
    assert scaled(3)(0.5) == 1.5
    assert torch.equal(scaled(3)(torch.tensor([0.5, 1.0])), torch.tensor([1.5, 3.0]))


@pytest.mark.parametrize("process", [hb.VP(), hb.CosineVP(), hb.OU(), hb.DiscreteVP([0.01] * 50)], ids=repr)
@pytest.mark.parametrize("n", [1, 7, 50, 1000])
def test_step_k_of_n_lies_at_k_nths_of_the_time_and_has_the_label_k_minus_1(process, n):
    t = torch.arange(1, n + 1, dtype=torch.float64) * process.T / n
    assert steps(process, n)(t).tolist() == list(range(n))
    assert steps(process, n)(float(t[-1])).item() == n - 1
    near = (torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) - 0.5) * 0.99 * process.T / n
    assert steps(process, n)((t + near).clamp(max=process.T)).tolist() == list(range(n))


def test_before_the_first_step_the_nearest_label_is_0():
    assert steps(hb.VP(), 10)(0.0).item() == 0
    assert steps(hb.VP(), 10)(torch.tensor([1e-3, 0.149, 0.151, 0.999])).tolist() == [0, 0, 1, 9]


def test_steps_of_a_discrete_process_of_as_many_steps_are_its_default_labels():
    process = hb.DiscreteVP([0.02] * 30)
    k = torch.arange(1.0, 31.0)
    assert steps(process, 30)(k).tolist() == default_labels(process)(k).tolist()


def test_labels_of_steps_are_integers_and_others_keep_the_states_dtype():
    seen = labels_seen(lambda net: as_field(net, hb.VP(), labels=steps(hb.VP(), 1000)), 0.5)
    assert seen.dtype == torch.int64
    assert seen.tolist() == [499] * 3
    integers = labels_seen(lambda net: as_field(net, hb.VP(), labels=lambda t: torch.tensor(3)), 0.5)
    assert integers.dtype == torch.float32


def test_one_label_for_each_time_of_a_batch():
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    assert network_labels(steps(hb.VP(), 10), t, torch.zeros(3, 2)).tolist() == [0, 4, 9]


@pytest.mark.parametrize("t", [-0.1, 1.06, float("nan"), torch.tensor([0.5, 2.0])])
def test_a_time_that_no_step_is_near_is_refused(t):
    with pytest.raises(ValueError, match=r"is not a time of the network's 10 steps, which end at T = 1.*s_max"):
        steps(hb.VP(), 10)(t)


@pytest.mark.parametrize("process", [hb.VP(), hb.DiscreteVP(BETAS)], ids=repr)
def test_the_time_of_a_default_label_is_the_time_that_has_it(process):
    t = torch.tensor([1.0, 0.25], dtype=torch.float64)
    assert torch.equal(time_of_label(process, default_labels(process)(t)), t)
    assert time_of_label(process, torch.tensor([1, 2])).dtype == torch.float64


def test_labels_can_be_printed_and_compared():
    assert repr(scaled(999)) == "Scaled(factor=999.0)"
    assert steps(hb.VP(), 10) == steps(hb.VP(), 10) != steps(hb.VP(), 11)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: scaled(0), ValueError, "factor = 0"),
        (lambda: scaled(float("inf")), ValueError, "factor = inf"),
        (lambda: scaled("999"), TypeError, "factor is a str"),
        (lambda: steps(hb.VP(), 0), ValueError, "n = 0 must be an integer"),
        (lambda: steps(hb.VP(), 10.0), ValueError, r"n = 10\.0 must be an integer"),
        (lambda: steps("vp", 10), TypeError, "process is a str"),
    ],
)
def test_bad_labels_are_refused_when_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def with_variance(x, label):
    return torch.cat([2.0 * x, 7.0 + x], dim=1)


def test_a_learned_variance_is_split_off_after_the_first_half_of_the_channels():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    field = as_field(with_variance, hb.VP(), learned_variance=True)
    assert torch.equal(field.evaluate(0.5, x), 2.0 * x)
    run = {"grid": hb.grids.half_log_snr(hb.VP(), 5), "shape": (2, 3, 4, 4), "seed": 0}
    plain = hb.Field(hb.VP(), lambda t, x: 2.0 * x)
    assert torch.equal(hb.sample(field, hb.DPMSolver(order=3), **run), hb.sample(plain, hb.DPMSolver(order=3), **run))


@pytest.mark.parametrize(
    "net",
    [
        lambda x, t: x,
        lambda x, t: torch.cat([x, x, x], dim=1),
        lambda x, t: torch.cat([x, x], dim=2),
        lambda x, t: torch.cat([x, x], dim=1)[:1],
    ],
)
def test_a_learned_variance_takes_twice_the_channels_and_nothing_else(net):
    field = as_field(net, hb.VP(), learned_variance=True)
    with pytest.raises(
        hb.FieldOutputError, match=r"must return shape \(2, 6, 4, 4\).*returned.*learned_variance=False"
    ):
        field.evaluate(0.5, torch.zeros(2, 3, 4, 4))
