"""`halfbridge train sgm`: what the command trains is what the library trains, and what it refuses."""

import re
import signal

import numpy as np
import pytest
import torch
from command import refused, run
from PIL import Image

import halfbridge as hb
from halfbridge import names
from halfbridge.cli import main
from halfbridge.training import checkpoint, data, fit_score, losses, objectives, saved
from halfbridge.training import log as training_log
from halfbridge.training.log import Log

SMALL = ["--net", "mlp(hidden=8, depth=1)", "--batch-size", "8", "--steps", "3"]
MOONS = ["train", "sgm", "--data", "moons(n=20)", *SMALL]
UNET = "unet(width=8, multipliers=[1], blocks=1)"


def weights(folder, average=None):
    return saved.load(folder, average=average).net.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_command_trains_what_fit_score_does(capsys, tmp_path):
    told = [
        "--seed",
        "5",
        "--lr",
        "0.01",
        "--ema-decay",
        "0.5,0.9",
        "--process",
        "VP(beta_max=10)",
        "--predicts",
        "data",
    ]
    status, out, err = run(capsys, *MOONS, *told, "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    torch.manual_seed(5)
    net = hb.nets.MLP(2, hidden=8, depth=1)
    fit = fit_score(net, data.load("moons", n=20), hb.VP(beta_max=10), predicts="data", batch_size=8, steps=3, seed=5, lr=0.01,
                    ema_decay=(0.5, 0.9))  # fmt: skip
    assert_same(weights(tmp_path / "run"), fit.net.state_dict())
    assert_same(weights(tmp_path / "run", 0.9), fit.nets[0.9].state_dict())
    rows = training_log.read(tmp_path / "run" / "log.csv")
    assert rows[-1].loss == fit.losses[-1].item()
    assert f"moons: 20 examples of 2, 2 classes\nnetwork    mlp(hidden=8, depth=1): {net.parameter_count}" in out
    assert f"step 3: loss {fit.losses.mean():.4g} (of the last 3 steps)" in out
    assert f"halfbridge sample {tmp_path / 'run'} --solver dpm3 --steps 10 -n 64 --out samples.png" in out


def test_a_class_conditional_unet_with_everything_told(capsys, tmp_path):
    told = ["--data", "digits(n=30)", "--holdout", "0.5", "--net", UNET, "--classes", "--class-dropout", "0.5", "--dtype",
            "float64", "--precondition", "edm(sigma_data=0.4)", "--objective", "denoising(weighting=min_snr(gamma=3))",
            "--dequantise", "--batch-size", "4", "--steps", "2", "--quiet"]  # fmt: skip
    assert run(capsys, "train", "sgm", *told, "--out", tmp_path / "run") == (0, "", "")
    torch.manual_seed(0)
    unet = hb.nets.UNet((1, 8, 8), width=8, multipliers=[1], blocks=1, classes=10)
    net = hb.nets.Precondition(unet, "edm", sigma_data=0.4, process=hb.VP()).double()
    examples = data.load("digits", n=30, holdout=0.5, dequantise=True)
    objective = objectives.make("denoising", hb.VP(), predicts="data", weighting={"type": "min_snr", "gamma": 3})
    fit = fit_score(net, examples, objective=objective, batch_size=4, steps=2, class_dropout=0.5)
    found = saved.load(tmp_path / "run")
    assert_same(found.net.state_dict(), fit.net.state_dict())
    assert found.classes == 10
    assert found.data == examples.config


def test_a_config_file_trains_what_the_flags_do(capsys, tmp_path):
    assert run(capsys, *MOONS, "--quiet", "--out", tmp_path / "flags")[0] == 0
    assert run(capsys, *MOONS, "--save-config", tmp_path / "run.toml")[0] == 0
    told = ["train", "sgm", "--config", tmp_path / "run.toml", "--quiet", "--out", tmp_path / "file"]
    assert run(capsys, *told)[0] == 0
    assert (tmp_path / "file/config.json").read_bytes() == (tmp_path / "flags/config.json").read_bytes()
    assert_same(weights(tmp_path / "file", 0.0), weights(tmp_path / "flags", 0.0))


def test_a_run_goes_on_where_it_is_asked_to(capsys, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(capsys, *MOONS, "--steps", "6", "--out", whole)[0] == 0
    assert run(capsys, *MOONS, "--resume", "auto", "--out", parts)[0] == 0
    assert "holds a run already; resume it, or pass another folder" in refused_after_words(
        capsys, *MOONS, "--out", parts
    )
    status, out, _ = run(capsys, *MOONS, "--steps", "6", "--resume", "--out", parts)
    assert status == 0
    assert re.search(r"step 6: .*\(of the last 6 steps\), 3 steps in", out)
    assert_same(weights(parts), weights(whole))
    status, out, _ = run(capsys, *MOONS, "--steps", "6", "--resume", "auto", "--out", parts)
    assert (status, "step 6: nothing was left to do" in out) == (0, True)


def refused_after_words(capsys, *arguments):
    """As `refused`, of a command that has said what it was about to do."""
    return refused(capsys, *arguments, "--quiet")


@pytest.mark.parametrize(("objective", "process", "predicts"), [
    ("denoising", hb.VP(), "noise"), ("edm", hb.EDM(), "data"), ("ncsn(levels=[2, 1])", hb.EDM(1.0, 2.0), "score"),
    ("ddpm", names.names.process("ddpm"), "noise"),
])  # fmt: skip
def test_the_process_is_the_objectives_own_unless_told(objective, process, predicts):
    made = names.objective(objective, "auto")
    assert (made.process, made.predicts) == (process, predicts)
    told = names.objective("edm", "VP(beta_max=3)", predicts="noise")
    assert (told.process, told.predicts) == (hb.VP(beta_max=3), "noise")


def test_a_learned_schedule_needs_no_process_and_starts_by_the_seed(capsys, tmp_path):
    told = [*MOONS, "--objective", "vdm(schedule=learned(hidden=8))", "--quiet"]
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        assert run(capsys, *told, "--out", tmp_path / name)[0] == 0
    one, other = (checkpoint.read(tmp_path / name / "checkpoints").tensors for name in ("a", "b"))
    assert_same(one, other)
    assert any(".objective." in name or name.startswith("model/objective") for name in one)


@pytest.mark.parametrize(("shape", "kind"), [((1, 8, 8), hb.nets.UNet), ((2,), hb.nets.MLP), ((3, 4), hb.nets.MLP)])
def test_the_network_follows_the_data_unless_told(shape, kind):
    arguments = "auto(width=8, multipliers=[1], blocks=1)" if kind is hb.nets.UNet else "auto(hidden=8)"
    net = names.net(arguments, shape, hb.VP(), classes=3)
    assert type(net) is kind
    assert (tuple(net.shape), net.classes) == (shape, 3)


def test_a_network_of_the_log_snr_is_given_the_runs_process():
    net = names.net("mlp(hidden=8, time=log_snr)", (2,), hb.VP(beta_max=3))
    assert net.time.process == hb.VP(beta_max=3)


def test_a_path_with_parentheses_is_a_path(tmp_path):
    file = tmp_path / "a (1).npy"
    np.save(file, np.eye(4))
    assert torch.equal(names.data(str(file)).examples, torch.eye(4))
    assert len(names.data(f"{file}(n=2)")) == 2


def test_names_are_found_without_regard_to_case(capsys, tmp_path):
    words = ["--net", "MLP(hidden=8)", "--objective", "Vdm", "--predicts", "Data", "--precondition", "EDM"]
    told = ["train", "sgm", "--data", "Moons(n=20)", "--process", "vp", *words, "--steps", "1", "--quiet"]
    assert run(capsys, *told, "--out", tmp_path / "run") == (0, "", "")
    found = saved.load(tmp_path / "run")
    assert (type(found.net).__name__, found.predicts, type(found.objective).__name__) == ("Precondition", "data", "VDM")


def test_a_schedule_to_learn_and_levels_are_written_short():
    learned = names.objective("vdm(schedule=learned(hidden=8, gamma_1=4), levels=17)", "auto")
    assert learned.schedule.config == {**learned.schedule.config, "hidden": 8, "gamma_1": 4}
    assert learned.levels == losses.Discretised(levels=17)
    assert names.objective("vdm(schedule=learned)", "auto").schedule is not None
    assert names.objective("ncsn(levels=[2, 1])", "auto").levels == (2.0, 1.0)


@pytest.mark.parametrize("objective", ["hybrid", "ddpm_elbo(learned=True)"])
def test_an_objective_that_learns_variances_has_a_network_that_returns_them(capsys, tmp_path, objective):
    told = [*MOONS, "--objective", objective, "--quiet", "--out", tmp_path / "run"]
    assert "returns data alone" in refused(capsys, *told, "--precondition", "edm")
    assert run(capsys, *told) == (0, "", "")
    field = saved.load(tmp_path / "run").field
    assert field.noise(3.0, torch.zeros(3, 2)).shape == (3, 2)


def write_images(folder, *sizes):
    folder.mkdir()
    for k, size in enumerate(sizes):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, size).astype(np.uint8)).save(folder / f"{k}.png")


def test_images_are_read_as_told(capsys, tmp_path):
    write_images(tmp_path / "photos", (9, 12), (12, 12), (10, 10))
    told = ["train", "sgm", "--data", tmp_path / "photos", "--size", "8", "--gray", "--net", UNET, "--steps", "1"]
    status, out, _ = run(capsys, *told, "--batch-size", "2", "--out", tmp_path / "run")
    assert (status, "photos: 3 examples of 1 x 8 x 8, 256 grey levels" in out) == (0, True)
    assert saved.load(tmp_path / "run").net.shape == (1, 8, 8)


def test_images_of_mixed_sizes_are_refused_with_the_remedy(capsys, tmp_path):
    write_images(tmp_path / "photos", (8, 8), (8, 9))
    message = refused(capsys, "train", "sgm", "--data", tmp_path / "photos", "--out", tmp_path / "run", "--quiet")
    assert "size" in message
    assert "8" in message


def test_folders_that_are_taken_are_refused_and_left_alone(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "exists and is no run's folder" in refused(capsys, *MOONS, "--out", tmp_path / "mine", "--quiet")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert "--out is missing" in refused(capsys, *MOONS)
    assert "--data is missing" in refused(capsys, "train", "sgm", "--out", tmp_path / "run")


def test_a_run_of_another_network_or_damaged_is_not_gone_on_from(capsys, tmp_path):
    folder = tmp_path / "run"
    assert run(capsys, *MOONS, "--quiet", "--out", folder)[0] == 0
    again = ["--quiet", "--out", folder, "--resume", "--steps", "6"]
    assert "hidden" in refused(capsys, *MOONS, "--net", "mlp(hidden=16, depth=1)", *again)
    assert "lr" in refused(capsys, *MOONS, "--lr", "0.5", *again)
    (file,) = (folder / "checkpoints").glob("step-000000003.*.safetensors")
    whole = bytearray(file.read_bytes())
    file.write_bytes(whole[:-5])
    assert "damaged" in refused(capsys, *MOONS, *again) or "truncated" in refused(capsys, *MOONS, *again)
    whole[-1] ^= 1
    file.write_bytes(whole)
    assert "SHA-256" in refused(capsys, *MOONS, *again)


def test_an_interrupted_run_is_saved_and_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    kept = Log.row

    def row(log, found):
        signal.raise_signal(signal.SIGINT)
        kept(log, found)

    monkeypatch.setattr(Log, "row", row)
    status, _, err = run(capsys, *MOONS, "--log-every", "1", "--out", tmp_path / "run")
    assert status == 130
    line = err.splitlines()[-1]
    assert line.startswith("halfbridge: error: stopped by SIGINT after step 1 of 3")
    assert "resume it to go on" in line
    assert checkpoint.steps(tmp_path / "run/checkpoints")[-1] == 1
    monkeypatch.undo()
    assert main([*MOONS, "--out", str(tmp_path / "run"), "--resume"]) == 0
