"""The digits experiment in small: that its numbers are what they are called, and that its files agree."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("ot")

import halfbridge as hb

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import digits as example
import digits_judges
import digits_likelihood
import digits_report

SMALL = dataclasses.replace(
    example.QUICK, copies=1, steps=4, warmup=1, check_every=2, budgets=(5, 7), unconditional=10, scored=24, flow_steps=2
)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """(folder, results, how many rows the network was given in each call of a sampling run)."""
    folder, calls, sample = tmp_path_factory.mktemp("digits"), [], example.sample

    def counted(fit, *arguments, **options):
        rows = []
        handle = fit.net.register_forward_hook(lambda net, inputs, output: rows.append(len(output)))
        found = sample(fit, *arguments, **options)
        handle.remove()
        calls.append(rows)
        return found

    before = torch.random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "sample", counted)
        results = example.run(folder, folder / "run", SMALL, seed=1, echo=lambda text: None)
    assert torch.equal(before, torch.random.get_rng_state())
    return folder, results, calls


def test_the_network_is_called_as_often_as_said_and_never_more_than_the_budget(experiment):
    _, results, calls = experiment
    assert len(calls) == len(results["runs"])
    for row, rows in zip(results["runs"], calls, strict=True):
        per_evaluation = row["digits"] * (2 if row["guidance"] else 1)
        assert sum(rows) == row["evaluations"] * per_evaluation, row
        assert row["evaluations"] <= row["budget"]
        assert row["evaluations"] > row["budget"] - {"Ancestral": 1, "PC": 2, "Heun": 2, "DPM-3": 3}[row["solver"]]
    assert {(r["solver"], r["budget"]) for r in results["runs"]} == {
        (m.name, b) for m in example.METHODS for b in (5, 7)
    }


def test_the_readme_says_what_results_json_says(experiment):
    folder, results, _ = experiment
    written = json.loads((folder / "results.json").read_text())
    assert written == results
    text = (folder / "README.md").read_text()
    assert text == digits_report.render(written)
    for row in written["runs"]:
        if row["conditional"] and not row["guidance"]:
            assert (
                f"| {row['solver']} | {row['budget']} | {row['steps']} | {row['evaluations']} | {row['accuracy']:.1%} |"
                in text
            )
    for name in ("samples", "classes", "path", "loss", "scores"):
        assert f"]({name}.png)" in text
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_second_run_trains_no_more_and_samples_the_same(experiment, tmp_path):
    folder, results, _ = experiment
    digits = example.Digits.load(SMALL, 1)
    fit, objective, told = example.train(digits, SMALL, 1, folder / "run")
    assert told == {**results["training"], "held_out_loss": [tuple(p) for p in results["training"]["held_out_loss"]]}
    assert [step for step, _ in told["held_out_loss"]] == [2, 4]
    x, _ = example.sample(fit, objective, example.METHODS[0], 5, torch.arange(60) % 10, 1)
    row = results["runs"][0]
    assert digits_judges.Judges(digits, SMALL, 1).score(x, torch.arange(60) % 10)["energy"] == pytest.approx(
        row["energy"]
    )


def test_the_classifier_knows_real_digits_and_real_digits_are_at_the_distance_of_real_digits():
    digits = example.Digits.load(SMALL, 0)
    judges = digits_judges.Judges(digits, dataclasses.replace(SMALL, samples=1000), 0)
    real = judges.real()
    assert real["digits"] == len(digits.train) == 1198
    assert real["accuracy"] > 0.95
    mean, std, _ = real["splits"]["energy"]
    assert abs(mean) < 5.0 * std
    same = judges.score(judges.held_out, digits.classes(digits.held_out))
    assert same["sliced_w2"] == pytest.approx(0.0, abs=1e-12)
    assert same["energy"] == pytest.approx(-2.0 * judges.spread / 599)  # a pair of the same digit is at 0
    noise = judges.score(torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 10)
    assert noise["energy"] > mean + 100.0 * std
    assert noise["nearer"] == 0.0
    copies = judges.score(judges.middles[:100], digits.classes(digits.train)[:100])
    assert copies["nearest"] < 1e-5
    assert copies["nearer"] == 1.0


def test_the_classifier_is_trained_on_held_out_digits_alone():
    digits = example.Digits.load(SMALL, 0)
    machine = digits_judges.Judges(digits, SMALL, 0).classifier.calibrated_classifiers_[0].estimator
    held_out = {row.tobytes() for row in digits.fresh(digits.held_out).flatten(1).numpy()}
    assert all(row.astype("float32").tobytes() in held_out for row in machine.support_vectors_)


def test_training_and_held_out_digits_are_apart_and_no_noise_is_shared():
    digits = example.Digits.load(SMALL, 0)
    images, classes = digits.examples(3)
    assert images.shape == (3 * 1198, 1, 8, 8)
    levels = lambda x: ((x + 1.0) * 8.5).floor()  # noqa: E731
    assert torch.equal(levels(images[:1198]), levels(images[1198:2396]))
    assert not torch.equal(images[:1198], images[1198:2396])
    assert torch.equal(classes[:1198], digits.train.classes)
    seen = {row.numpy().tobytes() for row in digits.train.pixels}
    assert (
        sum(row.numpy().tobytes() in seen for row in digits.held_out.pixels) <= 2
    )  # a digit may occur twice in the data
    place = lambda x: ((x + 1.0) * 8.5) % 1.0  # noqa: E731  the noise: where in its bin a pixel is
    fresh, held_out = digits.fresh(digits.train), digits.fresh(digits.held_out)
    for one, other in ((images[:1198], fresh), (images[:599], held_out), (fresh[:599], held_out)):
        assert abs(torch.corrcoef(torch.stack([place(one).flatten(), place(other).flatten()]))[0, 1]) < 4 / 38336**0.5


def test_bits_of_the_baselines_are_those_of_their_densities():
    digits = example.Digits.load(SMALL, 0)
    found = digits_likelihood.baselines(digits, dataclasses.replace(SMALL, scored=599))
    x, points = (digits.fresh(part).flatten(1).double() for part in (digits.held_out, digits.train))
    normal = torch.distributions.MultivariateNormal(points.mean(dim=0), torch.cov(points.T))
    bits = hb.bits_per_dim(normal.log_prob(x), 64, levels=17).mean()
    assert found["Gaussian"]["mean"] == pytest.approx(float(bits), rel=1e-6)
    n, h = len(points), found["kernels"]["width"]
    mixture = hb.reference.GaussianMixture([1.0 / n] * n, points, h * h)
    bits = hb.bits_per_dim(mixture.log_prob(x), 64, levels=17).mean()
    assert found["kernels"]["mean"] == pytest.approx(float(bits), rel=1e-6)
    assert found["pixels by themselves"]["mean"] < 2.5 < found["Gaussian"]["mean"] < found["kernels"]["mean"] < 3.5


def test_flow_and_bound_of_the_exact_score_of_a_gaussian_are_the_gaussians_bits():
    digits = example.Digits.load(SMALL, 0)
    s = dataclasses.replace(SMALL, scored=100, flow_steps=12, bound_samples=32)
    objective = example.objectives.Denoising(hb.VP(), predicts="velocity")
    points = digits.fresh(digits.train).flatten(1).double()
    laws = [hb.reference.Gaussian(points.mean(dim=0), scale * torch.cov(points.T)) for scale in (1.0, 1.5)]
    fields = [law.field(objective.process) for law in laws]

    def net(x, label, classes=None):  # the wider law for those of a class
        field = fields[classes is not None]
        return field.velocity(float(label[0]), x.flatten(1).double()).to(x.dtype).view_as(x)

    ones = digits.train.classes == 1  # whose bits differ from those of held-out digits
    parts = {name: getattr(digits.train, name)[ones] for name in ("examples", "classes", "pixels")}
    digits = dataclasses.replace(digits, train=dataclasses.replace(digits.train, **parts))
    told = []
    found = digits_likelihood.all_bits(net, objective, digits, s, 0, told.append)
    x, train = (digits.fresh(part)[:100].flatten(1).double() for part in (digits.held_out, digits.train))
    starts = [law.at(objective.process, objective.process.t_min) for law in laws]
    for name, law, value in (
        ("flow", starts[0], x),
        ("bound", starts[0], x),
        ("flow, class given", starts[1], x),
        ("bound, class given", starts[1], x),
        ("flow, class given, training digits", starts[1], train),
    ):
        bits = hb.bits_per_dim(law.log_prob(value), 64, levels=17)
        assert found["models"][name]["mean"] == pytest.approx(
            float(bits.mean()), abs=0.03 if name[0] == "b" else 0.01
        ), name
        # of the digits, and of the probes or the times besides
        assert 0.8 < found["models"][name]["std_error"] / (float(bits.std()) / 10.0) < 4.0, name
    assert found["checks"]["solver"]["largest"] < 0.02
    assert len(told) == 5


def test_bold_is_what_is_within_two_deviations_of_real_digits():
    near = [digits_report._near(value, [0.01, 0.002, 0.02]) for value in (-0.1, 0.0139, 0.0141)]
    assert near == ["**-0.1000**", "**0.0139**", "0.0141"]
