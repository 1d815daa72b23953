"""Runs of bridges that are stopped go on to the same bits; runs that are other runs are refused."""

import signal

import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, nets
from bridge_runs import CHAIN, STEPS, Killed, fail, kill, rows, state, train

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import checkpoint
from halfbridge.training.bridge import Examples, Normal, ReferenceChain, load_bridge
from halfbridge.training.interrupts import Interrupted

KINDS = {
    "mean": {},
    "score": {"target": "score", "iterations": 3},
    "diagonal": {
        "variance": "matched",
        "ema_decay": (0.9, 0.5),
        "accumulate": 2,
        "warmup": 2,
        "schedule": "cosine",
        "refresh": 4,
    },
    "full after a score": {"variance": "matched", "form": "full", "first": NEAR0.field(ONE), "refresh": 2},
    "dsbm": {"method": "dsbm", "coupling": "ot", "coupling_size": 4, "refresh": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_in_any_half_bridge_ends_in_the_bits_of_one_never_interrupted(kind, tmp_path):
    """Stopped by an exception right after steps of all half-bridges, before and after checkpoints, and begun again with networks
    that start elsewhere: the networks' states, averages, optimisers, covariances, monitors and logs are the same."""
    whole = train(tmp_path / "whole", **KINDS[kind])
    out = tmp_path / "killed"
    attempts = [*([] if "first" in KINDS[kind] else [2, 4, 5]), 7, 8, 10, 13, 20]  # that one does not train the first
    for i, at in enumerate(attempts):
        with pytest.raises(Killed):
            train(out, "auto", at, kill, seed_of_nets=0 if i == 0 else 7 + i, **KINDS[kind])
    last = train(out, True, seed_of_nets=99, **KINDS[kind])
    assert state(out) == state(tmp_path / "whole")
    assert rows(out / "log.csv") == rows(tmp_path / "whole" / "log.csv")
    assert rows(out / "monitors.csv") == rows(tmp_path / "whole" / "monitors.csv")
    x = NEAR0.sample(5, 0)
    for to in ("end", "start"):
        assert torch.equal(last.translate(x, 1, to=to), whole.translate(x, 1, to=to))


@pytest.mark.parametrize("at", [7, 10])
def test_a_signal_saves_and_says_how_to_go_on(at, tmp_path):
    """In the middle of a half-bridge, and at its last step, where its kernels are taken first."""
    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"stopped by SIGINT after step {at}; .* resume it to go on"):
        train(tmp_path / "run", at=at, how=lambda: signal.raise_signal(signal.SIGINT))
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == at
    train(tmp_path / "run", True)
    assert state(tmp_path / "run") == state(tmp_path / "whole")
    assert whole.iterate.index == 4


def test_a_callback_that_fails_costs_no_step_and_one_that_says_so_ends_the_run(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed) as error:
        train(out, at=7, how=fail)
    assert error.value.__notes__ == [f"the run is saved in {out}, at step 7"]
    assert checkpoint.steps(out / "checkpoints")[-1] == 7
    ended = train(out, True, at=14, how=lambda: True)
    assert checkpoint.steps(out / "checkpoints")[-1] == 14
    assert (ended.stopped, ended.iterate.index) == ("the callback", 2)
    train(out, True)
    train(tmp_path / "whole")
    assert state(out) == state(tmp_path / "whole")


def test_a_run_in_use_or_with_a_changed_config_is_refused(tmp_path):
    out = tmp_path / "run"

    def again():
        with pytest.raises(BlockingIOError, match="is in use by process"):
            train(out, True)

    train(out, at=3, how=again, iterations=1)
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace('"transitions": "exact"', '"transitions": "euler"'))
    with pytest.raises(
        ValueError, match=r"config\.json is not what the checkpoint of step 10 was trained with: it has another"
    ):
        train(out, True)


def test_a_finished_run_takes_more_iterations_as_if_asked_for_them_at_first(tmp_path):
    train(tmp_path / "one", iterations=1)
    more = train(tmp_path / "one", True, iterations=2, seed_of_nets=3, save_every=0)
    train(tmp_path / "two", iterations=2)
    assert state(tmp_path / "one") == state(tmp_path / "two")
    again = train(tmp_path / "one", True, iterations=2)
    x = NEAR1.sample(5, 0)
    assert torch.equal(again.translate(x, 1, to="start"), more.translate(x, 1, to="start"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_is_read_back_from_its_folder_in_the_same_bits(kind, tmp_path):
    made = train(tmp_path / "run", **KINDS[kind])
    found = load_bridge(tmp_path / "run")
    assert found.reference == CHAIN
    for to in ("end", "start"):
        x = NEAR0.sample(5, 0)
        assert torch.equal(found.translate(x, 1, to=to), made.translate(x, 1, to=to))
    assert not any(p.requires_grad for p in found.forward.net.parameters())


def test_a_bridge_that_cannot_be_read_back_says_what_to_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run's folder: it has no config\.json"):
        load_bridge(tmp_path)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, at=2, how=kill)
    with pytest.raises(ValueError, match="has finished no half-bridge yet"):
        load_bridge(out)
    train(out, True, iterations=1)
    with pytest.raises(
        ValueError, match=r"forward_net of the run in .* is of another architecture: 'time\.frequencies' is .4. there"
    ):
        load_bridge(out, forward_net=nets(hidden=6, dtype=F64)[0])
    score = tmp_path / "score"
    hb.training.fit_score(nets()[0], NEAR0.sample(8, 0).float(), hb.VP(), steps=1, batch_size=4, out=score)
    with pytest.raises(ValueError, match=r"is not of fit_bridge; halfbridge\.training\.load reads those of fit_score"):
        load_bridge(score)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": ReferenceChain(ONE, 3, "euler")}, r"reference.transitions = 'euler' but was 'exact'"),
        ({"reference": ReferenceChain(hb.OU(0.4, 1.0, 1.0), 3)}, r"reference.process.theta = 0.4 but was 0.5"),
        ({"reference": ReferenceChain(ONE, 4)}, "reference.times"),
        ({"end": Normal((2,), dtype=F64)}, "end.type = 'Normal' but was 'Gaussian'"),
        ({"end": Examples(NEAR1.sample(50, 0))}, "end.type = 'Examples' but was 'Gaussian'"),
        ({"start": NEAR1}, "start.sha256"),
        ({"target": "drift"}, "regression.target = 'drift' but was 'mean'"),
        ({"cache_paths": 9}, "cache.paths = 9 but was 8"),
        ({"steps": 6}, "settings.steps = 6 but was 5"),
        ({"lr": 0.1}, "settings.lr = 0.1 but was 0.001"),
        ({"monitor_paths": 17}, "monitor_paths = 17 but was 16"),
    ],
)  # fmt: skip
def test_another_run_is_refused(changes, message, begun):
    with pytest.raises(ValueError, match=f"the run in .* has another configuration: .*{message}"):
        train(begun, True, **changes)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    out = tmp_path_factory.mktemp("bridges") / "run"
    train(out, iterations=1, steps=STEPS)
    return out


def scaled(factor):
    """A score with noise of another size."""
    field = NEAR0.field(ONE)
    return field.with_function(lambda t, x: field.evaluate(t, x) * factor)


def test_another_first_score_is_refused_on_resume_and_when_read_and_the_same_to_rounding_is_not(tmp_path):
    out, x = tmp_path / "run", NEAR0.sample(5, 0)
    made = train(out, iterations=1, first=NEAR0.field(ONE))
    for first in (None, scaled(1.1), NEAR1.field(ONE)):
        with pytest.raises(ValueError, match=r"the run in .* has another configuration: regression.first"):
            train(out, True, first=first)
    for first in (scaled(1.1), NEAR1.field(ONE)):
        with pytest.raises(
            ValueError, match=r"the run in .* has another configuration: first.values.*; pass first= the score that"
        ):
            load_bridge(out, first=first)
    for first in (scaled(1.0), scaled(1.0 + 1e-4)):  # what another device may make of it
        read = load_bridge(out, first=first)
        torch.testing.assert_close(
            read.translate(x, 1, to="start"), made.translate(x, 1, to="start"), rtol=1e-3, atol=1e-3
        )
        assert train(out, True, iterations=1, first=first).iterate.index == 2


def test_a_score_that_went_on_or_away_is_refused_and_changes_no_bridge_that_was_made_from_it(tmp_path):
    score, out = tmp_path / "score", tmp_path / "run"

    def trained(steps, **options):
        torch.manual_seed(0)
        data = NEAR0.sample(8, 0).float()
        hb.training.fit_score(
            MLP(2, hidden=8, depth=1), data, ONE, steps=steps, batch_size=4, out=score, lr=0.1, **options
        )

    float32 = {"start": NEAR0.sample(9, 1).float(), "end": Normal((2,)), "both": nets(), "iterations": 1}
    trained(2)
    x = NEAR0.sample(5, 0).float()
    wanted = train(out, first=score, **float32).translate(x, 1, to="start")
    trained(9, resume=True)
    with pytest.raises(ValueError, match=r"the run in .* has another configuration: regression.first.values"):
        train(out, True, first=score, **float32)
    assert torch.equal(load_bridge(out).translate(x, 1, to="start"), wanted)
    score.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"`first` = '.*score': there is no file or folder"):
        train(out, True, first=score, **float32)
    assert torch.equal(load_bridge(out).translate(x, 1, to="start"), wanted)
    again = train(out, True, first=out / "first.safetensors", **float32)
    assert torch.equal(again.translate(x, 1, to="start"), wanted)
    trained_before = hb.training.load(out / "first.safetensors")
    assert (trained_before.step, trained_before.process) == (2, ONE)


def test_a_folder_with_a_run_is_not_begun_again(begun):
    with pytest.raises(FileExistsError, match="holds a run already; resume it"):
        train(begun)
