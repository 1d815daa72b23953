"""Preconditioned denoisers (Karras et al. 2022) and the fields they are; `test_columns` has their coefficients."""

import json
import math

import numpy as np
import pytest
import torch
from gaussians import covariances, random, tensor

import halfbridge as hb
from halfbridge.nets import EMA, as_field
from halfbridge.nets.adapter import check_prediction
from halfbridge.nets.columns import COLUMNS, iddpm_levels
from halfbridge.nets.labels import scaled, steps
from halfbridge.nets.precondition import Precondition

KINDS = list(COLUMNS)
COSINE = hb.DiscreteVP(
    [min(1 - (math.cos((k + 8) / 1008 * math.pi / 2) / math.cos((k + 7) / 1008 * math.pi / 2)) ** 2, 0.999) for k in range(1, 1001)]
)  # fmt: skip
by_kind = pytest.mark.parametrize("kind", KINDS)


class Identity(torch.nn.Module):
    """Returns its input and keeps what it was called with."""

    def forward(self, x, label, *classes):
        self.seen = (x, label, *classes)
        return x


@by_kind
def test_the_denoiser_is_the_data_where_the_network_is_the_ideal_target(kind):
    x0, noise, nu = random(5, 3), random(5, 3, seed=1), tensor([0.002, 0.3, 1.0, 9.0, 80.0])
    pre = Precondition(Identity(), kind)
    skip, out, *_ = (c[:, None] for c in pre.scalings(nu))
    x = x0 + nu[:, None] * noise
    ideal = (x0 - skip * x) / out
    pre.net.forward = lambda inner, label: ideal
    assert torch.allclose(pre(x, nu), x0, atol=1e-12)
    pre.net.forward = lambda inner, label: 1.01 * ideal
    assert not torch.allclose(pre(x, nu), x0, atol=1e-3)


class Ideal(torch.nn.Module):
    """The network that makes the denoiser that of a Gaussian: it finds level and state from what it is shown."""

    LEVEL = {  # noqa: RUF012
        "edm": lambda label: (4 * label).exp(),
        "ve": lambda label: 2 * label.exp(),
        "vp": lambda label: hb.VP().nu(label / 999),
        "iddpm": lambda label: tensor(iddpm_levels())[999 - label.long()],
    }

    def __init__(self, kind, law):
        super().__init__()
        self.kind, self.law = kind, law

    def forward(self, inner, label):
        nu = self.LEVEL[self.kind](label)
        skip, out, into, _ = (c[:, None] for c in Precondition(Identity(), self.kind).scalings(nu))
        x = inner / into
        data = self.law.field(hb.EDM(1e-9, 1e9), "data")
        denoised = torch.cat([data.evaluate(float(n), row[None]) for n, row in zip(nu, x, strict=True)])
        return (denoised - skip * x) / out


GAUSSIAN = hb.reference.Gaussian(random(3, seed=4), covariances(1, 3, seed=5)[0])


@pytest.mark.parametrize("kind", ["vp", "ve", "edm"])
@pytest.mark.parametrize(
    ("process", "t"),
    [(p, t) for p, times in (
        (hb.VP(), (1e-3, 0.3, 1.0)), (hb.SubVP(), (0.02, 0.7)), (hb.CosineVP(), (0.1, 0.9)), (hb.OU(0.7, 1.3), (0.5,)),
        (hb.EDM(), (0.002, 1.0, 80.0)), (hb.VE(), (0.01, 0.9)), (hb.Brownian(0.8), (0.4,)), (COSINE, (1.0, 137.5, 900.0)),
        (hb.LinearProcess(lambda t: 1 - t / 2, lambda t: t, 1.0, 1e-3), (0.3,)),
    ) for t in times],
)  # fmt: skip
def test_the_field_of_an_ideal_network_is_the_exact_one_under_any_process(kind, process, t):
    field = as_field(Precondition(Ideal(kind, GAUSSIAN), kind, process=process), process, "data")
    x = 2.0 * random(4, 3, seed=6)
    exact = GAUSSIAN.field(process)(t, x)
    for view in ("data", "noise", "score"):
        found, wanted = getattr(field(t, x), view), getattr(exact, view)
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-10 * (1 + process.nu(t) + 1 / process.sigma(t) ** 2))


@by_kind
def test_without_a_process_time_is_the_level(kind):
    t = 1.0 if kind != "iddpm" else iddpm_levels()[400]
    field = as_field(Precondition(Ideal(kind, GAUSSIAN), kind), hb.EDM(), "data")
    x = random(4, 3, seed=6)
    assert torch.allclose(field.evaluate(t, x), GAUSSIAN.field(hb.EDM(), "data").evaluate(t, x), atol=1e-12)


class Wavy(torch.nn.Module):
    """No symmetry that could hide a sign, a scale or a shifted label."""

    def forward(self, x, label):
        return torch.sin(1.3 * x + 0.2) + 0.1 * torch.cos(0.01 * label + 0.4)[:, None] * x


@pytest.mark.parametrize("t", [1e-3, 0.2, 1.0])
def test_the_vp_column_under_vp_is_the_noise_prediction_of_the_network_at_label_999_t(t):
    x = random(4, 3, seed=7)
    ours = as_field(Precondition(Wavy(), "vp", process=hb.VP()), hb.VP(), "data")(t, x)
    plain = as_field(Wavy(), hb.VP(), "noise", labels=scaled(999.0))(t, x)
    assert torch.allclose(ours.data, plain.data, rtol=1e-10, atol=1e-10)
    assert torch.allclose(ours.noise, plain.noise, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("k", [1.0, 2.0, 500.0, 999.0, 1000.0])
def test_the_iddpm_column_under_the_cosine_chain_is_the_noise_prediction_at_its_own_timesteps(k):
    """Nichol and Dhariwal's chain, which the table restates: u_j is the level of step M - j, and the label is its timestep."""
    x = random(4, 3, seed=8)
    assert COSINE.nu(k) == pytest.approx(iddpm_levels()[1000 - int(k)], rel=1e-9)
    pre = Precondition(Wavy(), "iddpm", process=COSINE)
    ours, plain = (as_field(net, COSINE, p) for net, p in ((pre, "data"), (Wavy(), "noise")))
    assert torch.allclose(ours(k, x).noise, plain(k, x).noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.002, 1.0, 80.0])
def test_the_ve_column_predicts_minus_the_noise_from_the_state_itself(t):
    x = random(4, 3, seed=9) * (1 + t)
    ours = as_field(Precondition(Wavy(), "ve"), hb.EDM(), "data")(t, x)
    expected = -Wavy()(x, torch.full((4,), math.log(t / 2), dtype=torch.float64))
    assert torch.allclose(ours.noise, expected, rtol=1e-9, atol=1e-11 / t)


def test_the_edm_column_is_the_fused_kernel_bit_for_bit():
    x, nu = random(4, 3).float(), torch.tensor([0.01, 0.5, 2.0, 70.0])
    pre = Precondition(Wavy(), sigma_data=0.6)
    assert torch.equal(pre(x, nu), hb.kernels.edm_precondition(Wavy(), x, nu, 0.6))
    other = hb.VE()
    bound = Precondition(Wavy(), sigma_data=0.6, process=other)
    expected = hb.kernels.edm_precondition(Wavy(), x, torch.full((4,), other.nu(0.5)), 0.6)
    assert torch.equal(bound(x, torch.full((4,), 0.5)), expected)


@by_kind
@pytest.mark.parametrize("process", [None, hb.VP()], ids=["level", "VP"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_scaled_in_float32_and_rounded_once(kind, process, dtype):
    class Ones(torch.nn.Module):
        def forward(self, x, label):
            self.x, self.label = x, label
            return torch.ones_like(x)

    x, t = random(3, 50, seed=3).to(dtype), torch.tensor([0.25, 0.5, 0.75])
    pre, exact = Precondition(Ones(), kind, process=process), Precondition(Ones(), kind, process=process)
    found, wanted = pre(x, t), exact(x.double(), t.double())
    eps = 0.5 * torch.finfo(dtype).eps
    for ours, theirs in ((found, wanted), (pre.net.x, exact.net.x)):
        assert ours.dtype == dtype
        # a rounding of the result, and one or two ulp of float32 of each of its terms
        slack = eps * theirs.abs() + 4e-7 * (theirs.abs() + x.double().abs() * 4 + 1) * (
            1 if dtype == torch.float32 else 1.5
        )
        assert ((ours.double() - theirs).abs() <= slack).all()
    assert pre.net.label.dtype == torch.float32
    assert exact.net.label.dtype == torch.float64
    assert torch.allclose(pre.net.label.double(), exact.net.label, rtol=1e-6)


@by_kind
@pytest.mark.parametrize(
    "process", [None, hb.VP(), hb.CosineVP(), hb.EDM(), COSINE, hb.OU()], ids=lambda p: type(p).__name__
)
def test_on_a_device_no_number_is_read_back(kind, process):
    """The meta device has none to give."""
    pre = Precondition(Wavy(), kind, process=process)
    assert pre(torch.empty(3, 2, device="meta"), torch.empty(3, device="meta")).shape == (3, 2)
    if kind == "iddpm":
        held = pre.column._middles[torch.device("meta")]
        pre(torch.empty(3, 2, device="meta"), torch.empty(3, device="meta"))
        assert pre.column._middles[torch.device("meta")] is held


@pytest.mark.parametrize("process", [hb.VP(), hb.CosineVP(), hb.EDM(), COSINE, hb.VE()], ids=lambda p: type(p).__name__)
def test_unchecked_levels_are_the_checked_ones_and_nan_where_there_is_none(process, monkeypatch):
    pre, x, steps = Precondition(Wavy(), "vp", process=process), random(3, 2), isinstance(process, hb.DiscreteVP)
    good = process.T * tensor([0.002, 0.3, 0.998])
    good = good.ceil() - 1.0 if steps else good
    bad = [-1.5, *([1000.0, 4000.0] if steps else []), *([1.1] if isinstance(process, hb.CosineVP) else [])]
    checked = pre(x, good)
    for label in bad:
        with pytest.raises(ValueError, match=r"`t` = "):
            pre(x[:1], tensor([label]))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(pre(x, good), checked)
    for label in bad:
        assert pre(x[:1], tensor([label])).isnan().all()


@pytest.mark.parametrize(("kind", "process"), [("edm", hb.VP()), ("iddpm", COSINE)])
def test_it_is_one_graph_of_torch_compile(kind, process):
    pre, x, t = Precondition(Wavy(), kind, process=process), random(3, 2), tensor([0.2, 0.5, 0.9])
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(pre, backend="eager", fullgraph=True)(x, t), pre(x, t), atol=1e-12)


def test_each_sample_has_its_own_level():
    x, nu = random(4, 3), tensor([0.01, 0.5, 2.0, 70.0])
    for kind in KINDS:
        for process in (None, hb.OU()):
            pre, t = Precondition(Wavy(), kind, process=process), nu if process is None else nu / 71
            rows = torch.cat([pre(x[i : i + 1], t[i : i + 1]) for i in range(4)])
            assert torch.allclose(pre(x, t), rows, rtol=0, atol=1e-13)


@by_kind
@pytest.mark.parametrize("process", [None, hb.VP()], ids=["level", "VP"])
def test_gradients_reach_the_state(kind, process):
    pre = Precondition(Wavy(), kind, process=process)
    x, t = random(3, 2).requires_grad_(), tensor([0.2, 0.5, 0.9])
    assert torch.autograd.gradcheck(lambda x: pre(x, t), (x,))


@pytest.mark.parametrize("kind", ["edm", "vp", "ve"])
def test_gradients_reach_the_time(kind):
    pre, x = Precondition(Wavy(), kind), random(3, 2)
    assert torch.autograd.gradcheck(lambda t: pre(x, t), (tensor([0.2, 0.5, 0.9]).requires_grad_(),))


def test_a_denoiser_samples_and_has_likelihoods_as_any_field():
    process = hb.VP()
    field = as_field(Precondition(Ideal("edm", GAUSSIAN), process=process), process, "data")
    run = {"grid": hb.grids.half_log_snr(process, 8), "shape": (4, 3), "seed": 0, "dtype": torch.float64}
    with torch.no_grad():
        found = hb.sample(field, hb.DPMSolver(order=2), **run)
    assert torch.allclose(found, hb.sample(GAUSSIAN.field(process), hb.DPMSolver(order=2), **run), atol=1e-8)
    x = random(2, 3)
    trace = hb.divergence(lambda x: field.data(0.4, x), x).trace
    assert torch.allclose(trace, hb.divergence(lambda x: GAUSSIAN.field(process).data(0.4, x), x).trace, atol=1e-10)


def test_a_denoiser_is_read_as_what_it_says_and_refused_as_anything_else():
    pre, vp, x = Precondition(Wavy(), process=hb.VP()), hb.VP(), random(2, 3)
    assert as_field(pre, vp).predicts == "data"
    assert torch.equal(as_field(pre, vp).data(0.5, x), as_field(pre, vp, "data").data(0.5, x))
    level = Precondition(Wavy())
    for net in (level, Precondition(Wavy(), process=hb.EDM())):
        assert as_field(net, hb.EDM(0.01, 20.0)).predicts == "data"  # the limits are not in what it computes
    assert as_field(Wavy(), vp).predicts == "noise"
    for predicts in ("noise", "score", "velocity"):
        with pytest.raises(ValueError, match=rf"predicts = '{predicts}', but the network Precondition predicts 'data'"):
            as_field(pre, vp, predicts)
    for net, process in ((pre, hb.EDM()), (pre, hb.VP(0.2)), (level, vp), (level, hb.VE())):
        with pytest.raises(ValueError, match=r"process = \w+.*, but the network Precondition takes states of "):
            as_field(net, process, "data")
    with pytest.raises(ValueError, match=r"labels are given, .*leave labels out"):
        as_field(pre, vp, "data", labels=steps(vp, 1000))
    assert check_prediction(pre, vp) == "data"
    assert check_prediction(Wavy(), vp, "score", labels=scaled(2.0)) == "score"


class Configured(torch.nn.Module):
    def __init__(self, width, classes=0):
        super().__init__()
        self.layer, self.classes = torch.nn.Linear(width, width), classes

    @property
    def config(self):
        return {"width": self.layer.in_features, "classes": self.classes}

    def forward(self, x, label, classes=None):
        return self.layer(x) + (0 if classes is None else classes[:, None])


def test_classes_and_counts_are_those_of_the_network_inside():
    pre = Precondition(Configured(3, classes=4))
    assert pre.classes == 4
    assert pre.parameter_count == 12
    x, nu, c = random(2, 3).float(), torch.tensor([1.0, 2.0]), torch.tensor([3, 1])
    shift = pre.scalings(nu).out[:, None] * c[:, None]
    assert torch.allclose(pre(x, nu, c) - pre(x, nu), shift.float(), atol=1e-6)
    field = as_field(pre, hb.EDM(), "data", classes=c, guidance=1.0)
    both = 2 * pre(x, nu[:1].expand(2), c) - pre(x, nu[:1].expand(2), torch.tensor([-1, -1]))
    assert torch.allclose(field.evaluate(1.0, x), both, atol=1e-5)
    with pytest.raises(ValueError, match="class 4"):
        as_field(pre, hb.EDM(), "data", classes=4)
    with pytest.raises(ValueError, match="has none"):
        as_field(Precondition(Configured(3)), hb.EDM(), "data", classes=0)


@pytest.mark.parametrize(
    ("arguments", "constants"),
    [
        ({}, {"sigma_data": 0.5}),
        ({"kind": "vp", "beta_min": 0.2, "process": hb.VE()}, {"beta_min": 0.2, "beta_max": 20.0, "steps": 1000}),
        ({"kind": "ve", "process": COSINE, "learned_variance": True}, {}),
        ({"kind": "iddpm", "steps": 50}, {"c1": 0.001, "c2": 0.008, "steps": 50}),
    ],
)
def test_the_config_makes_an_equal_module_again(arguments, constants):
    pre = Precondition(Configured(3), **arguments)
    config = json.loads(json.dumps(pre.config))
    assert config["net"] == {"type": "Configured", "width": 3, "classes": 0}
    assert {k: v for k, v in config.items() if k not in ("net", "process", "learned_variance", "kind")} == constants
    inner = config.pop("net")
    again = Precondition(Configured(inner["width"], inner["classes"]), **config)
    again.load_state_dict(pre.state_dict())
    assert again.config == pre.config
    assert again.process == pre.process
    if not pre.learned_variance:
        x, t = random(3, 3).float(), torch.tensor([0.1, 0.4, 0.8])
        assert torch.equal(again(x, t), pre(x, t))


def test_an_average_of_a_denoiser_is_a_denoiser():
    pre = Precondition(Configured(3), "iddpm")
    ema = EMA(pre, 0.5)
    ema.update()
    x, nu = random(2, 3).float(), torch.tensor([1.0, 2.0])
    assert torch.allclose(ema.model(x, nu), pre(x, nu))


def test_learned_variances_of_the_network_inside_are_split_off():
    class Wide(torch.nn.Module):
        def forward(self, x, label):
            return torch.cat([Wavy()(x, label), x], dim=1)

    x, nu = random(2, 3), tensor([1.0, 2.0])
    for kind in ("iddpm", "edm"):
        assert torch.equal(Precondition(Wide(), kind, learned_variance=True)(x, nu), Precondition(Wavy(), kind)(x, nu))
        with pytest.raises(
            hb.FieldOutputError, match=r"network Wide returned \(2, 6\).*\(2, 3\).*learned_variance=True"
        ):
            Precondition(Wide(), kind)(x, nu)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "edn"}, ValueError, "kind = 'edn' is no column; did you mean 'edm'"),
        ({"kind": "ve", "sigma_data": 0.5}, ValueError, "sigma_data is no constant of kind = 've'; it has none"),
        (
            {"sigma_dat": 0.5},
            ValueError,
            "sigma_dat is no constant of kind = 'edm'; did you mean 'sigma_data'",
        ),
        ({"sigma_data": "0.5"}, TypeError, "sigma_data = '0.5' must be a number"),
        ({"learned_variance": 1}, TypeError, "learned_variance = 1 must be True or False"),
        ({"sigma_data": 0.0}, ValueError, r"sigma_data = 0\.0 must be positive"),
        ({"kind": "vp", "beta_min": -1.0}, ValueError, "beta_min"),
        ({"kind": "vp", "steps": 1}, ValueError, "steps = 1 must be an integer, at least 2"),
        ({"kind": "iddpm", "steps": 10.0}, ValueError, r"steps = 10\.0"),
        ({"kind": "iddpm", "c1": 0.0}, ValueError, r"c1 = 0\.0"),
        ({"kind": "iddpm", "c2": -0.1}, ValueError, r"c2 = -0\.1"),
        ({"process": "vp"}, TypeError, "process is a str"),
        ({"net": lambda x, t: x}, TypeError, "net is a function; pass a torch.nn.Module"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Precondition(**({"net": Identity()} | arguments))


def test_times_of_another_number_than_states_and_what_cannot_be_written_down_are_refused():
    with pytest.raises(ValueError, match=r"t has shape \(3,\) for x of shape \(2, 3\)"):
        Precondition(Identity())(torch.zeros(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match="Identity has no config"):
        _ = Precondition(Identity()).config
    linear = hb.LinearProcess(lambda t: 1 - t / 2, lambda t: t, 1.0, 1e-3)
    with pytest.raises(ValueError, match="cannot be written down"):
        _ = Precondition(Configured(3), process=linear).config


def test_the_printed_form_says_kind_and_constants():
    assert "'edm', sigma_data=0.5" in repr(Precondition(Identity()))
    assert "'ve', process=VP" in repr(Precondition(Identity(), "ve", process=hb.VP()))
    assert np.isfinite(Precondition(Identity()).scalings(2.0).label.item())
