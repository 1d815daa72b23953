"""Several processes train and sample what one does, and stop together."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several_processes import free_port, results

from halfbridge.training import checkpoint
from halfbridge.training.sampling import sample_rows
from halfbridge.training.workers import current

SCRIPT = str(Path(__file__).with_name("several_processes.py"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that the script wrote to, with 1, 2 and 3 processes."""
    folder = tmp_path_factory.mktemp("processes")
    subprocess.run([sys.executable, SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    return folder


def assert_one_training(one, several, tolerance):
    """The same losses and averaged weights, relative to the largest of each tensor."""
    assert one["step"] == 20
    for found in several:
        assert found.keys() == one.keys()
        for name, value in one.items():
            assert ((found[name] - value).abs().max() <= tolerance * value.abs().max()).item(), name


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", ["classes", "dropout"])
def test_processes_train_what_one_trains_to_rounding(ran, case, count):
    """20 steps in float64, with micro-batches, clipping and class dropout; with dropout if the pieces are as many."""
    (one,) = results(ran, case, 1, 1)
    several = results(ran, case, count, count)
    assert_one_training(one, several, 1e-13)
    for found in several[1:]:
        assert all(torch.equal(found[name], value) for name, value in several[0].items())


@pytest.mark.parametrize("count", [2, 3])
def test_samples_have_the_same_bits_however_many_processes_make_them(ran, count):
    (one,) = results(ran, "samples", 1, 1)
    several = results(ran, "samples", count, count)
    seen = one.pop("seen")
    parts = [found.pop("seen") for found in several]
    assert sorted(torch.cat(parts).tolist()) == sorted(seen.tolist())
    assert all(len(part) < len(seen) for part in parts)
    for found in several:
        assert found.keys() == one.keys()
        assert all(torch.equal(found[name], value) for name, value in one.items())
    assert one["0 43"].shape == (43, 2)
    assert torch.equal(one["0 43"][8:24], one["5 20"][3:19])  # whole chunks are the same in any run


def test_all_processes_stop_where_one_meets_a_loss_that_is_not_finite(ran):
    for found in results(ran, "nan", 2, 2):
        assert found["error"].startswith("NotFinite: the loss is nan at step 3 of 20")
    assert checkpoint.steps(ran / "nan-2" / "checkpoints") == [0, 3]


def test_what_stops_process_0_stops_the_others(ran):
    one, other = (found["error"] for found in results(ran, "exists", 2, 2))
    assert one.startswith("FileExistsError")
    assert other == "FirstFailed: process 0 failed; its message says why"


def test_a_batch_that_cannot_be_shared_is_refused_with_its_numbers(ran):
    for found in results(ran, "uneven", 2, 2):
        assert (
            "batch_size = 10 is not a multiple of 4 = 2 processes x accumulate = 2; pass batch_size=12"
            in found["error"]
        )


def test_a_signal_to_one_process_saves_and_stops_all_and_they_go_on(ran):
    for found in results(ran, "stopped", 2, 2):
        assert found["error"].startswith("Interrupted: stopped by ")
        assert "after step 6 of 20" in found["error"]
    one, other = results(ran, "resumed", 2, 2)
    assert one["step"] == 20
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert len(list((ran / "stopped" / "samples").iterdir())) == 3  # steps 7, 14 and 20


def test_a_callback_of_one_process_ends_training_in_all_after_the_next_step(ran):
    one, other = results(ran, "ended", 2, 2)
    assert (one["step"], other["step"]) == (6, 6)
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_accelerate_launch_trains_and_samples_what_one_process_does(ran, tmp_path):
    launch = (
        "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), str(free_port())]
    subprocess.run([*command, SCRIPT, "--launched", str(tmp_path)], capture_output=True, text=True, check=True)
    assert_one_training(results(ran, "classes", 1, 1)[0], results(tmp_path, "classes", "launched", 2), 1e-13)
    (one,) = results(ran, "samples", 1, 1)
    for found in results(tmp_path, "samples", "launched", 2):
        assert all(torch.equal(found[name], one[name]) for name in one if name != "seen")


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (current().index, current().count, current().first) == (0, 1, True)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ValueError, match="WORLD_SIZE = 'many'"):
        current()


def test_several_processes_without_accelerate_are_told_the_extra(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"WORLD_SIZE = 2 .*pip install 'halfbridge\[distributed\]'"):
        current()


@pytest.mark.parametrize("change", [{"n": 0}, {"chunk": 0}, {"first": -1}])
def test_rows_that_cannot_be_sampled_are_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        sample_rows(None, None, **{"grid": [1.0, 0.5], "n": 3, "shape": (2,), "seed": 0, **change})
