"""Networks, embeddings, and the bridge from networks to fields."""

import math

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import MLP, Fourier, Sinusoidal, UNet, as_field
from halfbridge.training import fit_score, objectives

STEPS = hb.DiscreteVP([0.1, 0.2, 0.3, 0.4])


class Recorder(torch.nn.Module):
    """Returns 2 x and keeps the labels that it was given."""

    def forward(self, x, t):
        self.labels = t
        return 2.0 * x


def trained(net, seed=0):
    """`net` with every parameter random: an MLP's last layer starts at zero and would hide what comes before it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / math.sqrt(p.shape[-1]))
    return net.eval()


@pytest.mark.parametrize("shape", [3, (1, 8, 8)])
@pytest.mark.parametrize("time", ["sinusoidal", "fourier"])
def test_the_field_of_a_network_is_the_network_called_with_the_time_for_every_sample(shape, time):
    net = trained(MLP(shape, hidden=16, depth=2, time=time))
    x = torch.randn(5, *net.shape, generator=torch.Generator().manual_seed(1))
    t = torch.full((5,), 0.3)
    direct = net(x, t)
    assert torch.equal(as_field(net, hb.VP()).evaluate(0.3, x), direct)
    assert not torch.allclose(net(x, t + 0.1), direct, rtol=1e-3)


@pytest.mark.parametrize("predicts", ["noise", "score", "data", "velocity"])
def test_the_networks_prediction_is_read_as_what_it_predicts(predicts):
    x = torch.ones(2, 3, dtype=torch.float64)
    evaluation = as_field(Recorder(), hb.VP(), predicts)(0.5, x)
    assert torch.equal(getattr(evaluation, predicts), 2.0 * x)


def test_each_sample_keeps_its_own_time_and_events_do_not_mix():
    net = trained(MLP(2, hidden=16, depth=2))
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.1, 0.4, 0.7, 0.9])
    rows = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    assert torch.allclose(net(x, t), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_label_is_in_the_states_dtype_and_in_float32_for_half_states(dtype, expected):
    net = Recorder()
    as_field(net, hb.VP()).evaluate(0.1, torch.zeros(3, 2, dtype=dtype))
    assert net.labels.dtype == expected
    assert net.labels.tolist() == [torch.tensor(0.1, dtype=expected).item()] * 3


def test_a_discrete_process_counts_steps_from_one_and_its_network_from_zero():
    net = Recorder()
    for step in (1.0, 3.0, 2.5):
        as_field(net, STEPS).evaluate(step, torch.zeros(2, 1))
        assert net.labels.tolist() == [step - 1.0] * 2


def test_labels_replaces_the_default_label():
    net, process = Recorder(), hb.EDM()
    as_field(net, process, labels=process.half_log_snr).evaluate(3.0, torch.zeros(2, 1, dtype=torch.float64))
    assert net.labels.tolist() == pytest.approx([-math.log(3.0)] * 2, abs=1e-15)
    as_field(net, STEPS, labels=lambda t: t).evaluate(3.0, torch.zeros(2, 1))
    assert net.labels.tolist() == [3.0, 3.0]


def test_a_network_with_learned_variances_is_refused_with_both_shapes():
    field = as_field(lambda x, t: torch.cat([x, x], dim=1), hb.VP())
    with pytest.raises(ValueError, match=r"(?s)\(2, 6, 4, 4\).*\(2, 3, 4, 4\).*learned variances"):
        field.evaluate(0.5, torch.zeros(2, 3, 4, 4))


def test_labels_of_the_wrong_length_are_refused():
    field = as_field(Recorder(), hb.VP(), labels=lambda t: torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(3,\) for a batch of 2"):
        field.evaluate(0.5, torch.zeros(2, 1))


def test_sinusoidal_frequencies_fall_geometrically_from_the_scale():
    label = torch.tensor([0.37], dtype=torch.float64)
    out = Sinusoidal(6, scale=10.0, period=100.0)(label)[0]
    angles = [3.7, 0.37, 0.037]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert out.tolist() == pytest.approx(expected, abs=1e-6)


def test_fourier_frequencies_depend_on_the_seed_alone():
    torch.manual_seed(0)
    first = Fourier(8, seed=3)
    state = torch.random.get_rng_state()
    second = Fourier(8, seed=3)
    assert torch.equal(first.frequencies, second.frequencies)
    assert not torch.equal(first.frequencies, Fourier(8, seed=4).frequencies)
    assert torch.equal(state, torch.random.get_rng_state())
    label = torch.tensor([0.7])
    assert torch.allclose(first(label)[0, :4], torch.sin(first.frequencies * 0.7))


def test_an_untrained_mlp_returns_zero():
    assert not MLP(3, hidden=8)(torch.ones(2, 3), torch.ones(2)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": ()}, "shape"),
        ({"shape": (3, 0)}, "shape"),
        ({"shape": 2, "hidden": 15}, "hidden = 15"),
        ({"shape": 2, "depth": 0}, "depth = 0"),
        ({"shape": 2, "time": "sinusodial"}, "'sinusodial'.*did you mean 'sinusoidal'"),
    ],
)
def test_an_mlp_refuses_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)


@pytest.mark.parametrize(("name", "value"), [("shape", (2.7,)), ("hidden", "256"), ("depth", 2.5), ("classes", "3")])
def test_an_mlp_cuts_nothing_off_its_sizes(name, value):
    with pytest.raises(TypeError, match=rf"{name} = .* must be (a )?whole number"):
        MLP(**({"shape": 2} | {name: value}))


@pytest.mark.parametrize("shape", [3, (3, 2, 2)])
def test_a_learned_variance_is_as_much_output_again_after_the_prediction(shape):
    net = trained(MLP(shape, hidden=16, depth=1, learned_variance=True))
    plain = MLP(shape, hidden=16, depth=1)
    size = math.prod(net.shape)
    assert net.parameter_count == plain.parameter_count + 17 * size
    state = net.state_dict()
    plain.load_state_dict(state | {name: state[name][:size] for name in ("last.weight", "last.bias")})
    x, t = torch.randn(5, *net.shape, generator=torch.Generator().manual_seed(1)), torch.full((5,), 0.3)
    assert net(x, t).shape == (5, 6, *net.shape[1:])
    assert torch.allclose(net(x, t)[:, :3], plain(x, t), atol=1e-6)
    found = as_field(net, hb.VP(), learned_variance=True).evaluate(0.3, x)
    assert torch.allclose(found, plain(x, t), atol=1e-6)
    assert not MLP(shape, hidden=16, learned_variance=True)(x, t).any()
    with pytest.raises(hb.FieldOutputError, match="learned variances"):
        as_field(net, hb.VP()).evaluate(0.3, x)


@pytest.mark.parametrize(
    "objective", ["hybrid", objectives.DDPMBound(STEPS, learned=True)], ids=["hybrid", "ddpm_elbo"]
)
@pytest.mark.parametrize("make", [
    lambda: MLP((2, 8, 8), hidden=8, depth=1, learned_variance=True),
    lambda: UNet((2, 8, 8), width=4, multipliers=(1,), blocks=1, learned_variance=True),
], ids=["MLP", "UNet"])  # fmt: skip
def test_a_learned_variance_trains_by_the_bound_and_the_field_is_the_prediction(make, objective):
    net = make()
    data = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    process = STEPS if objective == "hybrid" else None
    fit = fit_score(net, data, process, objective=objective, steps=2, batch_size=4, lr=1e-2)
    x, k = data[:3], torch.full((3,), 1.0)
    out = fit.net(x, k)
    assert out.shape == (3, 4, 8, 8)
    assert out[:, 2:].abs().max() > 0  # the variance has learned
    assert torch.equal(fit.field.noise(2.0, x), out[:, :2])
    drawn = hb.sample(fit.field, hb.Ancestral(), grid=hb.grids.uniform(STEPS, 3), shape=(2, 2, 8, 8), seed=0)
    assert drawn.isfinite().all()
    assert drawn.shape == (2, 2, 8, 8)


def test_the_parameters_of_an_mlp_are_counted_as_by_hand_and_stated():
    for hidden, depth in ((256, 3), (64, 2)):
        block = 2 * hidden * (hidden + 1) + 2 * hidden * (hidden + 1)
        count = 2 * hidden * (hidden + 1) + 3 * hidden + depth * block + 2 * (hidden + 1)
        assert MLP(2, hidden=hidden, depth=depth).parameter_count == count
        assert f"{count:,}".replace(",", " ") in MLP.__doc__
    learned = MLP(2, learned_variance=True).parameter_count
    assert f"learned_variance {learned:,}".replace(",", " ") in MLP.__doc__


def test_an_mlp_refuses_events_of_another_shape():
    with pytest.raises(ValueError, match=r"x of shape \(2, 4\).*\(batch, 3\)"):
        MLP(3)(torch.zeros(2, 4), torch.zeros(2))


@pytest.mark.parametrize("time", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_mlp_of_any_dtype_is_a_field_on_states_of_that_dtype(dtype, time):
    net = trained(MLP(2, hidden=16, depth=2, time=time).to(dtype))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    out = as_field(net, hb.VP()).evaluate(0.3, x)
    assert out.dtype == dtype
    exact = as_field(net.double(), hb.VP()).evaluate(0.3, x.double())
    scale = exact.abs().max()
    assert 0.1 < scale < 100.0
    assert (out.double() - exact).abs().max() < 8 * torch.finfo(dtype).eps * scale + 1e-6


def test_the_label_of_a_half_network_is_embedded_before_it_is_rounded():
    net = MLP(1, hidden=16).bfloat16()
    seen = []
    net.time.register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
    as_field(net, hb.VP()).evaluate(0.3, torch.zeros(2, 1, dtype=torch.bfloat16))
    assert seen == [(torch.float32, torch.float32)]


@pytest.mark.parametrize(
    ("net", "state"),
    [(MLP(2, hidden=8), torch.float64), (MLP(2, hidden=8).double(), torch.float32), (MLP(2), torch.bfloat16)],
)
def test_a_state_of_another_dtype_than_the_networks_is_refused_with_both_and_the_remedy(net, state):
    mine = next(net.parameters()).dtype
    message = rf"state is {state} and the network MLP is {mine}.*x\.to\({mine}\) or net\.to\({state}\)"
    with pytest.raises(ValueError, match=message):
        as_field(net, hb.VP()).evaluate(0.3, torch.zeros(2, 2, dtype=state))


def test_a_network_that_casts_its_input_takes_states_of_any_dtype_and_its_own_errors_pass():
    class Casting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = MLP(2, hidden=8)

        def forward(self, x, t):
            if t[0] > 0.5:
                raise RuntimeError("out of patience")
            return self.inner(x.float(), t.float()).to(x.dtype)

    field = as_field(Casting(), hb.VP())
    assert field.evaluate(0.3, torch.zeros(2, 2, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(RuntimeError, match="out of patience"):
        field.evaluate(0.7, torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda: hb.nets.Sinusoidal(64, scale=1.0), lambda: hb.nets.Fourier(64)])
def test_frequencies_stay_exact_in_half_precision(make):
    """A network trained in float32 and cast to bfloat16 must see the labels it was trained on."""
    label = torch.tensor([873.0, 0.73])
    assert torch.equal(make().bfloat16()(label), make()(label))
    assert torch.equal(make().double()(label), make()(label))
    again = make()
    again.load_state_dict(make().half().state_dict())
    assert torch.equal(again(label), make()(label))
