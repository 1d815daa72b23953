"""`halfbridge sample`: the command draws what the library draws, from any run, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from command import refused, run, train
from PIL import Image
from safetensors import safe_open

import halfbridge as hb
from halfbridge.commands import trained
from halfbridge.solvers import names
from halfbridge.training import saved


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """Three steps of a small network: what it draws is not the question."""
    folder = tmp_path_factory.mktemp("moons") / "run"
    return train(folder, "--data", "moons(n=20)", "--net", "mlp(hidden=8, depth=1)", "--batch-size", "8", "--steps", "3",
                 "--ema-decay", "0.5,0.9")  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """With classes."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    return train(folder, "--data", "digits(n=20)", "--net", "unet(width=8, multipliers=[1], blocks=1)", "--batch-size", "4",
                 "--steps", "2", "--lr", "0.05", "--classes", "--class-dropout", "0.2")  # fmt: skip


def drawn(capsys, tmp_path, run_folder, *arguments):
    status, out, err = run(capsys, "sample", run_folder, "--out", tmp_path / "x.npz", *arguments)
    assert (status, err) == (0, "")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}, out


def test_the_samples_are_those_of_the_library(capsys, tmp_path, moons):
    told = [
        "--solver",
        "DDIM(eta=0.5)",
        "--steps",
        "4",
        "--grid",
        "karras(rho=5)",
        "--t-end",
        "0.01",
        "-n",
        "6",
        "--seed",
        "3",
    ]
    found, out = drawn(capsys, tmp_path, moons, *told)
    field = saved.load(moons).field
    grid = hb.grids.karras(hb.VP(), 4, rho=5, t_end=0.01)
    expected = hb.sample(field, hb.DDIM(eta=0.5), grid=grid, shape=(6, 2), seed=3)
    assert found.keys() == {"samples"}
    assert torch.equal(found["samples"], expected)
    assert "step 3, average 0.5; VP(beta_min=0.1, beta_max=20.0)" in out
    assert "6 samples by DDIM(eta=0.5): 4 steps, 4 evaluations; " in out


def test_every_format_holds_the_same_samples(capsys, tmp_path, moons):
    found, _ = drawn(capsys, tmp_path, moons, "-n", "5")
    for name in ("x.npy", "x.safetensors"):
        assert run(capsys, "sample", moons, "-n", "5", "--quiet", "--out", tmp_path / "new" / name) == (0, "", "")
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "new/x.npy", allow_pickle=False)), found["samples"])
    with safe_open(tmp_path / "new/x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("samples"), found["samples"])
        facts = {name: json.loads(value) for name, value in file.metadata().items()}
    assert (facts["solver"], facts["evaluations"], facts["seed"], facts["step"]) == ("DPMSolver(order=3)", 30, 0, 3)
    assert facts["times"] == hb.grids.half_log_snr(hb.VP(), 10).tolist()


def test_an_average_is_chosen_by_its_decay(capsys, tmp_path, moons):
    for average in ("0.9", "0.5", "0"):
        found, _ = drawn(capsys, tmp_path, moons, "-n", "2", "--average", average, "--solver", "ddim")
        field = saved.load(moons, average=float(average)).field
        grid = hb.grids.half_log_snr(hb.VP(), 10)
        assert torch.equal(found["samples"], hb.sample(field, hb.DDIM(), grid=grid, shape=(2, 2), seed=0))


def test_samples_are_counted_from_the_first(capsys, tmp_path, digits):
    told = ["--solver", "Ancestral", "--steps", "2", "--batch", "4", "--classes", "1,3-4", "--guidance", "0.5"]
    whole, _ = drawn(capsys, tmp_path, digits, *told, "-n", "10")
    later, _ = drawn(capsys, tmp_path, digits, *told, "-n", "6", "--first", "4")
    assert torch.equal(later["samples"], whole["samples"][4:])
    assert whole["classes"].tolist() == [1, 3, 4, 1, 3, 4, 1, 3, 4, 1]
    assert torch.equal(later["classes"], whole["classes"][4:])


def test_classes_and_guidance_reach_the_network(capsys, tmp_path, digits):
    network, grid = saved.load(digits), hb.grids.half_log_snr(hb.VP(), 2)

    def expected(**options):
        return hb.sample(network.as_field(**options), hb.DDIM(), grid=grid, shape=(12, 1, 8, 8), seed=0)

    told = ["--solver", "ddim", "--steps", "2", "-n", "12"]
    turns = torch.arange(12) % 10
    found, _ = drawn(capsys, tmp_path, digits, *told)
    assert torch.equal(found["samples"], expected(classes=turns))
    assert torch.equal(found["classes"], turns)
    found, out = drawn(capsys, tmp_path, digits, *told, "--classes", "7", "--guidance", "2")
    assert torch.equal(found["samples"], expected(classes=7, guidance=2.0))
    assert "of two rows each for the guidance" in out
    found, _ = drawn(capsys, tmp_path, digits, *told, "--classes", "none")
    assert torch.equal(found["samples"], expected())
    assert found["classes"].tolist() == [-1] * 12


@pytest.mark.parametrize("solver", ["dpm3", "Heun", "ddim", "pc", "Ancestral", "dpmpp"])
@pytest.mark.parametrize("budget", [7, 20])
def test_a_budget_of_evaluations_is_spent_and_not_exceeded(moons, solver, budget):
    found, made = saved.load(moons), names.solver(solver)

    def cost(grid):
        return hb.plan(made, found.process, grid, predicts="noise").nfe

    grid = trained.make_grid(found, made, "half_log_snr", None, budget, None)
    assert cost(grid) <= budget < cost(hb.grids.half_log_snr(found.process, len(grid)))


def test_a_last_step_that_costs_less_is_counted_so(moons):
    found = saved.load(moons)
    assert len(trained.make_grid(found, hb.Heun(), "karras", None, 9, 0.0)) - 1 == 5  # 2 + 2 + 2 + 2 + 1


def test_a_picture_is_of_images_or_of_points_beside_the_data(capsys, tmp_path, digits, moons, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "halfbridge.training.pictures.draw", lambda samples, path, **options: seen.append((samples, options))
    )
    told = ["--steps", "1", "-n", "9", "--out", tmp_path / "x.png"]
    assert run(capsys, "sample", digits, *told, "--classes", "3-5", "--range=-2,1")[0] == 0
    assert run(capsys, "sample", digits, *told, "--classes", "3")[0] == 0
    assert run(capsys, "sample", moons, *told)[0] == 0
    (samples, images), (_, one_class), (points, scatter) = seen
    assert (samples.shape, images) == ((9, 1, 8, 8), {"data": None, "range": (-2.0, 1.0), "columns": 3})
    assert one_class == {"data": None, "range": (-1.0, 1.0), "columns": None}
    assert points.shape == scatter["data"].shape == (9, 2)
    examples = hb.training.data.load("moons", n=20).examples
    assert all((examples == row).all(1).any() for row in scatter["data"])
    monkeypatch.undo()
    assert run(capsys, "sample", digits, *told)[0] == 0
    width, height = Image.open(tmp_path / "x.png").size
    assert width > 4 * height  # a column for each of ten classes, in one row


def test_a_picture_of_points_needs_no_data(capsys, tmp_path):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(20, 2)))
    folder = train(tmp_path / "run", "--data", str(tmp_path / "data.npy"), "--net", "mlp(hidden=8)", "--steps", "1")
    (tmp_path / "data.npy").unlink()
    status, out, _ = run(capsys, "sample", folder, "--steps", "1", "-n", "3", "--out", tmp_path / "x.png")
    assert (status, "the data are not drawn: there is no file" in out) == (0, True)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_levels_are_the_times_that_ncsn_trained_at(capsys, tmp_path):
    told = [
        "--data",
        "moons(n=20)",
        "--net",
        "mlp(hidden=8, depth=1)",
        "--steps",
        "1",
        "--objective",
        "ncsn(levels=[2,1,0.5])",
    ]
    folder = train(tmp_path / "run", *told)
    found, out = drawn(capsys, tmp_path, folder, "--grid", "levels", "--solver", "pc", "-n", "3")
    assert "2 steps" in out
    solver = names.solver("pc")
    assert torch.equal(
        found["samples"], hb.sample(saved.load(folder).field, solver, grid=[2.0, 1.0, 0.5], shape=(3, 2), seed=0)
    )
    told = ["sample", folder, "--out", tmp_path / "x.npz", "--grid", "levels"]
    assert "leave --steps, --evaluations and --t-end out" in refused(capsys, *told, "--steps", "3")


def test_a_saved_file_is_sampled_as_a_run_is(capsys, tmp_path, moons):
    found = saved.load(moons)
    saved.save(tmp_path / "net.safetensors", found.net, objective=found.objective)
    one, _ = drawn(capsys, tmp_path, moons, "-n", "4")
    other, _ = drawn(capsys, tmp_path, tmp_path / "net.safetensors", "-n", "4")
    assert torch.equal(one["samples"], other["samples"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--out", "x.pt"],
            "--out x.pt: .pt files are pickles, which can run code when they are read; pass x.safetensors or x.npz",
        ),
        (["--out", "x.jpg"], "must end in one of .png, .npz, .npy, .safetensors"),
        (["--solver", "hen"], "there is no solver 'hen'; did you mean 'Heun'?"),
        (["--solver", "dpm4"], "did you mean 'dpm3'?"),
        (["--grid", "karas"], "there is no grid 'karas'; did you mean 'karras'?"),
        (["--grid", "levels"], "only the objective ncsn has levels"),
        (["--steps", "3", "--evaluations", "9"], "--steps 3 and --evaluations 9 exclude each other"),
        (["--evaluations", "2"], "--evaluations 2: one step of DPMSolver(order=3) takes 3"),
        (["--steps", "0"], "argument --steps: 0 must be at least 1"),
        (["--classes", "3"], "--classes 3: the network was trained without classes; leave it out"),
        (["--guidance", "1"], "the network was trained without classes"),
        (["--average", "0.7"], "average = 0.7 is none of the run's: 0.5, 0.9"),
        (["-n", "0"], "argument -n/--number: 0 must be at least 1"),
        (["--batch", "0"], "argument --batch: 0 must be at least 1"),
        (["--seed", "-1"], "seed"),
        (["--range", "1,1"], "must be two numbers, the lower first"),
        (["--t-end", "5"], "t_end"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_a_line(capsys, moons, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "sample", moons, "--out", "x.npz", "--quiet", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "10"], "--classes 10: '10' is not within the network's classes, 0-9"),
        (["--classes", "5-3"], "'5-3' is not within the network's classes"),
        (["--classes", "cat"], "'cat' is no class; write numbers and ranges such as 0-9"),
        (["--classes", "none", "--guidance", "1"], "is towards a class; pass --classes"),
    ],
)
def test_classes_that_the_network_does_not_know_are_refused(capsys, tmp_path, digits, arguments, message):
    assert message in refused(capsys, "sample", digits, "--out", tmp_path / "x.npz", "--quiet", *arguments)


def test_a_run_that_is_damaged_or_missing_is_refused_in_a_line(capsys, tmp_path, moons):
    told = ["--out", tmp_path / "x.npz", "--quiet"]
    assert "there is no file or folder" in refused(capsys, "sample", tmp_path / "nothing", *told)
    assert "is no run's folder: it has no config.json" in refused(capsys, "sample", tmp_path, *told)
    assert "--out is missing" in refused(capsys, "sample", moons)
    folder = train(tmp_path / "run", "--data", "moons(n=20)", "--net", "mlp(hidden=8, depth=1)", "--steps", "1")
    (file,) = (tmp_path / "run" / "checkpoints").glob("step-000000001.*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert str(len(whole) - 1) in refused(capsys, "sample", folder, *told)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "SHA-256" in refused(capsys, "sample", folder, *told)
    file.write_bytes(whole)
    config = tmp_path / "run/config.json"
    config.write_text(config.read_text().replace('"hidden": 8', '"hidden": 10'))
    assert "net.hidden = 10 but was 8; restore" in refused(capsys, "sample", folder, *told)


def test_a_network_that_was_always_told_the_class_is_not_guided_away_from_none(capsys, tmp_path):
    told = ["--net", "mlp(hidden=8, depth=1)", "--steps", "1", "--classes"]
    folder = train(tmp_path / "run", "--data", "moons(n=20)", *told)
    out = ["--out", tmp_path / "x.npz", "--quiet"]
    for words in (["--guidance", "1.0"], ["--classes", "none"]):
        message = refused(capsys, "sample", folder, *out, *words)
        assert message.startswith(f"{' '.join(words)}: the network was always told the class in training")
        assert "--class-dropout 0.1" in message
    assert "--classes none: the network" in refused(capsys, "likelihood", folder, "--classes", "none", "--json")
    assert run(capsys, "sample", folder, *out, "--classes", "1", "-n", "2") == (0, "", "")


def test_a_file_that_cannot_be_written_is_told_before_a_sample_is_drawn(capsys, tmp_path, moons, monkeypatch):
    monkeypatch.setattr("halfbridge.commands.sample.sample_rows", None)
    (tmp_path / "x.csv").write_text("")
    told = ["sample", moons, "--quiet", "--out"]
    assert "x.csv is a file, not a folder" in refused(capsys, *told, tmp_path / "x.csv/a.npz")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert f"{tmp_path} cannot be written to" in refused(capsys, *told, tmp_path / "new/a.npz")
