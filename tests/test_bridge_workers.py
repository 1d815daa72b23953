"""Several processes train the bridge that one does, hold the same paths, and stop together."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several_processes import results

from halfbridge.training import checkpoint

SCRIPT = str(Path(__file__).with_name("several_bridges.py"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that the script wrote to, with 1, 2 and 3 processes."""
    folder = tmp_path_factory.mktemp("processes")
    subprocess.run([sys.executable, SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    return folder


def same(one, other):
    """Of tensors and strings, bit for bit (NaN where NaN)."""
    return one.keys() == other.keys() and all(
        torch.equal(value.nan_to_num(-1.0), other[name].nan_to_num(-1.0))
        if hasattr(value, "shape")
        else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize("case", ["mean", "full", "dsbm"])
def test_processes_train_what_one_trains_to_rounding(ran, case):
    """4 half-bridges of 6 steps in float64, two micro-batches, caches of 25 paths that are simulated anew: losses, monitors
    and both directions of the bridge, relative to the largest of each."""
    (one,) = results(ran, case, 1, 1)
    both = results(ran, case, 2, 2)
    assert same(*both)
    for name, value in one.items():
        if name != "stopped":
            gap = (both[0][name].double() - value).abs().nan_to_num().max()
            assert gap <= 1e-11 * value.double().abs().nan_to_num().max(), name
    assert not (ran / "cache").exists() or list((ran / "cache").iterdir()) == []


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_simulation_and_hold_the_rows_of_one_to_the_bit(ran, count):
    """Of a teacher whose rows do not depend on the batch; 13 paths in chunks of 8, shares of 4 and 3 that overlap."""
    (one,) = results(ran, "caches", 1, 1)
    several = results(ran, "caches", count, count)
    for found in several:
        simulated = found.pop("simulated")
        assert (simulated < one["simulated"] * (0.7 if count == 2 else 0.5)).all()
    del one["simulated"]
    assert all(same(one, found) for found in several)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_paths_that_variances_are_brought_to(ran, count):
    (one,), several = results(ran, "factors", 1, 1), results(ran, "factors", count, count)
    for found in several:
        assert (found["simulated"] < one["simulated"] * (0.7 if count == 2 else 0.5)).all()
        torch.testing.assert_close(found["factors"], one["factors"], rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_say_what_one_says_where_a_path_leaves_the_numbers_in_one_share(ran, count):
    (one,) = results(ran, "far", 1, 1)
    assert one["error"].startswith("FloatingPointError: the backward chain is not finite: 2 of 16 entries")
    assert results(ran, "far", count, count) == [one] * count


def test_all_processes_stop_at_the_last_good_iterate_where_one_diverges(ran):
    """In one process's loss, and in the monitors, which process 0 alone takes."""
    for case, why in (("broken", "the loss is nan at step 2 of 6"), ("measured", "the chain is far out")):
        both = results(ran, case, 2, 2)
        measured = [found.pop("measured", None) for found in both]
        assert measured == ([[1, 2, 3], []] if case == "measured" else [None, None])
        assert same(*both)
        assert both[0]["stopped"].startswith(f"half-bridge 3 (backward) diverged: {why}")
        assert both[0]["index"] == 2


def test_a_signal_to_one_process_saves_and_stops_all_and_they_go_on(ran):
    for found in results(ran, "stopped", 2, 2):
        assert found["error"].startswith("Interrupted: stopped by ")
        assert "after step 9; " in found["error"]
    both = results(ran, "resumed", 2, 2)
    assert [int(found.pop("drawn")) for found in both] == [
        2 * 3,
        0,
    ]  # monitors and samples of the last 3, by process 0 alone
    assert same(*both)
    assert both[0]["stopped"] == "iterations"
    assert same(both[0], results(ran, "full", 2, 2)[0])
    assert checkpoint.steps(ran / "stopped" / "checkpoints")[-1] == 24


def test_a_callback_of_one_process_at_a_half_bridges_last_step_ends_training_in_all(ran):
    """Its kernels are taken first; none goes on to the next one, to wait for the others."""
    both = results(ran, "ended", 2, 2)
    assert same(*both)
    assert both[0]["stopped"] == "the callback"
    assert both[0]["index"] == 2
