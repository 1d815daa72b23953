"""The bridges of digits in small: that the numbers are what they are called, and that the files agree."""

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
from halfbridge.training.bridge import PathLaw, ReferenceChain, ReferenceTransitions, gammas

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import digits_bridge as example
from bridged_digits import few_steps, hundred, report, translation
from bridged_digits.judged import Judged, blends, like, mean_and_deviation, noisy, squared
from written_by import command

SMALL = dataclasses.replace(example.QUICK, hundred_steps=3, pair_steps=3, few_steps=2, budgets=(3, 4))


@pytest.fixture(scope="module")
def judged():
    return Judged(SMALL, 0)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """(folder, results)."""
    folder = tmp_path_factory.mktemp("digits_bridge")
    before = torch.random.get_rng_state()
    results = example.run(folder, SMALL, seed=0, echo=lambda text: None)
    assert torch.equal(before, torch.random.get_rng_state())
    return folder, results


def test_the_readme_says_what_results_json_says(experiment):
    folder, results = experiment
    written = json.loads((folder / "results.json").read_text())
    assert written == results
    text = (folder / "README.md").read_text()
    assert text == report.render(written)
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {name.split(")")[0] for name in text.split("](") if name.split(")")[0].endswith(".png")}
    for row in written["few_steps"]["rows"]:
        assert f"| {row['evaluations']} | {row['model']} | {report._pm(row['energy'])} |" in text
    for row in written["translation"]["rows"]:
        assert f"| {row['method']} | {row['to']} | {row['iteration']} | {report._share(row['recognised'])} |" in text


def test_every_iteration_is_measured_in_both_readings_of_the_noise(experiment):
    _, results = experiment
    wide, narrow = results["hundred"]
    assert wide["deviation"] ** 2 == pytest.approx(2.0 * 0.05)
    assert narrow["deviation"] == 0.05
    for run in (wide, narrow):
        assert [row["iteration"] for row in run["rows"]] == [1, 2]
        assert [row["iterate"] for row in run["monitors"]] == [1, 2, 3, 4]
        assert run["stopped"] == "iterations"
        assert run["prior_std"] ** 2 - SMALL.chain * run["deviation"] ** 2 == pytest.approx(0.2927, abs=1e-3)


def test_the_judge_of_digits_knows_blends_gaussians_and_noise_from_digits_it_has_not_seen(judged):
    train = judged.judges.train
    assert judged.are_digits(train) > 0.85
    assert judged.are_digits(like(train, 500, 7)) < 0.25
    mixed = blends(train, judged.judges.train_classes, 500, 7)
    assert len(mixed) == 500
    assert judged.are_digits(mixed) < 0.1
    assert judged.are_digits(noisy(train, 7)) < 0.1
    assert judged.judges.classifier.predict_proba(mixed.flatten(1).numpy()).max(axis=1).min() > 0.3  # the other one


def test_blends_are_means_of_two_of_different_classes():
    x = torch.tensor([0.0, 1.0, 10.0]).view(3, 1)
    found = blends(x, torch.tensor([0, 0, 1]), 20, 0)
    assert set(found.flatten().tolist()) == {5.0, 5.5}


def test_a_gaussian_alike_has_the_mean_and_the_covariance(judged):
    x = judged.judges.train
    drawn = like(x, 4000, 0).flatten(1).double()
    own = x.flatten(1).double()
    error = (own.var(dim=0) / len(drawn)).sqrt()
    assert ((drawn.mean(dim=0) - own.mean(dim=0)).abs() < 5.0 * error + 1e-9).all()
    assert float((torch.cov(drawn.mT) - torch.cov(own.mT)).norm() / torch.cov(own.mT).norm()) < 0.1


def test_what_a_translation_moved_is_judged_against_every_pairing(judged):
    class Shift:
        def translate(self, x, seed, *, to, last_noise):
            assert to == "end"
            assert last_noise is False
            return x + 0.3

    x = judged.judges.held_out[judged.classes == 3]
    found = translation._translations(SMALL, judged, Shift(), "end", x, x + 0.3, 3, 0)
    assert found["moved"] == pytest.approx([0.09, 0.0], abs=1e-6)
    assert found["repaired"] == pytest.approx([0.09, 0.0], abs=1e-5)  # to shift all alike is optimal transport
    assert found["dealt"][0] == pytest.approx(float(squared(x, x).mean()) + 0.09, rel=1e-6)
    assert found["sliced_w2"] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert found["recognised"][0] == judged.taken_for(x + 0.3, 3)


def test_squared_is_a_mean_over_pixels_and_transport_the_least_mean():
    x, y = torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    cost = squared(x, y)
    assert torch.allclose(cost, torch.tensor([[4.5, 2.5], [0.5, 6.5]]).double(), atol=1e-6)
    assert translation.transport(cost) == pytest.approx(1.5, abs=1e-6)


def test_mean_and_deviation_are_of_a_run():
    assert mean_and_deviation([{"a": 1.0}, {"a": 3.0}]) == {"a": [2.0, pytest.approx(2.0**0.5)]}


def test_a_prior_has_the_deviation_that_the_reference_ends_with():
    reference = ReferenceChain.dsb(gammas.geometric(4, 0.05, 0.3), 0.7)
    x = 0.6 * torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    ends = PathLaw(_Rows(x), ReferenceTransitions(reference)).sample(4000, 0)
    error = float(ends.square().std()) / (2.0 * float(ends.square().mean()) ** 0.5 * len(ends.flatten()) ** 0.5)
    assert hundred.end_deviation(x, reference) == pytest.approx(float(ends.square().mean()) ** 0.5, abs=5.0 * error)


class _Rows:
    def __init__(self, x):
        self.x = x

    def sample(self, n, seed, first=0):
        return self.x[:n]


def test_models_are_trained_alike_and_sample_in_the_evaluations_they_are_named_by(judged, monkeypatch):
    trained, sampled, forward = [], [], hb.nets.UNet.forward

    def counted(net, x, t, *rest):
        (trained if torch.is_grad_enabled() and net.training else sampled).append(len(x))
        return forward(net, x, t, *rest)

    monkeypatch.setattr(hb.nets.UNet, "forward", counted)
    steps = []
    models = []
    for model in few_steps.models(SMALL, judged, 0, lambda text: None):
        steps.append(len(trained))
        trained.clear()
        sampled.clear()
        assert model.sample(7, 0).shape == (7, 1, 8, 8)
        assert sampled == [7] * model.budget, model.name
        models.append((model.name, model.budget))
    total = 2 * SMALL.few_iterations * SMALL.few_steps
    assert steps == [total] * 5 + [0]  # one SGM of VP for all numbers of steps
    assert sorted(models) == sorted((name, n) for name in few_steps.METHODS for n in SMALL.budgets)


def test_the_words_on_few_steps_follow_the_numbers_and_their_standard_errors():
    def rows(*values, deviation=0.0):
        names = [(m, n) for m in ("DSB", "SGM, VP") for n in (5, 10)]
        return [
            {"model": m, "evaluations": n, "energy": [v, deviation], "recognised": [v, deviation]}
            for (m, n), v in zip(names, values, strict=True)
        ]

    text = report._seen(rows(0.1, 0.05, 0.3, 0.2), (5, 10), 4)
    assert "nearest is DSB at 5; DSB at 10 steps" in text
    assert (
        "Against SGM, VP DSB is nearer at 5 and 10 steps, farther at no number of steps, and with 5 steps no farther"
        in text
    )
    assert "less often at 5 and 10 steps." in text
    text = report._seen(rows(0.4, 0.25, 0.3, 0.2), (5, 10), 4)
    assert "more often than those of SGM, VP at 5 and 10 steps, less often at no number of steps." in text
    assert "nearest is SGM, VP at 5; SGM, VP at 10 steps" in text
    assert "nearer at no number of steps, farther at 5 and 10 steps, and with fewer steps always farther" in text
    for deviation, level in ((0.05, True), (0.03, False)):  # a gap of 0.05 beside 2 sqrt(2/4) deviations
        text = report._seen(rows(0.35, 0.3, 0.3, 0.25, deviation=deviation), (5, 10), 4)
        assert ("SGM, VP at 5 (no farther within the error: DSB)" in text) is level
        assert ("farther at no number of steps" in text) is level


def test_what_a_coupling_saves_is_said_of_translations_alone():
    """Digits that stay as they are save all that a pairing can, and are no translations."""
    t = {"real": {"8": {"energy": [0.0, 0.01]}}, "untranslated": {"energy": 2.0}}
    row = {"method": "DSB", "to": 8, "recognised": [0.9, 0.0], "energy": [0.1, 0.0], "moved": [0.1, 0.0],
           "dealt": [0.5, 0.0], "repaired": [0.1, 0.0]}  # fmt: skip
    text = report._kept(row, t)
    assert "100% is saved" in text
    assert "10.0 deviations" in text
    for other in ({"recognised": [0.4, 0.0]}, {"energy": [0.6, 0.0]}):
        text = report._kept({**row, **other}, t)
        assert "saved" not in text
        assert "too far" in text


def test_the_page_has_the_command_that_wrote_it(experiment):
    _, results = experiment
    for settings, seed, wanted in (
        (example.FULL, 0, "digits_bridge.py"),
        (example.FULL, 2, "digits_bridge.py --seed 2"),
        (example.QUICK, 0, "digits_bridge.py --quick"),
    ):
        read = json.loads(json.dumps(dataclasses.asdict(settings)))
        written = command(
            "digits_bridge.py", {**results, "settings": read, "seed": seed}, example.FULL, example.QUICK, "seed"
        )
        assert written == f"python examples/{wanted}"
    assert f"OMP_NUM_THREADS={results['threads']} python examples/digits_bridge.py --quick\n" in report.render(results)
