"""`halfbridge likelihood`: the command's numbers are the library's, of the data it says, and what it refuses."""

import json
import math
import re

import numpy as np
import pytest
import torch
from command import refused, run, train

import halfbridge as hb
from halfbridge.training import data, saved
from halfbridge.training.data.order import pick


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moons") / "run"
    return train(
        folder, "--data", "moons(n=20)", "--net", "mlp(hidden=8, depth=1)", "--batch-size", "8", "--steps", "3"
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    return train(folder, "--data", "digits", "--holdout", "0.1", "--dequantise", "--net", "unet(width=8, multipliers=[1], blocks=1)",
                 "--batch-size", "4", "--steps", "2", "--classes", "--class-dropout", "0.1")  # fmt: skip


def measured(capsys, *arguments):
    """The JSON of the command, with its methods by name."""
    status, out, err = run(capsys, "likelihood", *arguments, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    return found | {row.pop("method"): row for row in found["methods"]}


def mean_and_error(values):
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def test_flow_and_bound_of_points_are_those_of_the_library(capsys, moons):
    found = measured(capsys, moons, "-n", "10", "--batch", "4", "--steps", "5", "--draws", "8", "--seed", "2")
    assert (found["part"], found["examples"]) == ("a fresh sample", 10)
    field, x0 = saved.load(moons).field, data.load("moons", n=10, seed=3).examples
    flow = hb.log_likelihood(field, x0, solver=hb.DPMSolver(order=3), grid=hb.grids.half_log_snr(hb.VP(), 5))
    mean, error = mean_and_error(flow.log_prob)
    assert found["flow"]["log_prob"] == pytest.approx(mean, rel=1e-5)
    assert found["flow"]["log_prob_error"] == pytest.approx(error, rel=1e-5)
    assert found["flow"]["bits_per_dim"] == pytest.approx(-mean / (2 * math.log(2)), rel=1e-5)
    assert found["flow"]["bits_per_dim_error"] == pytest.approx(error / (2 * math.log(2)), rel=1e-5)
    assert found["flow"]["evaluations"] == flow.nfe == 15
    parts = [hb.elbo(field, x0[k : k + 4], samples=8, seed=2 + k, first=k).log_prob for k in (0, 4, 8)]
    assert found["elbo"]["log_prob"] == pytest.approx(torch.cat(parts).mean().item(), rel=1e-5)
    assert found["elbo"]["evaluations"] == 16


def test_images_are_dequantised_and_held_out_and_the_network_told_their_classes(capsys, digits):
    told = ["-n", "6", "--batch", "4", "--steps", "2", "--seed", "1", "--divergence", "hutchinson", "--probes", "2"]
    found = measured(capsys, digits, *told, "--method", "flow")
    assert found["part"] == "held out of training"
    held = data.load("digits", holdout=0.1, split="test")
    rows = pick(len(held), 6, 1)
    network, x0, grid = saved.load(digits), held.dequantised(1)[rows], hb.grids.half_log_snr(hb.VP(), 2)

    def flow(**options):
        return hb.log_likelihood(
            network.as_field(**options), x0, hb.Hutchinson(2, seed=1), solver=hb.DPMSolver(order=3), grid=grid
        )

    log_prob = flow(classes=held.classes[rows]).log_prob
    assert found["flow"]["log_prob"] == pytest.approx(log_prob.mean().item(), rel=1e-4)
    bits = hb.bits_per_dim(log_prob, 64, levels=17)
    assert found["flow"]["bits_per_dim"] == pytest.approx(bits.mean().item(), rel=1e-4)
    untold = measured(capsys, digits, *told, "--method", "flow", "--classes", "none")
    assert untold["flow"]["log_prob"] == pytest.approx(flow().log_prob.mean().item(), rel=1e-4)
    assert untold["flow"]["log_prob"] != found["flow"]["log_prob"]


def test_a_bound_on_data_has_a_last_denoising_step(capsys, moons):
    told = ["-n", "4", "--method", "elbo", "--draws", "8"]
    found = measured(capsys, moons, *told, "--reconstruct")
    x0 = data.load("moons", n=4, seed=1).examples
    bound = hb.elbo(saved.load(moons).field, x0, samples=8, reconstruct=True)
    assert found["elbo"]["log_prob"] == pytest.approx(bound.log_prob.mean().item(), rel=1e-6)
    assert "flow" not in found


def test_one_example_has_no_standard_error(capsys, moons):
    found = measured(capsys, moons, "-n", "1", "--method", "elbo", "--draws", "8")
    assert found["elbo"]["log_prob_error"] is None


def test_the_table_says_what_the_json_does(capsys, moons):
    told = [moons, "-n", "5", "--steps", "4", "--draws", "8"]
    found = measured(capsys, *told)
    status, out, err = run(capsys, "likelihood", *told)
    assert (status, err) == (0, "")
    assert "data: 5 of 5 examples of moons, a fresh sample" in out
    for name in ("flow", "elbo"):
        line = next(line for line in out.splitlines() if line.startswith(name))
        nats, error, bits, bits_error, evaluations = map(float, re.findall(r"-?\d+\.?\d*", line)[:5])
        row = found[name]
        assert (nats, error) == (round(row["log_prob"], 3), round(row["log_prob_error"], 3))
        assert (bits, bits_error) == (round(row["bits_per_dim"], 4), round(row["bits_per_dim_error"], 4))
        assert evaluations == row["evaluations"]


def test_adaptive_solvers_hold_their_tolerance(capsys, moons):
    told = [moons, "-n", "4", "--method", "flow"]
    tight = measured(capsys, *told, "--solver", "dopri8", "--rtol", "1e-6", "--atol", "1e-7")["flow"]["log_prob"]
    loose = measured(capsys, *told, "--solver", "dopri5", "--rtol", "1e-4", "--atol", "1e-4")["flow"]["log_prob"]
    assert loose == pytest.approx(tight, abs=2e-3)
    assert measured(capsys, *told)["flow"]["log_prob"] == pytest.approx(tight, abs=2e-3)


@pytest.mark.parametrize(
    ("told", "part", "examples"),
    [
        (["--data", "digits(n=30)", "--holdout", "0.5"], "held out of training", 898),
        (["--data", "digits(n=30)"], "the ones it was trained on", 30),
        (["--data", "FILE"], "the test split", 5),
        (["--data", "FILE(split=test)"], "the ones it was trained on", 5),
    ],
)
def test_the_data_are_those_that_were_not_trained_on_where_there_are_any(capsys, tmp_path, told, part, examples):
    images = np.random.default_rng(0).integers(0, 256, (25, 8, 8)).astype(np.uint8)
    np.savez(
        tmp_path / "x.npz", x_train=images[:20], x_test=images[20:], y_train=np.arange(20) % 2, y_test=np.arange(5) % 2
    )
    told = [word.replace("FILE", str(tmp_path / "x.npz")) for word in told]
    folder = train(tmp_path / "run", *told, "--net", "mlp(hidden=8, depth=1)", "--steps", "1", "--batch-size", "4")
    status, out, _ = run(capsys, "likelihood", folder, "-n", "2", "--method", "elbo", "--draws", "4")
    assert status == 0
    assert f"data: 2 of {examples} examples of " in out
    assert f", {part}, dequantised" in out
    assert "note: the network was trained on grey levels" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mons"], "did you mean 'moons'?"),
        (["--data", "digits"], "examples of (1, 8, 8), and the network is for (2,)"),
        (["--solver", "dopri9"], "there is no solver 'dopri9'"),
        (["--solver", "dopri5", "--steps", "3"], "dopri5 chooses its steps; leave it out"),
        (["--solver", "Ancestral"], "Ancestral"),
        (["--method", "flw"], "argument --method: there is no 'flw'; did you mean 'flow'?"),
        (["--divergence", "hutch"], "did you mean 'hutchinson'?"),
        (["--solver", "dopri5", "--rtol", "1e-12"], "rtol = 1e-12"),
        (["--draws", "2"], "argument --draws: 2 must be at least 4"),
        (["--average", "0.5"], "average = 0.5"),
        (["-n", "0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(capsys, moons, arguments, message):
    assert message in refused(capsys, "likelihood", moons, "--json", *arguments)


def test_a_network_of_classes_needs_them(capsys, tmp_path, digits):
    images = np.random.default_rng(0).integers(0, 17, (5, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "x.npy", images)
    message = refused(capsys, "likelihood", digits, "--data", tmp_path / "x.npy", "--json")
    assert "has no classes to tell the network; pass --classes none" in message
