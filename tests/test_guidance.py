"""Class-conditional networks as fields, and classifier-free guidance."""

import math

import pytest
import torch

import halfbridge as hb
from halfbridge.nets.adapter import as_field
from halfbridge.nets.guidance import guided

PROCESS = hb.VP()


class Classy(torch.nn.Module):
    """tanh(W x) + t + the class's vector; the last row of the table is for no class."""

    def __init__(self, classes=3, dim=2, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.classes = classes
        self.table = torch.randn(classes + 1, dim, generator=generator, dtype=torch.float64).to(dtype)
        self.mix = torch.nn.Parameter(torch.randn(dim, dim, generator=generator, dtype=torch.float64).to(dtype))
        self.calls = []

    def forward(self, x, t, classes):
        self.calls.append((x.shape, t, classes))
        return torch.tanh(x @ self.mix) + t[:, None].to(x.dtype) + self.table[classes].to(x.dtype)


def states(n=4, dtype=torch.float64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_guidance_extrapolates_from_no_class_through_the_class():
    net, x, t = Classy(), states(), 0.3
    label, c = torch.full((4,), t, dtype=torch.float64), torch.tensor([0, 2, 1, 0])
    none = torch.full((4,), -1)
    for w in (-1.0, 0.0, 0.5, 3.0):
        expected = (1 + w) * net(x, label, c) - w * net(x, label, none)
        assert torch.allclose(
            as_field(net, PROCESS, classes=c, guidance=w).evaluate(t, x), expected, rtol=0, atol=1e-14
        )


def test_guidance_is_one_call_of_twice_the_rows_and_without_it_one_of_the_rows():
    net, x, c = Classy(), states(), torch.tensor([0, 2, 1, 0])
    as_field(net, PROCESS, classes=c, guidance=1.5).evaluate(0.3, x)
    as_field(net, PROCESS, classes=c).evaluate(0.3, x)
    (stacked, labels, both), (plain, _, mine) = net.calls
    assert (stacked, plain) == ((8, 2), (4, 2))
    assert labels.tolist() == [0.3] * 8
    assert both.tolist() == [0, 2, 1, 0, -1, -1, -1, -1]
    assert torch.equal(mine, c)
    assert both.dtype == mine.dtype == torch.int64


def test_one_class_is_that_class_for_every_row_and_none_is_no_class():
    net, x = Classy(), states()
    for classes, expected in ((2, 2), (-1, -1), (None, -1), (torch.tensor(1), 1)):
        as_field(net, PROCESS, classes=classes).evaluate(0.3, x)
        assert net.calls[-1][2].tolist() == [expected] * 4


def test_guidance_of_a_linear_view_is_the_view_of_the_guidance():
    """Weights that sum to 1 leave the state's share alone, whatever the network predicts."""
    net, x, w, t = Classy(), states(), 2.0, 0.4
    conditional, plain = (as_field(net, PROCESS, "velocity", classes=c)(t, x) for c in (1, -1))
    both = as_field(net, PROCESS, "velocity", classes=1, guidance=w)(t, x)
    for view in ("noise", "score", "data"):
        expected = (1 + w) * getattr(conditional, view) - w * getattr(plain, view)
        assert torch.allclose(getattr(both, view), expected, rtol=1e-12, atol=1e-12)


def test_samples_of_a_slice_of_the_batch_are_the_slice_of_the_samples():
    c = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    run = {"grid": hb.grids.half_log_snr(PROCESS, 4), "seed": 3, "dtype": torch.float64}

    def sample(rows, **more):
        field = as_field(Classy(), PROCESS, classes=c[rows], guidance=1.0)
        return hb.sample(field, hb.Ancestral(), shape=(len(c[rows]), 2), first=rows.start, **run)

    with torch.no_grad():
        whole = sample(slice(0, 7))
        parts = [sample(slice(0, 3)), sample(slice(3, 7))]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-13)


def test_gradients_flow_through_guidance_to_state_and_weights():
    net, x = Classy(), states().requires_grad_()
    field = as_field(net, PROCESS, classes=1, guidance=0.7)
    assert torch.autograd.gradcheck(lambda x: field.evaluate(0.3, x), (x,))
    field.evaluate(0.3, x).sum().backward()
    assert net.mix.grad.abs().max() > 0


def test_the_divergence_of_a_guided_field_is_that_of_its_two_parts():
    net, x, w = Classy(), states(), 0.7
    traces = [
        hb.divergence(lambda x, field=field: field.evaluate(0.3, x), x).trace
        for field in (as_field(net, PROCESS, classes=torch.tensor([0, 1, 2, 0]), guidance=w), as_field(net, PROCESS))
    ]
    assert torch.allclose(traces[0], traces[1], atol=1e-12)  # the class's vector has no slope, so both parts have one
    assert traces[0].abs().min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_guidance_of_half_predictions_is_rounded_once(dtype):
    net, x, w = Classy(dtype=dtype), states(dtype=dtype), 7.5
    label = torch.full((4,), 0.25)
    one, none = (net(x, label, torch.full((4,), c)).double() for c in (1, -1))
    found = as_field(net, PROCESS, classes=1, guidance=w).evaluate(0.25, x)
    exact = (1 + w) * one - w * none
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


def test_learned_variances_are_split_off_under_guidance():
    net = Classy()

    def wide(x, t, classes):
        return torch.cat([net(x, t, classes), x], dim=1)

    x, c = states(), torch.tensor([0, 2, 1, 0])
    found = as_field(wide, PROCESS, classes=c, guidance=1.5, learned_variance=True).evaluate(0.3, x)
    assert torch.equal(found, as_field(net, PROCESS, classes=c, guidance=1.5).evaluate(0.3, x))


def test_an_unconditional_network_is_called_with_two_arguments():
    class Plain(torch.nn.Module):
        classes = 0

        def forward(self, x, t):
            return 2 * x

    assert torch.equal(as_field(Plain(), PROCESS).evaluate(0.3, states()), 2 * states())
    with pytest.raises(ValueError, match=r"classes are given but the network Plain has none.*net\(x, t, classes\)"):
        as_field(Plain(), PROCESS, classes=1)


class Three:
    def __call__(self, x, t, classes):
        return x + classes[:, None]


def test_a_network_that_does_not_say_how_many_classes_it_has_takes_any_from_0_on():
    x = states()
    for net in (Three(), lambda x, t, classes: x + classes[:, None]):
        assert torch.equal(as_field(net, PROCESS, classes=9).evaluate(0.3, x), x + 9)
        with pytest.raises(ValueError, match="class -2; the network has 0, and -1 is no class"):
            as_field(net, PROCESS, classes=-2)


@pytest.mark.parametrize("net", [lambda x, t: x, torch.nn.Identity()])
def test_classes_for_a_network_that_takes_two_arguments_are_refused(net):
    with pytest.raises(ValueError, match="has none; leave classes out"):
        as_field(net, PROCESS, classes=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"classes": 3}, ValueError, r"class 3; the network has 0 \.\. 2, and -1 is no class"),
        ({"classes": torch.tensor([0, -2])}, ValueError, "class -2"),
        ({"classes": torch.tensor([0, 5, 1])}, ValueError, "class 5"),
        ({"classes": torch.zeros(4)}, TypeError, r"classes has dtype torch.float32; pass integers: classes.long\(\)"),
        ({"classes": torch.zeros(4, 1).long()}, ValueError, r"classes has shape \(4, 1\)"),
        ({"classes": 1.0}, TypeError, "classes is a float"),
        ({"classes": True}, TypeError, "classes is a bool"),
        ({"classes": 1, "guidance": math.nan}, ValueError, "guidance = nan is not finite"),
        ({"classes": 1, "guidance": "1"}, TypeError, "guidance is a str"),
        ({"guidance": 1.0}, ValueError, "guidance = 1 needs classes to guide to"),
    ],
)
def test_bad_classes_and_guidance_are_refused_when_the_field_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        as_field(Classy(), PROCESS, **arguments)


def test_classes_of_another_length_than_the_batch_are_refused_with_both_and_the_slice():
    field = as_field(Classy(), PROCESS, classes=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"classes has 3 rows and x has 4.*classes\[first : first \+ n\]"):
        field.evaluate(0.3, states())


def test_a_network_that_returns_half_of_a_guided_batch_is_named():
    call = guided(lambda x, t, c: x[:3], 0, 1.0)
    with pytest.raises(hb.FieldOutputError, match=r"returned \(3, 2\) for the 8 rows of a guided batch"):
        call(states(), torch.zeros(4))
