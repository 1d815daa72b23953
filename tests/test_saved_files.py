"""Saved files and run folders that are damaged are told, and nothing that is read runs code."""

import errno
import json
import os
import pickle

import pytest
import torch
from random_nets import P, assert_same_field, random_mlp, randomise

from halfbridge.nets import EMA, MLP, as_field
from halfbridge.training import checkpoint, durable, jsontext, netfile, recipe, states
from halfbridge.training.losses import LearnedSchedule
from halfbridge.training.objectives import Denoising, make
from halfbridge.training.saved import load, save


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
    if isinstance(objective, torch.nn.Module):
        model["objective"] = objective
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
    checkpoint.write(folder / "checkpoints", tensors, {"config": config, "state": record}, step=3)
    durable.write_file(folder / "config.json", jsontext.dumps(config, indent=2).encode())
    return [average.model for average in averages]


@pytest.mark.parametrize("decays", [0.99, [0.9, 0.999]])
def test_a_run_gives_its_first_average_another_or_the_weights_themselves(decays, tmp_path):
    net = random_mlp()
    averaged = [model["net"] for model in run_folder(tmp_path, net, Denoising(P, "velocity"), decays)]
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


def test_a_run_that_learns_its_process_gives_the_average_of_that_too(tmp_path):
    objective, x = make("vdm", schedule=LearnedSchedule(hidden=4)), torch.ones(3, 2)
    (averaged,) = run_folder(tmp_path, random_mlp(), objective, 0.9)
    field = averaged["objective"].field(averaged["net"])
    saved = load(tmp_path)
    assert saved.process.half_log_snr(0.5) == field.process.half_log_snr(0.5) != objective.process.half_log_snr(0.5)
    with torch.no_grad():
        assert torch.equal(saved.field.noise(0.5, x), field.noise(0.5, x))


def test_a_damaged_run_is_told(tmp_path):
    run_folder(tmp_path, random_mlp(), Denoising(P), 0.9)
    with pytest.raises(FileNotFoundError, match=f"pass {tmp_path}$"):
        load(tmp_path / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"average = 0.9"):
        load(tmp_path / "config.json", average=0.9)
    (tmp_path / "config.json").write_text('{"net": 3}')
    with pytest.raises(ValueError, match="no run's config: it has net = 3"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a config"):
        load(tmp_path)
    (tmp_path / "checkpoints" / "step-000000003.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match=r"step 3.*is damaged.*step=2"):
        load(tmp_path)


def test_a_config_that_was_changed_does_not_change_the_field_in_silence(tmp_path):
    run_folder(tmp_path, random_mlp(), Denoising(P), 0.9)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for change, message in [
        (
            {"process": {**whole["process"], "beta_max": 5.0}},
            r"process.beta_max = 5.0 but was 15.0; restore .*config.json",
        ),
        ({"predicts": "data"}, "of step 3 was trained with: it has another configuration: predicts = 'data' but was"),
        ({"settings": {"ema_decay": 0.5}}, "settings.ema_decay = 0.5 but was 0.9"),
        ({"settings": {"lrr": 0.5}}, "no run's config: there is no setting 'lrr'"),
    ]:
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    path.write_text(json.dumps({**whole, "data": 3, "settings": {**whole["settings"], "keep": 7}}))
    assert load(tmp_path).data == {"name": "moons", "n": 100}  # the checkpoint's
