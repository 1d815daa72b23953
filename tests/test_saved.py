"""Networks saved and loaded: the same field to the last bit, or an error that says what does not fit; no code is ever run."""

import errno
import json
import os
import pickle

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import EMA, MLP, as_field
from halfbridge.nets.labels import scaled
from halfbridge.nets.precondition import Precondition
from halfbridge.nets.unet import UNet
from halfbridge.training import checkpoint, durable, jsontext, netfile, recipe, states
from halfbridge.training.losses import LearnedSchedule
from halfbridge.training.objectives import Denoising, make
from halfbridge.training.saved import load, save

P = hb.VP(0.2, 15.0)
X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def random_mlp(seed=0, **options):
    return randomise(MLP(2, **{"hidden": 16, "depth": 1, **options}), seed)


def randomise(net, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return net.eval()


def assert_same_field(a, b, x=X, t=0.4):
    assert a.process == b.process
    assert a.predicts == b.predicts
    with torch.no_grad():
        assert torch.equal(a.noise(t, x), b.noise(t, x))


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
    save(tmp_path / "net.safetensors", net, process=P, predicts="velocity", step=12, record={"note": [1, 2]})
    state = torch.random.get_rng_state()
    saved = load(tmp_path / "net.safetensors")
    assert torch.equal(state, torch.random.get_rng_state())
    assert_same_field(saved.field, as_field(net, P, "velocity"), x)
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


def with_metadata(data, change):
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    return len(new).to_bytes(8, "little") + new + data[8 + n :]


def swap_names(header):
    header["net.last.bias"], header["net.first.bias"] = header["net.first.bias"], header["net.last.bias"]


def edit_record(header):
    meta = header["__metadata__"]
    meta["halfbridge"] = meta["halfbridge"].replace('"beta_max":15.0', '"beta_max":16.0')


DAMAGE = {
    "truncated": (lambda d: d[:-1], "not safetensors"),
    "cut in the header": (lambda d: d[:20], "not safetensors"),
    "empty": (lambda d: b"", "not safetensors"),
    "flipped": (lambda d: d[:-5] + bytes([d[-5] ^ 1]) + d[-4:], "SHA-256"),
    "names swapped": (lambda d: with_metadata(d, swap_names), "SHA-256"),
    "record edited": (lambda d: with_metadata(d, edit_record), "SHA-256"),
    "no record": (lambda d: with_metadata(d, lambda h: h.pop("__metadata__")), "without halfbridge's record"),
    "pickle": (lambda d: pickle.dumps({"w": 1}) * 20, "not safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_told(name, tmp_path):
    path = tmp_path / "net.safetensors"
    save(path, MLP(2, hidden=2, depth=1), process=P)
    damage, message = DAMAGE[name]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


class Ran:
    happened = False

    def __reduce__(self):
        return (setattr, (Ran, "happened", True))


def test_nothing_that_is_read_runs_code(tmp_path):
    """Pickles are bytes like others, and a type names a place in a table, not something to import."""
    path = tmp_path / "net.safetensors"
    path.write_bytes(pickle.dumps(Ran()))
    with pytest.raises(ValueError, match="not safetensors"):
        load(path)
    assert not Ran.happened
    weights = {f"net.{name}": w for name, w in MLP(2, hidden=8, depth=1).state_dict().items()}
    known = {**recipe.describe(MLP(2, hidden=8, depth=1), objective=Denoising(P)), "step": 0, "record": {}}
    for key, evil in [
        ("net", {"type": "os.system", "command": "true"}),
        ("process", {"type": "subprocess.Popen", "args": ["true"]}),
        ("objective", {"type": "builtins.eval", "source": "1"}),
        ("labels", {"type": "os.getpid"}),
    ]:
        netfile.write(path, weights, {**known, key: evil, **({"objective": None} if key == "labels" else {})})
        with pytest.raises(ValueError, match=f"pass {key if key != 'labels' else 'objective'}="):
            load(path)


def test_no_space_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save(path, random_mlp(1), process=P)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match=rf"net.safetensors in {tmp_path}: No space left.*needs \d+ bytes"):
        save(path, random_mlp(2), process=P)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def run_folder(folder, net, objective, decays):
    """A run after 3 steps and its averages, laid out as the trainer does."""
    model = torch.nn.ModuleDict({"net": net})
    averages = [EMA(model, decay) for decay in (decays if isinstance(decays, list) else [decays])]
    for k, average in enumerate(averages):
        randomise(average.model, 10 + k)
    state = {"model": model.state_dict(), "averages": [average.state_dict() for average in averages]}
    tensors, record = states.flatten(state)
    config = {
        **recipe.describe(net, objective=objective),
        "data": {"name": "moons", "n": 100},
        "settings": {"ema_decay": decays},
    }
    checkpoint.write(folder / "checkpoints", {"model/net.first.bias": torch.zeros(1)}, {}, step=2)
    checkpoint.write(folder / "checkpoints", tensors, {"state": record}, step=3)
    durable.write_file(folder / "config.json", jsontext.dumps(config, indent=2).encode())
    return [average.model["net"] for average in averages]


@pytest.mark.parametrize("decays", [0.99, [0.9, 0.999]])
def test_a_run_gives_its_first_average_another_or_the_weights_themselves(decays, tmp_path):
    net = random_mlp()
    averaged = run_folder(tmp_path, net, Denoising(P, "velocity"), decays)
    decays = decays if isinstance(decays, list) else [decays]
    saved = load(tmp_path)
    assert (saved.step, saved.average) == (3, decays[0])
    assert saved.data == {"name": "moons", "n": 100}
    assert_same_field(saved.field, as_field(averaged[0], P, "velocity"))
    for decay, one in zip(decays, averaged, strict=True):
        assert_same_field(load(tmp_path, average=decay).field, as_field(one, P, "velocity"))
    assert_same_field(load(tmp_path, average=0.0).field, as_field(net, P, "velocity"))
    assert_same_field(load(tmp_path, net=random_mlp(5)).field, as_field(averaged[0], P, "velocity"))
    with pytest.raises(ValueError, match=rf"average = 0.5 is none of the run's: {decays[0]}"):
        load(tmp_path, average=0.5)


def test_a_damaged_run_is_told(tmp_path):
    run_folder(tmp_path, random_mlp(), Denoising(P), 0.9)
    with pytest.raises(FileNotFoundError, match=f"pass {tmp_path}$"):
        load(tmp_path / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"average = 0.9"):
        load(tmp_path / "config.json", average=0.9)
    (tmp_path / "checkpoints" / "step-000000003.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match=r"step 3.*is damaged.*step=2"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"net": 3}')
    with pytest.raises(ValueError, match="no run's config: it has net = 3"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a config"):
        load(tmp_path)
