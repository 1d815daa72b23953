"""`halfbridge translate`, and `sample` and `likelihood` of a bridge: what the library carries, from any files, and what they
refuse."""

import json

import numpy as np
import pytest
import torch
from command import bridge, refused, run, train
from PIL import Image
from safetensors import safe_open

import halfbridge as hb
from halfbridge.commands.bridge_output import _strips
from halfbridge.training import data
from halfbridge.training.bridge import Examples, Normal, load_bridge

NET = "mlp(hidden=8, depth=1)"
SMALL = ["--batch-size", "8", "--steps", "3", "--steps-of-chain", "4", "--iterations", "1", "--cache-paths", "8", "--lr", "0.02",
         "--ema-decay", "0", "--monitor-paths", "16", "--no-plots"]  # fmt: skip


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moons") / "run"
    return bridge(
        folder, "--start", "moons(n=20)", "--end", "normal(mean=0.5)", "--process", "ou(T=2)", "--net", NET, *SMALL
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Between two kinds of images, of which one has a part that is held out."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    ends = ["--start", "digits(classes=[3], n=40)", "--end", "digits(classes=[8], holdout=0.1)"]
    return bridge(folder, *ends, "--net", "mlp(hidden=4, depth=1)", *SMALL)


def written(capsys, tmp_path, command, *arguments):
    """The arrays that a command writes, and what it says."""
    status, out, err = run(capsys, command, *arguments, "--out", tmp_path / "x.npz")
    assert (status, err) == (0, "")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}, out


def test_samples_of_one_end_are_carried_to_the_other(capsys, tmp_path, moons):
    made = load_bridge(moons)
    x = Normal((2,), mean=0.5).sample(5, 3, 2)
    found, out = written(capsys, tmp_path, "sample", moons, "-n", "5", "--first", "2", "--seed", "3")
    assert found.keys() == {"samples", "origins"}
    assert torch.equal(found["origins"], x)
    assert torch.equal(found["samples"], made.translate(x, 3, to="start", first=2))
    assert "from the end: a normal law\n5 samples by its chain, 4 steps" in out
    quiet, _ = written(capsys, tmp_path, "sample", moons, "-n", "5", "--first", "2", "--seed", "3", "--no-last-noise")
    assert torch.equal(quiet["samples"], made.translate(x, 3, to="start", first=2, last_noise=False))
    fresh = Examples(data.load("moons", n=20, seed=1).examples).sample(5, 0)
    found, out = written(capsys, tmp_path, "sample", moons, "-n", "5", "--to", "end")
    assert torch.equal(found["origins"], fresh)
    assert torch.equal(found["samples"], made.translate(fresh, 0))
    assert "from the start: moons, a fresh sample" in out


def test_examples_that_were_held_out_are_carried_where_there_are_any(capsys, tmp_path, digits):
    found, out = written(capsys, tmp_path, "sample", digits, "-n", "6", "--to", "start")
    held = data.load("digits", classes=[8], holdout=0.1, split="test")
    assert set(held.classes.tolist()) == {8}
    assert torch.equal(found["origins"], Examples(held.examples).sample(6, 0))
    assert "from the end: digits, held out of training" in out
    assert "the ones it was trained on" in written(capsys, tmp_path, "sample", digits, "-n", "2", "--to", "end")[1]


@pytest.mark.parametrize("to", ["start", "end"])
def test_states_at_any_times_are_kept_on_the_way(capsys, tmp_path, moons, to):
    made, x = load_bridge(moons), data.load("moons", n=4).examples
    told = [moons, "--input", "moons(n=4)", "--to", to, "--seed", "2"]
    found, _ = written(capsys, tmp_path, "translate", *told, "--times", "1,0.3,1.7")
    end = 0.0 if to == "start" else 2.0
    times = sorted([0.3, 1.0, 1.7, end], reverse=to == "start")
    wanted = made.trajectories(x, 2, to=to, times=times)
    assert found["times"].tolist() == times[:-1]
    assert torch.equal(found["trajectory"], wanted[:-1])
    assert torch.equal(found["samples"], wanted[-1])
    assert torch.equal(found["samples"], made.translate(x, 2, to=to))
    both, _ = written(capsys, tmp_path, "translate", *told, "--times", f"{2.0 - end},{end}")
    assert torch.equal(both["trajectory"][0], x)
    assert torch.equal(both["trajectory"][1], both["samples"])


@pytest.mark.parametrize("to", ["start", "end"])
@pytest.mark.parametrize("solver", ["heun", "em"])
def test_solvers_go_along_the_flow_or_the_sde_in_any_number_of_steps(capsys, tmp_path, moons, solver, to):
    made, x = load_bridge(moons), data.load("moons", n=4).examples
    grid = np.linspace(0.0, 2.0, 8)[:: 1 if to == "end" else -1].copy()
    problems = {"em": made.forward_sde() if to == "end" else made.backward_sde(), "heun": made.probability_flow()}
    makers = {"em": hb.EulerMaruyama(), "heun": hb.Heun()}
    with torch.no_grad():
        wanted = hb.solve(problems[solver], makers[solver], x, grid=grid, seed=1).x
    told = [moons, "--input", "moons(n=4)", "--to", to, "--seed", "1", "--solver", solver, "--steps", "7"]
    found, out = written(capsys, tmp_path, "translate", *told)
    torch.testing.assert_close(found["samples"], wanted)
    assert f"along the {'SDE to the ' + to if solver == 'em' else 'probability flow'}, 7 steps" in out
    found, out = written(capsys, tmp_path, "translate", *told, "--times", f"1,{2 / 7}")
    assert ", 8 steps" in out  # to 1 there is one more
    where = sorted([*grid, 1.0], reverse=to == "start")
    with torch.no_grad():
        kept = hb.solve(problems[solver], makers[solver], x, grid=where, seed=1, save="all").trajectory
    times = found["times"].tolist()
    assert times == sorted([1.0, 2 / 7], reverse=to == "start")
    torch.testing.assert_close(found["trajectory"][times.index(1.0)], kept[where.index(1.0)])
    torch.testing.assert_close(found["samples"], kept[-1])


@pytest.mark.parametrize("to", ["start", "end"])
@pytest.mark.parametrize(
    ("solver", "maker", "noise", "name"),
    [
        ("dpm2", hb.DPMSolver(order=2), 0.0, "the probability flow"),
        ("ancestral", hb.Ancestral(), 1.0, "the SDE to the"),
        ("ddim(eta=0.5)", hb.DDIM(0.5), 0.5, "the SDE of noise 0.5 to the"),
    ],
)
def test_solvers_of_fields_go_to_either_end_of_the_bridge_itself(
    capsys, tmp_path, moons, solver, maker, noise, name, to
):
    """Along the field of the solver's noise, and to time 0, not to the reference's t_min."""
    made, x = load_bridge(moons), data.load("moons", n=4).examples
    field = (made.forward_field if to == "end" else made.backward_field)(noise)
    grid = np.linspace(2.0, 0.0, 6)
    told = [moons, "--input", "moons(n=4)", "--to", to, "--seed", "1", "--solver", solver, "--steps", "5"]
    found, out = written(capsys, tmp_path, "translate", *told, "--times", "1.6")
    with torch.no_grad():
        kept = 1.6 if to == "start" else 0.4
        wanted = hb.solve(
            field, maker, x, grid=grid, seed=1, save=[float(grid[np.abs(grid - kept).argmin()]), 0.0]
        ).trajectory
    torch.testing.assert_close(found["trajectory"][0], wanted[0])
    torch.testing.assert_close(found["samples"], wanted[1])
    assert f"along {name}" in out
    assert ", 5 steps" in out
    if to == "start":
        found, _ = written(capsys, tmp_path, "translate", *told, "--grid", "half_log_snr", "--t-end", "0.1")
        grid = hb.grids.half_log_snr(field.process, 5, t_end=0.1)
        with torch.no_grad():
            torch.testing.assert_close(found["samples"], hb.solve(field, maker, x, grid=grid, seed=1).x)


def test_a_path_depends_on_its_place_and_not_on_the_number_of_them(capsys, tmp_path, moons):
    told = [moons, "--batch", "4", "--times", "0.7"]
    whole, _ = written(capsys, tmp_path, "sample", *told, "-n", "10")
    later, _ = written(capsys, tmp_path, "sample", *told, "-n", "6", "--first", "4")
    assert torch.equal(later["trajectory"], whole["trajectory"][:, 4:])
    assert torch.equal(later["samples"], whole["samples"][4:])
    some, _ = written(capsys, tmp_path, "translate", *told, "--input", "moons(n=9)", "-n", "5", "--to", "end")
    every, _ = written(capsys, tmp_path, "translate", *told, "--input", "moons(n=9)", "--to", "end")
    torch.testing.assert_close(every["samples"][:5], some["samples"])
    assert len(every["samples"]) == 9


def test_data_of_any_kind_are_translated_were_it_one_row(capsys, tmp_path, moons, digits):
    """Floats as they are, pixels scaled as in training; what a command wrote goes back."""
    point = torch.tensor([[0.25, -0.5]])
    np.save(tmp_path / "one.npy", point.numpy())
    found, _ = written(capsys, tmp_path, "translate", moons, "--input", tmp_path / "one.npy", "--to", "end")
    assert torch.equal(found["origins"], point)
    back, _ = written(capsys, tmp_path, "translate", moons, "--input", tmp_path / "x.npz", "--to", "start")
    assert torch.equal(back["origins"], found["samples"])
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    np.savez(tmp_path / "one.npz", images=pixels[None])
    for name in ("photos", "one.npz", "photos/(size=8)"):
        found, _ = written(capsys, tmp_path, "translate", digits, "--input", tmp_path / name, "--to", "end")
        torch.testing.assert_close(found["origins"][0, 0], torch.from_numpy(pixels / 127.5 - 1).float())


def test_every_format_holds_the_same(capsys, tmp_path, moons):
    found, _ = written(capsys, tmp_path, "sample", moons, "-n", "3", "--times", "1.0,")
    for name in ("x.npy", "x.safetensors"):
        assert run(capsys, "sample", moons, "-n", "3", "--times", "1", "--quiet", "--out", tmp_path / name) == (
            0,
            "",
            "",
        )
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npy")), found["samples"])
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        for name, array in found.items():
            assert torch.equal(file.get_tensor(name), array)
        facts = {name: json.loads(value) for name, value in file.metadata().items()}
    assert (facts["to"], facts["solver"], facts["step"]) == ("start", "chain", 6)
    assert facts["times"] == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_pictures_have_images_below_what_they_came_from_and_points_over_the_law(
    capsys, tmp_path, digits, moons, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        "halfbridge.training.pictures.draw", lambda samples, path, **options: seen.append((samples, options))
    )
    out = ["--out", tmp_path / "x.png"]
    assert run(capsys, "sample", digits, *out, "-n", "9", "--to", "end")[0] == 0
    assert run(capsys, "translate", digits, *out, "--input", "digits(n=20)", "--to", "end")[0] == 0
    assert run(capsys, "sample", moons, *out, "-n", "9")[0] == 0
    (grid, plain), (strips, paths), (points, scatter) = seen
    assert (grid.shape, plain["columns"]) == ((9, 1, 8, 8), None)
    assert (strips.shape, paths["columns"]) == ((40, 1, 8, 8), 10)
    x = data.load("digits", n=20).examples
    assert torch.equal(strips[:10], x[:10])
    assert torch.equal(strips[20:30], x[10:])
    assert points.shape == scatter["data"].shape == (9, 2)
    fresh = data.load("moons", n=20, seed=1).examples
    assert all((fresh == row).all(1).any() for row in scatter["data"])


def test_strips_are_a_sample_a_column():
    states = torch.arange(17 * 3).float().view(17, 3, 1, 1, 1)
    rows, columns = _strips(states)
    assert columns == 9
    sheet = rows.view(-1, columns)
    assert torch.equal(sheet[:3].mT, states[:9, :, 0, 0, 0])
    assert torch.equal(sheet[3:, :8].mT, states[9:, :, 0, 0, 0])
    assert sheet[3:, 8].isnan().all()


def test_the_likelihood_is_that_of_the_flow_from_the_normal_end(capsys, moons, monkeypatch):
    grids = []

    def seen(*told, **options):
        grids.append(options.get("grid"))
        return hb.log_likelihood(*told, **options)

    monkeypatch.setattr("halfbridge.commands.likelihood.log_likelihood", seen)
    status, out, err = run(capsys, "likelihood", moons, "-n", "6", "--batch", "4", "--steps", "9", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    made, x0 = load_bridge(moons), data.load("moons", n=6, seed=1).examples
    grid = hb.grids.uniform(made.flow_field().process, 9)
    assert grid[-1] == 0.0
    assert [[*one] for one in grids] == [[*grid]] * 2  # of two batches
    flow = hb.log_likelihood(made.flow_field(), x0, prior=Normal((2,), mean=0.5), solver=hb.Heun(), grid=grid)
    (row,) = found["methods"]
    assert (row["method"], found["part"]) == ("flow", "a fresh sample")
    assert row["log_prob"] == pytest.approx(flow.log_prob.mean().item(), rel=1e-5)
    shown = run(capsys, "likelihood", moons, "-n", "6", "--batch", "4", "--steps", "2", "--progress", "--json")
    assert json.loads(shown[1])
    assert "likelihood: 100%" in shown[2]
    assert "6/6" in shown[2]
    tight = run(capsys, "likelihood", moons, "-n", "6", "--solver", "dopri5", "--rtol", "1e-4", "--json")[1]
    assert json.loads(tight)["methods"][0]["log_prob"] == pytest.approx(row["log_prob"], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--times", "3"], "--times: 3 lies outside the bridge, which is from 0 to T = 2"),
        (["--times", "1,0.5,1"], "--times: 1 is there twice"),
        (
            ["--solver", "dpm3", "--to", "start", "--t-end", "0.1", "--times", "0,1"],
            "--times: 0 is not between 0.1 and 2",
        ),
        (["--solver", "hen"], "there is no solver 'hen'; did you mean 'Heun'?"),
        (["--solver", "Heun(churn=1)"], "the noise of Heun goes with a score of the marginals, which a bridge has not"),
        (["--solver", "pc"], "the noise of PredictorCorrector goes with a score"),
        (["--solver", "langevin"], "the noise of Langevin goes with a score"),
        (["--steps", "9"], "--steps 9: the chain has its own times"),
        (["--grid", "uniform"], "--grid uniform: the chain has its own times"),
        (["--solver", "em", "--no-last-noise"], "--no-last-noise is of the chain's last step"),
        (["--solver", "em", "--to", "end", "--t-end", "0.1"], "--t-end 0.1: the way to the end is from 0 to T"),
        (["--solver", "heun", "--grid", "karas"], "did you mean 'karras'?"),
        (["--to", "strat"], "argument --to: there is no 'strat'; did you mean 'start'?"),
        (["--range", "1,1"], "must be two numbers, the lower first"),
    ],
)
def test_ways_that_there_are_not_are_refused_in_a_line(capsys, tmp_path, moons, arguments, message):
    out = ["--out", tmp_path / "x.npz", "--quiet"]
    to = [] if "--to" in arguments else ["--to", "start"]
    assert message in refused(capsys, "translate", moons, "--input", "moons(n=3)", *to, *out, *arguments)
    assert message in refused(capsys, "sample", moons, *out, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("sample", ["--classes", "3"], "is a bridge, whose networks know no classes; leave it out"),
        ("sample", ["--guidance", "1"], "--guidance 1.0: "),
        ("sample", ["--evaluations", "9"], "is a bridge, whose steps are not of one cost; pass --steps"),
        ("sample", ["--average", "0.9"], "is a bridge, which keeps its first average"),
        ("translate", ["--input", "digits(n=5)"], "its rows are of (1, 8, 8), and the bridge joins laws on (2,)"),
        ("translate", ["--input", "mons.npy"], "there is no file or folder mons.npy"),
        ("translate", ["--input", "moons(n=3)", "-n", "4"], "has 3 rows; pass as many at most"),
        ("translate", [], "--input is missing"),
        ("likelihood", ["--method", "elbo"], "--method elbo: "),
        ("likelihood", ["--reconstruct"], "whose likelihood is that of its flow; leave it out"),
        ("likelihood", ["--data", "digits(n=5)"], "has examples of (1, 8, 8), and the bridge joins laws on (2,)"),
        ("likelihood", ["--average", "0.9"], "keeps its first average"),
        ("likelihood", ["--classes", "none"], "--classes none: "),
    ],
)
def test_what_a_bridge_does_not_take_is_refused_in_a_line(capsys, tmp_path, moons, command, arguments, message):
    to = ["--to", "end"] if command == "translate" else []
    out = ["--json"] if command == "likelihood" else ["--out", tmp_path / "x.npz", "--quiet"]
    assert message in refused(capsys, command, moons, *to, *out, *arguments)


def test_runs_of_the_wrong_kind_are_refused_in_a_line(capsys, tmp_path, digits):
    sgm = train(tmp_path / "sgm", "--data", "moons(n=20)", "--net", NET, "--steps", "1")
    out = ["--out", tmp_path / "x.npz", "--quiet"]
    message = refused(capsys, "translate", sgm, "--input", "moons(n=3)", "--to", "end", *out)
    assert message == f"{sgm} is a run of train sgm, which has one end; pass it to halfbridge sample\n"
    for words in (["--to", "end"], ["--times", "1"], ["--no-last-noise"]):
        assert "is no run of train bridge; leave it out" in refused(capsys, "sample", sgm, *out, *words)
    assert "--solver chain: " in refused(capsys, "sample", sgm, *out, "--solver", "chain")
    assert "ends in data, which have no density" in refused(capsys, "likelihood", digits, "--json")
    message = refused(capsys, "translate", tmp_path / "no", "--input", "moons", "--to", "end", *out)
    assert "there is no folder" in message
    (tmp_path / "empty").mkdir()
    message = refused(capsys, "translate", tmp_path / "empty", "--input", "moons", "--to", "end", *out)
    assert "is no run's folder: it has no config.json" in message


def test_a_run_that_does_not_say_what_its_ends_are_takes_data_of_yours(capsys, tmp_path):
    from halfbridge.training.bridge import ReferenceChain, fit_bridge

    x = data.load("moons", n=20).examples
    nets = [hb.nets.MLP(2, hidden=8, depth=1) for _ in range(2)]
    chain = ReferenceChain(hb.Brownian(), 2)
    fit_bridge(
        *nets, x, Normal((2,)), chain, iterations=1, steps=1, monitor_paths=8, cache_paths=8, out=tmp_path / "run"
    )
    out = ["--out", tmp_path / "x.npz", "--quiet"]
    message = refused(capsys, "sample", tmp_path / "run", "--to", "end", *out)
    assert "does not say what its start was loaded from; pass states of yours: halfbridge translate" in message
    assert run(capsys, "translate", tmp_path / "run", "--input", "moons(n=3)", "--to", "end", *out) == (0, "", "")
