"""`accelerate launch -m halfbridge ...`: several processes are one command."""

import os
import socket
import subprocess
import sys

import numpy as np
import torch

from halfbridge.cli import main
from halfbridge.commands import train_sgm
from halfbridge.training import saved
from halfbridge.training.workers import FirstFailed

TRAIN = ["train", "sgm", "--data", "moons(n=20)", "--net", "mlp(hidden=8, depth=1)", "--batch-size", "8", "--steps", "4",
         "--dtype", "float64"]  # fmt: skip


def launch(count, *arguments):
    """The words of `count` processes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    options = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", str(count), "--main_process_port",
               str(port), "-m", "halfbridge", *map(str, arguments)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_several_processes_train_and_sample_what_one_does(tmp_path):
    out = launch(2, *TRAIN, "--out", tmp_path / "two")
    assert out.count("parameters") == out.count("step 4: loss ") == 1  # one of them speaks
    assert main([*TRAIN, "--quiet", "--out", str(tmp_path / "one")]) == 0
    one, two = (saved.load(tmp_path / name).net.state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-12, atol=1e-14)

    sample = [
        "sample",
        str(tmp_path / "two"),
        "-n",
        "11",
        "--batch",
        "4",
        "--solver",
        "Ancestral",
        "--steps",
        "3",
        "--out",
    ]
    for count in (2, 3):
        assert launch(count, *sample, tmp_path / f"{count}.npy").count("wrote ") == 1
    assert main([*sample, str(tmp_path / "1.npy")]) == 0
    of_one = np.load(tmp_path / "1.npy")
    for count in (2, 3):
        np.testing.assert_array_equal(np.load(tmp_path / f"{count}.npy"), of_one)


def test_a_process_is_silent_where_the_first_says_what_went_wrong(capsys, tmp_path, monkeypatch):
    def failed(*arguments, **options):
        raise FirstFailed("process 0 failed; its message says why")

    monkeypatch.setattr(train_sgm, "fit_score", failed)
    assert main([*TRAIN, "--quiet", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr() == ("", "")


def test_an_error_says_in_which_process_it_was(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main([*TRAIN, "--data", "mons", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("halfbridge: error in process 1: there is no data 'mons'")


def test_likelihood_is_of_one_process(capsys, monkeypatch):
    class Two:
        count = 2

    monkeypatch.setattr("halfbridge.commands.likelihood.current", Two)
    assert main(["likelihood", "runs/x"]) == 2
    assert "likelihood runs in one process; start it without accelerate launch" in capsys.readouterr().err
