"""Networks saved and loaded: the same field to the last bit, or an error that says what does not fit."""

import pytest
import torch
from random_nets import P, X, assert_same_field, random_mlp, randomise

import halfbridge as hb
from halfbridge.nets import MLP, as_field
from halfbridge.nets.labels import scaled
from halfbridge.nets.precondition import Precondition
from halfbridge.nets.unet import UNet
from halfbridge.training import fit_score
from halfbridge.training.losses import LearnedSchedule
from halfbridge.training.objectives import Denoising, make
from halfbridge.training.saved import load, save

NETS = {
    "MLP": (lambda: random_mlp(), X),
    "MLP of the log-SNR": (lambda: random_mlp(time="log_snr", process=P), X),
    "UNet": (lambda: randomise(UNet((1, 8, 8), width=8, multipliers=(1, 2), blocks=1), 1), torch.ones(2, 1, 8, 8)),
    "Precondition": (lambda: Precondition(random_mlp(), "edm", process=P), X),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_of_ours_comes_back_as_the_same_field_on_its_own(name, tmp_path):
    make, x = NETS[name]
    net = make()
    predicts = getattr(net, "predicts", "velocity")
    save(tmp_path / "net.safetensors", net, process=P, predicts=predicts, step=12, record={"note": [1, 2]})
    state = torch.random.get_rng_state()
    saved = load(tmp_path / "net.safetensors")
    assert torch.equal(state, torch.random.get_rng_state())
    assert_same_field(saved.field, as_field(net, P, predicts), x)
    assert (saved.step, saved.record, saved.classes, saved.data) == (12, {"note": [1, 2]}, 0, None)
    assert not saved.net.training
    assert not any(p.requires_grad for p in saved.net.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_keep_their_dtype(dtype, tmp_path):
    net = random_mlp().to(dtype)
    save(tmp_path / "net.safetensors", net, process=P)
    back = load(tmp_path / "net.safetensors").net
    for a, b in zip(net.parameters(), back.parameters(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("labels", [None, P.half_log_snr, scaled(999.0)], ids=["default", "log-SNR", "scaled"])
@pytest.mark.parametrize("how", ["process", "objective"])
def test_predictions_and_labels_come_back(labels, how, tmp_path):
    net = random_mlp()
    given = {"process": P, "predicts": "data", "labels": labels}
    save(tmp_path / "net.safetensors", net, **(given if how == "process" else {"objective": Denoising(**given)}))
    saved = load(tmp_path / "net.safetensors")
    assert_same_field(saved.field, as_field(net, P, "data", labels=labels))


def test_classes_and_guidance_reach_the_network(tmp_path):
    net = random_mlp(classes=3)
    save(tmp_path / "net.safetensors", net, objective=Denoising(P))
    saved = load(tmp_path / "net.safetensors")
    assert saved.classes == 3
    assert_same_field(saved.as_field(classes=2, guidance=1.5), as_field(net, P, classes=2, guidance=1.5))
    assert_same_field(saved.field, as_field(net, P))
    with torch.no_grad():
        assert not torch.equal(saved.as_field(classes=2).noise(0.4, X), saved.field.noise(0.4, X))


OBJECTIVES = {
    "denoising": lambda: Denoising(P, "velocity"),
    "ddpm": lambda: make("ddpm", hb.DiscreteVP([0.1, 0.2, 0.3])),
    "edm": lambda: make("edm"),
    "ncsn": lambda: make("ncsn", levels=[2.0, 1.0, 0.1], labels="index"),
    "vdm": lambda: make("vdm", P),
    "vdm that learns its schedule": lambda: make("vdm", schedule=LearnedSchedule()),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_come_back_with_what_they_learned(name, tmp_path):
    objective, net = OBJECTIVES[name](), random_mlp()
    if isinstance(objective, torch.nn.Module):
        with torch.no_grad():
            for p in objective.parameters():
                p.add_(0.1)
    save(tmp_path / "net.safetensors", net, objective=objective)
    state = torch.random.get_rng_state()
    saved = load(tmp_path / "net.safetensors")
    assert torch.equal(state, torch.random.get_rng_state())
    assert type(saved.objective) is type(objective)
    assert saved.objective.config == objective.config
    field, t = objective.field(net), 1.0 if name != "vdm that learns its schedule" else 0.5
    with torch.no_grad():
        assert torch.equal(saved.field.noise(t, X), field.noise(t, X))
        assert not torch.equal(saved.field.noise(t, X), torch.zeros_like(X))
    assert saved.process.alpha(t) == field.process.alpha(t)
    assert saved.process.sigma(t) == field.process.sigma(t)
    if "learns" in name:
        fresh = OBJECTIVES[name]().process
        assert fresh.half_log_snr(t) != saved.process.half_log_snr(t)
        with pytest.raises(ValueError, match=r"the objective in .* is of another architecture"):
            load(tmp_path / "net.safetensors", objective=make("vdm", schedule=LearnedSchedule(hidden=3)))


def test_a_network_that_was_always_told_the_class_has_no_field_without_one(tmp_path):
    x, classes = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    some = classes.clone()
    some[3] = -1
    for name, told, dropout in [("always", classes, 0.0), ("dropped", classes, 0.1), ("some", some, 0.0)]:
        net = MLP(2, hidden=8, depth=1, classes=2)
        fit_score(net, x, P, classes=told, class_dropout=dropout, steps=1, batch_size=8, out=tmp_path / name)
        found = load(tmp_path / name)
        assert found.no_class == (name != "always")
        if found.no_class:
            assert found.field.noise(0.5, x).shape == x.shape
            continue
        found.as_field(classes=1).noise(0.5, x)
        for options in ({}, {"classes": -1}, {"classes": some}, {"classes": 1, "guidance": 0.5}):
            with pytest.raises(ValueError, match="class_dropout = 0, always told the class"):
                found.as_field(**options)
        save(tmp_path / "net.safetensors", found.net, objective=found.objective, record=found.record)
        with pytest.raises(ValueError, match="classes = None"):
            load(tmp_path / "net.safetensors").field  # noqa: B018


class Own(torch.nn.Module):
    """A user's network with a tied weight."""

    def __init__(self, width=4):
        super().__init__()
        self.first, self.last = torch.nn.Linear(2, width), torch.nn.Linear(width, 2)
        self.again = self.first

    def forward(self, x, t):
        return self.last(self.again(x) * t[:, None])


def test_a_network_of_the_users_is_asked_for_and_filled(tmp_path):
    path = tmp_path / "net.safetensors"
    net, other = randomise(Own(), 1), randomise(Own(), 2).train()
    save(path, net, process=P)
    with pytest.raises(ValueError, match=r"Own, which cannot be built.*pass net="):
        load(path)
    saved = load(path, net=other)
    assert saved.net is other
    assert other.again is other.first
    assert not other.training
    assert all(p.requires_grad for p in other.parameters())
    assert_same_field(saved.field, as_field(net, P))


def test_weights_of_another_architecture_are_refused_naming_both_shapes(tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, Own(4), process=P)
    wide = Own(5)
    before = {k: v.clone() for k, v in wide.state_dict().items()}
    with pytest.raises(ValueError, match="another architecture") as error:
        load(path, net=wide)
    assert "'first.weight' is float32 (4, 2) there and float32 (5, 2) in net" in str(error.value)
    assert "and 2 more differ" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in wide.state_dict().items())
    with pytest.raises(ValueError, match=r"'0.weight' is absent there and float32 \(2, 2\) in net"):
        load(path, net=torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"float32 \(4, 2\) there and float64 \(4, 2\) in net"):
        load(path, net=Own(4).double())
    bigger = Own(4)
    bigger.more = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"'more.weight' is absent there"):
        load(path, net=bigger)


def test_a_process_of_functions_and_labels_that_are_functions_are_asked_for(tmp_path):
    path, net = tmp_path / "net.safetensors", random_mlp()
    process = hb.LinearProcess(alpha=lambda t: 1.0 - t, sigma=lambda t: t, T=0.99, t_min=1e-3)
    labels = lambda t: 7.0 * t  # noqa: E731
    save(path, net, process=process)
    with pytest.raises(ValueError, match=r"LinearProcess, which cannot be built.*pass process="):
        load(path)
    assert_same_field(load(path, process=process).field, as_field(net, process))
    for given in ({"process": P, "labels": labels}, {"objective": Denoising(P, labels=labels)}):
        save(path, net, **given)
        with pytest.raises(ValueError, match=r"pass objective="):
            load(path)
        assert_same_field(load(path, objective=Denoising(P, labels=labels)).field, as_field(net, P, labels=labels))


def test_an_objective_that_cannot_be_written_down_is_not_needed_where_the_prediction_says_all(tmp_path):
    path, net = tmp_path / "net.safetensors", random_mlp()
    save(path, net, objective=Denoising(P, "velocity", weighting=lambda t: t))
    saved = load(path)
    assert saved.objective is None
    assert_same_field(saved.field, as_field(net, P, "velocity"))


class OwnObjective(Denoising):
    def field(self, net, **options):
        return as_field(lambda x, t: 2.0 * net(x, t), self.process, **options)


def test_an_objective_of_the_users_is_asked_for(tmp_path):
    path, net, objective = tmp_path / "net.safetensors", random_mlp(), OwnObjective(P, weighting=lambda t: t)
    save(path, net, objective=objective)
    with pytest.raises(ValueError, match=r"the objective, .*OwnObjective, in .* pass objective="):
        load(path)
    assert_same_field(load(path, objective=objective).field, objective.field(net))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.pt", {"process": P}, r"net.pt' must end in .safetensors: pass .*net.safetensors"),
        ("net.safetensors", {}, "pass objective=, or process="),
        ("net.safetensors", {"process": P, "objective": Denoising(P)}, "not both"),
        ("net.safetensors", {"process": P, "predicts": "nois"}, "'nois' is not one of"),
    ],
)
def test_bad_arguments_are_refused(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / name, random_mlp(), **options)
    assert not any(tmp_path.iterdir())
