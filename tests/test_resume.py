"""Runs that are stopped go on to the same bits; runs that are other runs are refused."""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import checkpoint, data, fit_score, objectives
from halfbridge.training.log import read


def test_a_run_killed_at_any_moment_ends_in_the_bits_of_one_never_interrupted(tmp_path):
    """kill -9 at steps and in the middle of writing, SIGINT and SIGTERM: weights, buffers, both averages, the optimiser, the
    log and the pictures; dropout, class dropout, warm-up, cosine and two micro-batches."""
    script = Path(__file__).with_name("killed_runs.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["statuses"] == [-signal.SIGKILL] * 14 + [75, 75, 0, 0], ran.stderr
    assert "Interrupted stopped by SIGINT after step" in ran.stderr
    assert "resume it to go on" in ran.stderr
    assert found["killed_at"] < 45
    assert found["steps"] == [45, 45]
    assert found["names"]
    assert found["tensors"] > 100
    assert found["different"] == []
    assert found["state"]
    assert found["log"]
    assert found["rows"] == 15
    assert found["pictures"] == [True, True]


def train(out=None, resume=False, hidden=8, x=None, process=None, seed_of_net=0, **changes):
    torch.manual_seed(seed_of_net)
    net = MLP(2, hidden=hidden, depth=1)
    x = data.moons(64, 0) if x is None else x
    options = {"steps": 8, "batch_size": 16, "log_every": 1, **changes}
    return fit_score(net, x, process or hb.VP(), out=out, resume=resume, **options)


def same(one, two):
    return torch.equal(one.losses, two.losses) and all(
        torch.equal(p, q) for p, q in zip(one.net.parameters(), two.net.parameters(), strict=True)
    )


def losses(out):
    return [row.loss for row in read(out / "log.csv")]


def test_a_finished_run_takes_more_steps_and_other_outputs_as_if_asked_for_them_at_first(tmp_path):
    out = tmp_path / "run"
    whole = train(steps=12)
    first = train(out, steps=5, save_every=2)
    assert (first.step, first.folder) == (5, out)
    more = train(out, True, steps=12, save_every=0, keep=3, seed_of_net=9)  # the starting weights are the run's
    assert same(more, whole)
    assert losses(out) == whole.losses.tolist()
    assert same(train(out, True, steps=12), whole)
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["steps"] == 12
    assert config["net"] == {"type": "MLP", **MLP(2, hidden=8, depth=1).config}
    with pytest.raises(ValueError, match=r"steps = 11, but the run in .* is at step 12"):
        train(out, True, steps=11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-2}, r"settings.lr = 0.01 but was 0.001"),
        ({"batch_size": 8}, "settings.batch_size = 8 but was 16"),
        ({"seed": 1}, "settings.seed = 1 but was 0"),
        ({"schedule": "cosine", "steps": 9}, "settings.schedule = 'cosine' but was 'constant'; pass"),
        ({"hidden": 16}, "net.hidden = 16 but was 8"),
        ({"process": hb.VP(beta_max=19.0)}, "process.beta_max = 19.0 but was 20.0"),
        ({"predicts": "data"}, "predicts = 'data' but was 'noise'"),
        ({"x": data.moons(64, 1)}, "examples.sha256"),
        ({"x": data.moons(63, 0)}, r"examples.shape = \[63, 2\] but was \[64, 2\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_not_gone_on_with(tmp_path, change, message):
    train(tmp_path, steps=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        train(tmp_path, True, **{"steps": 3, **change})
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_cosine_run_keeps_its_last_step(tmp_path):
    train(tmp_path, steps=2, schedule="cosine")
    with pytest.raises(ValueError, match=r"settings.steps = 3 but was 2"):
        train(tmp_path, True, steps=3, schedule="cosine")


def test_a_network_of_the_users_with_other_weights_is_refused_by_the_first_that_differs(tmp_path):
    class Mine(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = torch.nn.Linear(2, width)
            self.last = torch.nn.Linear(width, 2)

        def forward(self, x, t):
            return self.last(self.layer(x))

    def fit(width, resume):
        fit_score(Mine(width), data.moons(64, 0), hb.VP(), steps=2, batch_size=8, out=tmp_path, resume=resume)

    fit(3, False)
    fit(3, True)
    with pytest.raises(
        ValueError,
        match=r"of another architecture than net, a Mine: 'layer.weight' is float32 \(3, 2\) there and .*\(4, 2\)",
    ):
        fit(4, True)


def weighted(times, weight=1.0):
    return objectives.Denoising(hb.VP(), weighting=lambda t: torch.full_like(t, weight), times=times)


def test_beside_a_function_all_choices_of_an_objective_are_compared(tmp_path):
    def fit(resume, **changes):
        net, options = MLP(2, hidden=8), {"objective": weighted("uniform"), "steps": 2, "batch_size": 8, **changes}
        fit_score(net, data.moons(64, 0), out=tmp_path, resume=resume, **options)

    fit(False)
    fit(True, objective=weighted("uniform", 2.0))  # a function's name is all that is known of it
    with pytest.raises(ValueError, match=r"objective.times = 'half_log_snr' but was 'uniform'"):
        fit(True, objective=weighted("half_log_snr"))
    named = objectives.Denoising(hb.VP(), weighting=torch.ones_like)
    with pytest.raises(ValueError, match=r"objective.weighting.type = .*ones_like"):
        fit(True, objective=named)


def test_other_versions_are_warned_of_once_and_the_first_are_kept(tmp_path):
    whole, path = train(steps=9), tmp_path / "config.json"
    train(tmp_path, steps=3)
    config = json.loads(path.read_text())
    now = config["versions"]
    config["versions"] = {**now, "torch": "1.0"}
    path.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=rf"was written with torch 1.0 \(now {re.escape(torch.__version__)}\)"):
        train(tmp_path, True, steps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(train(tmp_path, True, steps=9), whole)
    config = json.loads(path.read_text())
    assert config["versions"]["torch"] == "1.0"
    assert config["resumed"] == [{"step": 3, "versions": now}]


def test_a_config_without_settings_is_told(tmp_path):
    train(tmp_path, steps=2)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "settings"})
    )
    with pytest.raises(ValueError, match=r"config.json is no run's config: it has settings = None; restore it"):
        train(tmp_path, True, steps=3)


def test_a_folder_is_begun_once(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="holds no run to resume; resume 'auto'"):
        train(out, True)
    whole = train(out, "auto", steps=3)
    with pytest.raises(FileExistsError, match="holds a run already; resume it"):
        train(out, steps=3)
    assert same(train(out, "auto", steps=3), whole)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").write_text("x")
    assert same(train(tmp_path / "new", steps=3), whole)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for resume in (False, True, "auto"):
        with pytest.raises(FileExistsError, match="is no run's folder"):
            train(tmp_path / "other", resume)
        with pytest.raises(FileExistsError, match="is no run's folder"):
            train(tmp_path / "other" / "thesis.tex", resume)
    with pytest.raises(ValueError, match="resume = True goes on with a run in a folder; pass its folder as out="):
        train(resume=True)


def test_a_run_whose_config_was_changed_is_not_gone_on_with(tmp_path):
    train(tmp_path, steps=2)
    path = tmp_path / "config.json"
    whole = path.read_text()
    for text, message in [
        ("{}", "config.json is no run's config: it has net = None; restore it"),
        (whole.replace("20.0", "19.0"), "process.beta_max = 19.0 but was 20.0; restore .*config.json"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            train(tmp_path, True, steps=3)
        assert path.read_text() == text


def test_a_first_step_that_cannot_be_made_leaves_no_folder(tmp_path):
    def fails(net, x0, noise):
        net(x0, noise.uniform())
        raise ValueError("a bad option")

    net, out = MLP(2, hidden=8, depth=1), tmp_path / "run"
    failing = type("Failing", (objectives.Denoising,), {"__call__": lambda self, *rest: fails(*rest)})(hb.VP())
    with pytest.raises(ValueError, match="a bad option"):
        fit_score(net, data.moons(64, 0), objective=failing, steps=2, batch_size=8, out=out)
    assert not out.exists()
    assert net.training


def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path):
    train(tmp_path, steps=4, save_every=2)
    newest = next((tmp_path / "checkpoints").glob("step-000000004.*.safetensors"))
    raw = bytearray(newest.read_bytes())
    raw[-1] ^= 1
    newest.write_bytes(raw)
    with pytest.raises(checkpoint.CheckpointError, match=r"step 4 .* is damaged.*SHA-256"):
        train(tmp_path, True, steps=5)


def test_lines_of_lost_steps_leave_the_log(tmp_path):
    whole = train(steps=6)
    train(tmp_path, steps=6, save_every=4, keep=9)
    for path in (tmp_path / "checkpoints").glob("step-000000006*"):
        path.unlink()
    with (tmp_path / "log.csv").open("a") as file:
        file.write("7,0.125,0.1")  # the process was killed in the middle of a line
    train(tmp_path, True, steps=6)
    rows = read(tmp_path / "log.csv")
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.loss for row in rows] == whole.losses.tolist()
    assert [row.seconds for row in rows] == sorted(row.seconds for row in rows)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 14:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        train(tmp_path, steps=8, save_every=2)
    monkeypatch.undo()
    kept = checkpoint.steps(tmp_path / "checkpoints")[-1]
    assert 0 <= kept < 8
    assert same(train(tmp_path, True, steps=8, save_every=2), train(steps=8))
