"""`halfbridge train bridge`: what the command trains is what the library trains, what it says, and what it refuses."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from command import bridge, refused, run, train

import halfbridge as hb
from halfbridge import bridge_names, names
from halfbridge.training import checkpoint, data, load
from halfbridge.training.bridge import (
    Normal,
    ReferenceChain,
    StopRule,
    fit_bridge,
    gammas,
    load_bridge,
)
from halfbridge.training.bridge.half_trainer import HalfBridgeTrainer
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import NotFinite

NET = "mlp(hidden=8, depth=1)"
SMALL = ["--net", NET, "--batch-size", "8", "--steps", "2", "--steps-of-chain", "3", "--iterations", "1", "--cache-paths", "8",
         "--monitor-paths", "16", "--no-plots"]  # fmt: skip
MOONS = ["--start", "moons(n=20)", "--end", "normal(std=1.5)", *SMALL]
COMMAND = ["train", "bridge", *MOONS]


@pytest.fixture(scope="module")
def sgm(tmp_path_factory):
    return train(
        tmp_path_factory.mktemp("sgm") / "run",
        "--data",
        "moons(n=20)",
        "--process",
        "ou(T=2)",
        "--net",
        NET,
        "--steps",
        "2",
    )


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return bridge(tmp_path_factory.mktemp("moons") / "run", *MOONS)


def weights(folder):
    found = checkpoint.read(folder / "checkpoints")
    return found.step, {name: value.numpy().tobytes() for name, value in found.tensors.items()}


def config(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_command_trains_what_fit_bridge_does(capsys, tmp_path):
    told = ["--process", "ou(theta=0.7, T=2)", "--gammas", "symmetric(least=1, most=3)", "--seed", "5", "--lr", "0.01",
            "--variance", "matched", "--iterations", "2"]  # fmt: skip
    status, out, err = run(capsys, *COMMAND, *told, "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    torch.manual_seed(5)
    nets = [hb.nets.MLP(2, hidden=8, depth=1) for _ in range(2)]
    chain = ReferenceChain.spaced(hb.OU(0.7, T=2.0), gammas.symmetric(3, 1, 3))
    fit = fit_bridge(*nets, data.load("moons", n=20), Normal((2,), 1.5), chain, iterations=2, variance="matched", cache_paths=8,
                     monitor_paths=16, steps=2, batch_size=8, seed=5, lr=0.01, out=tmp_path / "ours")  # fmt: skip
    assert weights(tmp_path / "run")[1].keys() == weights(tmp_path / "ours")[1].keys()
    assert weights(tmp_path / "run") == weights(tmp_path / "ours")
    assert config(tmp_path / "run") == config(tmp_path / "ours")
    assert "start      moons: 20 examples of 2\nend        N(0, 1.5^2) of 2\nreference  OU(theta=0.7" in out
    lines = [re.split(r"[ |]+", line) for line in out.splitlines() if re.match(r"\d (back|for)ward ", line)]
    with open(tmp_path / "run" / "monitors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [line[:2] for line in lines] == [[row["iterate"], row["direction"]] for row in rows]
    assert len(lines) == 4
    for line, row in zip(lines, rows, strict=True):
        assert [float(line[i]) for i in (2, 3)] == [
            float(f"{float(row[name]):.4g}") for name in ("loss", "start_energy_distance")
        ]
    assert f"{fit.floors['end_energy_distance']:.4g}" in out
    assert "stopped after half-bridge 4: all iterations are done" in out
    assert f"halfbridge sample {tmp_path / 'run'} --to start" in out


class Called(Exception):
    pass


def test_every_option_reaches_the_library(monkeypatch, capsys, tmp_path):
    told = {"method": "dsbm", "iterations": 3, "coupling": "sinkhorn", "coupling_size": 12, "target": "increment",
            "variance": "matched", "form": "scalar", "chunk": 33, "weighting": "plain", "cache_paths": 64, "refresh": 5, "cache": "disk",
            "cache_limit": 10**9, "cache_folder": str(tmp_path), "covariance_paths": 99, "monitor_paths": 77, "out": str(tmp_path / "x"),
            "plots": False, "resume": "auto", "progress": False}  # fmt: skip
    seen = {}

    def fit(*positional, **options):
        seen.update(options, positional=positional)
        raise Called

    monkeypatch.setattr("halfbridge.commands.train_bridge.fit_bridge", fit)
    flags = []
    for name, value in told.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag.replace("--", "--no-")] if value is False else [flag, str(value)]
    more = [
        "--stop-kl",
        "0.1",
        "--stop-error",
        "0.3",
        "--stop-patience",
        "4",
        "--steps",
        "7",
        "--ema-decay",
        "0.5,0.9",
        "--dtype",
        "float64",
    ]
    more += [
        "--transitions",
        "euler",
        "--times",
        "0,0.2,1",
        "--start",
        "8gaussians(n=30)",
        "--end",
        "moons(n=20)",
        "--quiet",
    ]
    with pytest.raises(Called):
        run(capsys, "train", "bridge", *flags, *more, "--net", NET, "--process", "brownian(g=2)")
    forward, backward, start, end, reference = seen.pop("positional")
    assert {name: seen[name] for name in told} == told
    assert (seen["stop"], seen["first"]) == (StopRule(kl=0.1, error=0.3, patience=4), None)
    assert seen["settings"] == Settings(steps=7, ema_decay=(0.5, 0.9))
    assert reference == ReferenceChain(hb.Brownian(2.0), [0.0, 0.2, 1.0], "euler")
    assert (len(start), len(end), start.examples.dtype) == (30, 20, torch.float64)
    assert next(forward.parameters()).dtype == torch.float64
    assert not torch.equal(*(next(net.parameters()) for net in (forward, backward)))


def test_a_config_file_trains_what_the_flags_do(capsys, tmp_path, moons):
    assert run(capsys, *COMMAND, "--save-config", tmp_path / "run.toml")[0] == 0
    file = ["train", "bridge", "--config", tmp_path / "run.toml", "--quiet", "--out", tmp_path / "file"]
    assert run(capsys, *file)[0] == 0
    assert (tmp_path / "file/config.json").read_bytes() == (Path(moons) / "config.json").read_bytes()
    assert weights(tmp_path / "file")[1].keys() == weights(Path(moons))[1].keys()
    assert weights(tmp_path / "file") == weights(Path(moons))


@pytest.mark.parametrize(
    ("told", "chain"),
    [
        (("brownian", 4), ReferenceChain(hb.Brownian(), 4)),
        (("VP(beta_max=3)", 4, None, "euler"), ReferenceChain(hb.VP(beta_max=3), 4, "euler")),
        (("ou", 4, "geometric(1, 8)"), ReferenceChain.spaced(hb.OU(), gammas.geometric(4, 1, 8))),
        (("ou", 4, "constant"), ReferenceChain.spaced(hb.OU(), gammas.constant(4))),
        (("dsb", 4, "constant(gamma=0.1)"), ReferenceChain.dsb([0.1] * 4)),
        (("DSB(rate=2)", 4, "symmetric(least=0.1, most=0.2)"), ReferenceChain.dsb(gammas.symmetric(4, 0.1, 0.2), 2)),
        (("brownian(T=2)", 9, None, None, (0.0, 0.5, 2.0)), ReferenceChain(hb.Brownian(T=2.0), [0.0, 0.5, 2.0])),
    ],
)
def test_a_reference_is_what_its_text_says(told, chain):
    made = bridge_names.reference(*told)
    assert (made, made.gains, made.gammas) == (chain, chain.gains, chain.gammas)


def test_ends_are_data_or_normal_laws_of_their_shape(tmp_path):
    def ends(*texts):
        return bridge_names.ends(*texts, torch.float64, torch.device("cpu"))

    threes, noise = ends("digits(classes=[3])", "Normal(mean=1, std=2)")
    assert set(threes.classes.tolist()) == {3}
    assert (noise.shape, noise.mean, noise.std, noise.dtype) == ((1, 8, 8), 1.0, 2.0, torch.float64)
    z = Normal((2,), dtype=torch.float64).sample(3, 7)
    assert torch.equal(ends("normal(mean=1, std=2)", "moons(n=5)")[0].sample(3, 7), z * 2 + 1)
    law = Normal((2,), 2.0, torch.float64, mean=1.0)
    wanted = torch.distributions.Normal(1.0, 2.0).log_prob(z).sum(1)
    torch.testing.assert_close(law.log_prob(z), wanted)


def test_a_run_goes_on_where_it_is_asked_to(capsys, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    bridge(whole, *MOONS, "--iterations", "2")
    bridge(parts, *MOONS, "--resume", "auto")
    assert "holds a run already; resume it, or pass another folder" in refused(capsys, *COMMAND, "--out", parts)
    status, out, _ = run(capsys, *COMMAND, "--iterations", "2", "--resume", "--out", parts)
    assert status == 0
    assert len(re.findall(r"(?m)^\d (?:back|for)ward ", out)) == 4  # those before too
    assert weights(parts)[0] == weights(whole)[0] == 8
    bridges = [load_bridge(folder) for folder in (whole, parts)]
    x = Normal((2,)).sample(4, 0)
    for to in ("start", "end"):
        assert torch.equal(*(made.translate(x, 0, to=to) for made in bridges))


def test_a_run_of_another_reference_is_not_gone_on_from(capsys, moons):
    again = [*COMMAND, "--resume", "--iterations", "2", "--quiet", "--out", moons]
    message = refused(capsys, *again, "--process", "brownian(g=2)")
    assert "reference.process.g = 2.0 but was 1.0" in message
    assert "pass the values that it was begun with, or begin a run in another folder" in message
    assert "end.std = 2.0 but was 1.5" in refused(capsys, *again, "--end", "normal(std=2)")
    assert "start.sha256" in refused(capsys, *again, "--start", "moons(n=20, seed=1)")
    assert "iterations" not in refused(capsys, *again, "--lr", "0.5")


def test_the_first_kernels_are_those_of_a_trained_sgm(capsys, tmp_path, sgm, moons):
    folder = bridge(tmp_path / "run", *MOONS, "--first", sgm)
    first = load(sgm).field
    read = load_bridge(folder)
    assert read.backward.reference == ReferenceChain(hb.OU(T=2.0), 3)  # the process is the run's
    x = Normal((2,)).sample(4, 0)
    r, v = read.reference.gains[1], 2 * read.reference.gammas[1]
    wanted = (2.0 - r) * x + v * first(read.reference.times[2], x).score
    torch.testing.assert_close(read.backward.mean(2, x), wanted)
    assert torch.equal(load_bridge(folder, first=first).translate(x, 0, to="start"), read.translate(x, 0, to="start"))
    assert run(capsys, "sample", folder, "-n", "2", "--quiet", "--out", tmp_path / "x.npz") == (0, "", "")

    out = [*COMMAND, "--quiet", "--out", tmp_path / "new", "--first"]
    assert f"--first {moons} is a run of train bridge; pass one of train sgm" in refused(capsys, *out, moons)
    assert "--first belongs to OU(" in refused(capsys, *out, sgm, "--process", "vp")
    assert "pass --dtype float32" in refused(capsys, *out, sgm, "--dtype", "float64")
    images = ["--start", "digits(n=20)", "--process", "ou(T=2)"]
    assert "its network is for (2,), and the ends are of (1, 8, 8)" in refused(capsys, *out, sgm, *images)
    assert not (tmp_path / "new").exists()


def test_runs_of_other_kinds_are_not_gone_on_from(capsys, sgm, moons):
    told = ["--quiet", "--resume", "--out"]
    assert "is not of fit_bridge; halfbridge.training.load reads those of fit_score" in refused(
        capsys, *COMMAND, *told, sgm
    )
    message = refused(capsys, "train", "sgm", "--data", "moons(n=20)", "--net", NET, *told, moons)
    assert "is not of fit_score, but of fit_bridge" in message


def test_a_bridge_that_diverges_ends_at_the_last_good_iterate_and_says_why(capsys, tmp_path, monkeypatch):
    advance = HalfBridgeTrainer.advance

    def fails(trainer, *asked):
        if trainer.half.index == 2:
            raise NotFinite("the loss is nan")
        return advance(trainer, *asked)

    monkeypatch.setattr(HalfBridgeTrainer, "advance", fails)
    status, _, err = run(capsys, *COMMAND, "--iterations", "2", "--quiet", "--out", tmp_path / "run")
    assert status == 1
    assert err == (
        "halfbridge: error: half-bridge 3 (backward) diverged: the loss is nan; "
        f"{tmp_path / 'run'} holds the last good iterate, of half-bridge 2, for sample and translate\n"
    )
    monkeypatch.undo()
    told = ["sample", tmp_path / "run", "-n", "2", "--quiet", "--out", tmp_path / "x.npz"]
    status, _, err = run(capsys, *told)
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("halfbridge: warning: half-bridge 3 (backward) diverged: the loss is nan")


def test_a_bridge_without_a_good_iterate_ends_as_one_with_some(capsys, tmp_path):
    told = [*COMMAND, "--lr", "1e30", "--clip", "inf", "--steps", "9", "--quiet", "--out", tmp_path / "run"]
    status, out, err = run(capsys, *told)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert re.match(r"halfbridge: error: half-bridge [12] .*; no iterate but the reference is good", err)


@pytest.mark.parametrize(
    "words", [["--end", "digits"], ["--variance", "matched", "--form", "full", "--covariance-paths", "2"]]
)
def test_laws_that_no_bridge_joins_are_refused_before_a_word_is_said(capsys, tmp_path, words):
    refused(capsys, *COMMAND, *words, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_larger_than_memory_goes_to_the_disk_with_a_notice(capsys, tmp_path):
    told = ["--cache-limit", "100", "--cache-folder", tmp_path, "--quiet", "--out", tmp_path / "run"]
    status, out, err = run(capsys, *COMMAND, *told)
    assert (status, out, err.count("\n")) == (0, "", 1)
    assert err.startswith("halfbridge: warning: the cache of trajectories has ")
    assert "it goes to the disk" in err


def test_pictures_are_drawn_unless_they_are_not_wanted(tmp_path, moons):
    bridge(tmp_path / "run", *[word for word in MOONS if word != "--no-plots"])
    assert (tmp_path / "run" / "monitors.png").read_bytes().startswith(b"\x89PNG")
    assert len([*(tmp_path / "run" / "samples").iterdir()]) == 2
    assert not (Path(moons) / "monitors.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--end", "digits"], "--end has samples of shape (1, 8, 8), but --start has (2,)"),
        (["--gammas", "constant(gamma=0)"], "`gamma` = 0 must be a positive number"),
        (["--gammas", "symmetric(least=-1, most=2)"], "`least` = -1 must be a positive number"),
        (["--gammas", "symetric(least=1, most=2)"], "there is no gammas 'symetric'; did you mean 'symmetric'?"),
        (["--gammas", "symmetric(least=1)"], "gammas 'symmetric' lacks most"),
        (["--steps-of-chain", "0"], "argument --steps-of-chain: 0 must be at least 1"),
        (["--iterations", "0"], "argument --iterations: 0 must be at least 1"),
        (["--times", "0,1", "--gammas", "constant"], "exclude each other; pass one"),
        (["--times", "0,1"], "--times and --steps-of-chain exclude each other"),
        (["--process", "borwnian"], "there is no process 'borwnian'; did you mean 'Brownian'?"),
        (["--process", "dsb"], "pass --gammas 'constant(gamma=0.05)', say"),
        (["--process", "dsb", "--gammas", "constant", "--transitions", "exact"], "those of Euler; leave it out"),
        (["--process", "dsb(rat=1)"], "did you mean 'rate'?"),
        (["--transitions", "euler", "--process", "ou(theta=9)"], "is too long"),
        (["--start", "normal"], "are both normal laws, of no shape; pass data for one of them"),
        (["--end", "normal(std=0)"], "`std` = 0.0 must be positive"),
        (["--end", "normal(sd=2)"], "end 'normal' has no argument 'sd'; did you mean 'std'?"),
        (["--start", "mons"], "there is no data 'mons'"),
        (["--start", "digits(classes=[12])"], "there is no class 12"),
        (["--method", "dsbn"], "argument --method: there is no 'dsbn'; did you mean 'dsb'?"),
        (["--target", "score", "--variance", "matched"], "--target = 'score'"),
        (["--method", "dsbm", "--target", "mean"], "bridge matching has 'increment' alone"),
        (["--coupling", "ot"], "--coupling has no part in method='dsb'"),
        (["--stop-kl", "0", "--stop-error", "1"], "--stop-kl = 0.0 must be a positive number"),
        (
            ["--stop-kl", "0.1"],
            "--stop-kl = 0.1 alone stops networks that do not train, since they do not move; pass --stop-error",
        ),
        (["--stop-error", "0.1"], "--stop-error = 0.1 alone"),
        (["--form", "full"], "--form = 'full' is of variance='matched'; pass that too, or leave form out"),
        (
            ["--variance", "matched", "--form", "full", "--covariance-paths", "2"],
            "--covariance-paths = 2 paths do not determine",
        ),
        (["--coupling", "ot", "--method", "dsbm", "--coupling-size", "9999999"], "--coupling-size"),
        (
            ["--cache", "disk", "--cache-folder", "/proc/x"],
            "can be made in /proc/x: No such file or directory; pass another cache_folder",
        ),
        (["--net", "mlp(time=log_snr)"], "the log-SNR is infinite at time 0"),
        (["--net", "unet"], "net = 'unet' is for images"),
        (["--net", "mpl"], "did you mean 'mlp'?"),
        (["--class-dropout", "0.1"], "unrecognized arguments: --class-dropout"),
        (["--first", "no/run"], "no/run"),
        (["--resume"], "holds no run to resume"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(capsys, tmp_path, arguments, message):
    assert message in refused(capsys, *COMMAND, "--quiet", "--out", tmp_path / "run", *arguments)


def test_a_config_that_would_not_run_is_not_written(capsys, tmp_path):
    for words in (["--end", "normal(a=1)"], ["--gammas", "constant(gamma=0)"], ["--coupling-size", "0"], ["--net", "x"],
                  ["--variance", "matched", "--target", "mean"], ["--process", "vpp"]):  # fmt: skip
        refused(capsys, *COMMAND, *words, "--save-config", tmp_path / "run.toml")
    assert "--end is missing" in refused(capsys, "train", "bridge", "--start", "moons")
    assert not list(tmp_path.iterdir())


def test_a_network_without_classes_is_made_for_both_ways():
    net = names.net("auto(width=8, multipliers=[1], blocks=1)", (1, 8, 8), hb.Brownian())
    assert (type(net), net.classes) == (hb.nets.UNet, 0)
