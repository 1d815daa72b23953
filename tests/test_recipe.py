"""What a run says of itself: comparing it tells every difference and no other, and labels come back as they were."""

import json
import math
import platform

import numpy as np
import pytest
import torch

import halfbridge as hb
from halfbridge.nets.labels import scaled, steps
from halfbridge.training import durable, jsontext, labels, recipe
from halfbridge.training.objectives import Denoising

OLD = {"net": {"type": "MLP", "shape": [2], "hidden": 64}, "settings": {"lr": 1e-3, "betas": [0.9, 0.999]}, "seed": 0}


def changed(**changes):
    new = json.loads(json.dumps(OLD))
    for path, value in changes.items():
        *tables, key = path.split("__")
        table = new
        for name in tables:
            table = table[name]
        table[key] = value
    return new


def test_differences_are_named_with_both_values_and_nothing_else_is():
    new = changed(settings__lr=2e-3, net__hidden=32, data={"name": "moons"})
    del new["seed"]
    assert recipe.differences(OLD, new) == {
        "net.hidden": (64, 32),
        "settings.lr": (1e-3, 2e-3),
        "seed": (0, "(absent)"),
        "data": ("(absent)", {"name": "moons"}),
    }


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf, (0.9, (1,)), None])
def test_equal_configs_have_no_differences_though_one_went_through_json(value):
    config = {"a": {"b": value}}
    assert recipe.differences(config, jsontext.loads(jsontext.dumps(config))) == {}
    assert recipe.differences(config, {"a": {"b": 3}}) != {}
    recipe.check_same(config, config, "the run")


def test_another_configuration_is_refused_by_key_and_both_values():
    with pytest.raises(
        ValueError, match=r"the run in x has another.*net.hidden = 32 but was 64; settings.lr = 0.1 but was 0.001"
    ):
        recipe.check_same(OLD, changed(settings__lr=0.1, net__hidden=32), "the run in x")
    many = {f"k{i}": i for i in range(9)}
    with pytest.raises(ValueError, match=r"k3 = \(absent\) but was 3 and 5 more"):
        recipe.check_same(many, {}, "the run")


def test_versions_are_those_of_this_process_and_a_change_is_told_by_name():
    now = recipe.versions()
    assert now["halfbridge"] == hb.__version__
    assert (now["torch"], now["numpy"]) == (torch.__version__, np.__version__)
    assert now["python"] == platform.python_version()
    assert recipe.version_changes(now) is None
    told = recipe.version_changes({**now, "torch": "1.2.3"})
    assert f"torch 1.2.3 (now {torch.__version__})" in told
    assert "numpy" not in told


P = hb.VP()
LABELS = {
    "default": None,
    "log-SNR": P.half_log_snr,
    "log-SNR of another": hb.VE().half_log_snr,
    "scaled": scaled(999.0),
    "steps": steps(P, 1000),
    "steps of another": steps(hb.CosineVP(), 10),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_come_back_and_give_the_same_numbers(name):
    known = LABELS[name]
    written = json.loads(json.dumps(labels.describe(known, P), allow_nan=False))
    built = labels.build(written, P)
    assert (built is None) == (known is None)
    assert known is None or torch.equal(torch.as_tensor(built(0.37)), torch.as_tensor(known(0.37)))


@pytest.mark.parametrize("known", [lambda t: t, P.nu, torch.sqrt])
def test_labels_that_are_functions_are_refused(known):
    with pytest.raises(ValueError, match=r"labels = .* cannot be written down"):
        labels.describe(known, P)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"type": "scale"}, "type = 'scale' is unknown; did you mean 'scaled'"),
        ({"type": "steps"}, "'steps' lacks 'n'"),
        ({"type": "scaled", "factor": 2.0, "n": 1}, "'scaled' has no 'n'; there are 'factor'"),
        ({}, "type = None is unknown; there are 'half_log_snr', 'scaled', 'steps'"),
    ],
)
def test_labels_of_no_known_type_are_refused(written, message):
    with pytest.raises(ValueError, match=message):
        labels.build(written, P)


def test_labels_of_a_process_need_one():
    with pytest.raises(ValueError, match="'half_log_snr' needs a process"):
        labels.build({"type": "half_log_snr"}, None)


def test_what_cannot_be_written_down_leaves_its_type():
    process = hb.LinearProcess(alpha=lambda t: 1.0 - t, sigma=lambda t: t, T=0.99, t_min=1e-3)
    told = recipe.describe(torch.nn.Linear(2, 2), process=process, labels=lambda t: t, predicts="data")
    assert told["net"] == {"type": "torch.nn.modules.linear.Linear"}
    assert told["process"]["type"].endswith("LinearProcess")
    assert told["labels"]["type"].endswith("<lambda>")
    assert (told["objective"], told["predicts"]) == (None, "data")
    told = recipe.describe(torch.nn.Linear(2, 2), objective=Denoising(P, "velocity", labels=P.half_log_snr))
    assert (told["predicts"], told["labels"]) == ("velocity", {"type": "half_log_snr"})
    again = recipe.describe(torch.nn.Linear(2, 2), objective=Denoising(P, labels=hb.VP().half_log_snr))
    assert again["labels"] == {"type": "half_log_snr"}
    assert told["process"] == {"type": "VP", "beta_min": 0.1, "beta_max": 20.0}
    jsontext.dumps(told)


def test_a_config_that_is_not_one_is_told(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError):
        recipe.read(path)
    for text, message in [(b"{\n\n]", "line 3"), (b"\xff", "not a config"), (b"[1]", "holds a list"), (b"NaN", "NaN")]:
        path.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            recipe.read(path)
    durable.write_file(path, jsontext.dumps({"a": math.inf, "b": 0.1}, indent=2).encode())
    assert recipe.read(path) == {"a": math.inf, "b": 0.1}


@pytest.mark.parametrize("bits", ['"7ff"', "7", '"zzzzzzzzzzzzzzzz"', "null"])
def test_bits_that_are_no_number_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits|hex"):
        jsontext.loads(f'{{"$float64": {bits}}}')
