"""However a bridge's run ends, killed, out of space, by a signal or by divergence: no step is lost, and its folder says why."""

import errno
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, nets
from bridge_runs import CHAIN, STEPS, Killed, fail, state, train

from halfbridge.nets import MLP
from halfbridge.training import checkpoint
from halfbridge.training.bridge import (
    Direction,
    HalfBridge,
    Normal,
    PathLaw,
    ReferenceChain,
    ReferenceTransitions,
    load_bridge,
    room,
)
from halfbridge.training.bridge.monitors import Monitors
from halfbridge.training.bridge.network import NetworkTransitions
from halfbridge.training.bridge.residuals import NotFitted, variance_factors
from halfbridge.training.durable import write_file
from halfbridge.training.interrupts import Interrupted
from halfbridge.training.log import Log
from halfbridge.training.workers import Workers


def test_a_bridge_killed_at_any_moment_ends_in_the_bits_of_one_never_interrupted(tmp_path):
    """kill -9 in the first checkpoint, in a half-bridge and at its end, before and between its line of the monitors and its
    checkpoint, and while the cache's file is made; SIGTERM. Matched full covariances, dropout, BatchNorm, two averages, two
    micro-batches, a cache on the disk."""
    script = Path(__file__).with_name("killed_bridges.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["statuses"] == [-signal.SIGKILL] * 11 + [75, 0, 0], ran.stderr
    assert "Interrupted stopped by SIGTERM after step" in ran.stderr
    assert found["between"] == [0, 1, 3, 1, 3, 12]
    assert found["killed_at"] < 20
    assert found["steps"] == [20, 20]
    assert found["names"]
    assert found["tensors"] > 60
    assert found["different"] == []
    assert found["state"]
    assert found["log"]
    assert found["monitors"]
    assert found["rows"] == [12, 4]
    assert found["cache"] == []


class Burst(torch.nn.Module):
    """An MLP that returns NaN from its `after`-th call on, in that mode."""

    def __init__(self, after=10**9, training=True):
        super().__init__()
        self.net, self.after, self.mode, self.calls = nets(dtype=F64)[0], after, training, 0

    def forward(self, x, t):
        out = self.net(x, t)
        self.calls += self.training is self.mode
        return out * float("nan") if self.calls > self.after else out


@pytest.mark.parametrize(
    ("bursts", "at", "good", "why"),
    [
        ({"after": 12}, 16, 3, r"half-bridge 4 \(forward\) diverged: the loss is nan at step 1 of 5"),
        # its paths were finite where they were measured, by 4 walks of 3 steps after it was tried once
        (
            {"after": 1 + 12, "training": False},
            10,
            1,
            r"half-bridge 3 \(backward\) diverged: the forward chain is not fin",
        ),
        (
            {"after": 1, "training": False},
            10,
            1,
            r"half-bridge 2 \(forward\) diverged: the forward chain is not finite",
        ),
    ],
    ids=["loss", "teacher", "measured"],
)
def test_a_run_that_diverged_says_so_whenever_it_is_resumed_or_read(bursts, at, good, why, tmp_path):
    """In training, in the teacher's chain, which is the newest iterate's, and as it is measured."""
    out, seen = tmp_path / "run", []
    with pytest.warns(RuntimeWarning, match=why):
        made = train(out, both=[Burst(**bursts), Burst()], accumulate=2, keep=1)
    assert checkpoint.steps(out / "checkpoints")[-1] == at
    with pytest.warns(RuntimeWarning, match=f"{why}.* The last good iterate is returned"):
        again = train(out, True, both=[Burst(), Burst()], accumulate=2, keep=1, iterations=3, callback=seen.append)
    with pytest.warns(RuntimeWarning, match=f"{why}.* The last good iterate is returned"):
        read = load_bridge(out, forward_net=Burst(), backward_net=Burst())
    assert seen == []
    assert (made.diverged, again.diverged, again.stopped) == (True, True, made.stopped)
    assert (made.iterate.index, again.iterate.index) == (good, good)
    for to in ("end", "start"):
        x = NEAR0.sample(5, 0)
        wanted = made.translate(x, 1, to=to)
        assert wanted.isfinite().all()
        assert torch.equal(again.translate(x, 1, to=to), wanted)
        assert torch.equal(read.translate(x, 1, to=to), wanted)


def test_a_run_without_a_good_iterate_says_why_when_resumed_and_read(tmp_path):
    for resume in (False, True):
        with (
            pytest.warns(RuntimeWarning, match="half-bridge 1"),
            pytest.raises(
                FloatingPointError, match=r"the loss is nan at step 0 of 5.*no iterate but the reference is good"
            ),
        ):
            train(tmp_path / "run", resume, both=[Burst(), Burst(0)])
    with pytest.raises(ValueError, match=r"has finished no half-bridge yet; half-bridge 1 .* the loss is nan"):
        load_bridge(tmp_path / "run", forward_net=Burst(), backward_net=Burst())


def full(path, data):
    """`write_file` on a disk that is full from the monitors' third version on: those at the start and of the first half-bridge."""
    if path.name == "monitors.csv" and data.count(b"\n") == 3:
        raise OSError(errno.ENOSPC, "No space left on device")
    write_file(path, data)


def no_row(log, row):
    if row.step == 8:
        log._file.close()
        log._file = Path("/dev/full").open("a")  # noqa: SIM115
    ROW(log, row)


ROW = Log.row


@pytest.mark.parametrize(
    ("place", "fails", "at", "error", "message"),
    [
        ("halfbridge.training.bridge.bridge_folder.write_file", full, 10, OSError, "cannot write monitors.csv in .*: No space"),
        ("halfbridge.training.log.Log.row", no_row, 8, OSError, "cannot write log.csv in .*: No space left"),
        ("halfbridge.training.bridge.bridge_loop.plot_samples", lambda *a: 1 / 0, 5, ZeroDivisionError, "division"),
    ],
    ids=["monitors", "log", "picture"],
)  # fmt: skip
def test_what_cannot_be_written_costs_no_step(place, fails, at, error, message, tmp_path, monkeypatch):
    out, plots = tmp_path / "run", at == 5
    monkeypatch.setattr(place, fails)
    with pytest.raises(error, match=message) as raised:
        train(out, save_every=0, iterations=1, plots=plots)
    assert raised.value.__notes__ == [f"the run is saved in {out}, at step {at}"]
    assert checkpoint.steps(out / "checkpoints")[-1] == at
    monkeypatch.undo()
    train(out, True, save_every=0, iterations=1)
    train(tmp_path / "whole", iterations=1)
    assert state(out) == state(tmp_path / "whole")


def test_a_callback_that_fails_at_the_last_step_costs_none_and_the_kernels_are_taken_when_resumed(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed) as raised:
        train(out, iterations=1, at=10, how=fail)
    assert raised.value.__notes__ == [f"the run is saved in {out}, at step 10"]
    train(out, True, iterations=1)
    train(tmp_path / "whole", iterations=1)
    assert state(out) == state(tmp_path / "whole")


@pytest.mark.parametrize(
    ("index", "left"), [(1, "after step 5;.*: resume it to go on"), (2, "after step 10;.*: it is complete")]
)
def test_a_signal_while_an_iterate_is_measured_stops_after_that(index, left, tmp_path, monkeypatch):
    measure = Monitors.measure

    def signalled(monitors, now, *rest):
        if now.index == index:
            signal.raise_signal(signal.SIGTERM)
        return measure(monitors, now, *rest)

    monkeypatch.setattr(Monitors, "measure", signalled)
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM {left}"):
        train(tmp_path / "run", iterations=1)
    monkeypatch.undo()
    train(tmp_path / "run", True, iterations=1)
    train(tmp_path / "whole", iterations=1)
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_a_signal_while_a_run_diverges_is_not_lost(tmp_path, monkeypatch):
    measure, why = Monitors.measure, r"half-bridge 2 \(forward\) diverged: the forward chain is not finite"

    def signalled(monitors, now, *rest):
        if now.index == 2:
            signal.raise_signal(signal.SIGTERM)
        return measure(monitors, now, *rest)

    monkeypatch.setattr(Monitors, "measure", signalled)
    with (
        pytest.warns(RuntimeWarning, match=why),
        pytest.raises(Interrupted, match=f"stopped by SIGTERM after step 10; the run is saved in .*: {why}"),
    ):
        train(tmp_path / "run", both=[Burst(after=1, training=False), Burst()], iterations=1)


def test_a_config_that_was_edited_changes_no_bridge_that_is_read(tmp_path):
    """The checkpoint's own, which its SHA-256 covers, is gone by; and a reference that is given must be that one."""
    out = tmp_path / "run"
    train(out, iterations=1)
    whole = (out / "config.json").read_text()
    for old, new, message in [
        ('"transitions": "exact"', '"transitions": "euler"', "reference.transitions = 'euler' but was 'exact'"),
        ('"theta": 0.5', '"theta": 0.4', "reference.process.theta = 0.4 but was 0.5"),
        ('"hidden": 8', '"hidden": 9', "_net.hidden = 9 but was 8"),
        ('"batch_size": 8', '"batch": 8', "config.json is no run's config: there is no setting 'batch'"),
    ]:
        assert old in whole
        (out / "config.json").write_text(whole.replace(old, new))
        with pytest.raises(ValueError, match=f"{message}.*; restore "):
            load_bridge(out)
        with pytest.raises(ValueError, match=f"{message}.*; restore "):
            train(out, True, iterations=1)
    (out / "config.json").write_text(whole)
    assert load_bridge(out, reference=CHAIN).reference == CHAIN
    with pytest.raises(
        ValueError, match=r"the reference of the run in .* has another .*transitions = 'euler' but was 'ex"
    ):
        load_bridge(out, reference=ReferenceChain(ONE, 3, "euler"))


class Two(Workers):
    count = 2


def test_a_network_that_cannot_be_trained_leaves_no_folder(tmp_path, monkeypatch):
    class Narrow(MLP):
        def forward(self, x, t):
            return super().forward(x, t)[:, :1]

    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"shape \(1, 1\) for a state of shape \(1, 2\) \(from `backward_net`\)"):
        train(out, both=[nets(dtype=F64)[0], Narrow(2, hidden=8).double()])
    with pytest.raises(ValueError, match="`forward_net` is float16, where Adam's epsilon"):
        train(both=[net.half() for net in nets()], start=NEAR0, end=NEAR1)
    with pytest.raises(ValueError, match=r"precision = 'bfloat16' keeps .* `forward_net` is torch\.float64"):
        train(out, precision="bfloat16")
    normed = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).double()
    monkeypatch.setattr("halfbridge.training.bridge.fit.current", Two)
    with pytest.raises(ValueError, match="`backward_net` cannot be trained by several processes: 1 is a BatchNorm1d"):
        train(out, both=[nets(dtype=F64)[0], normed])
    assert not out.exists()


def test_a_cache_larger_than_its_limit_goes_to_the_disk_with_a_notice_and_trains_the_same(tmp_path):
    size = 4 * 8 * 2 * 8  # states of 8 paths of 3 steps in the plane, float64
    options = {"iterations": 1, "variance": "matched", "form": "full"}
    with pytest.warns(
        RuntimeWarning, match=f"has {size} bytes, more than cache_limit = {size - 1}: it goes to the disk"
    ):
        train(tmp_path / "disk", cache_limit=size - 1, cache_folder=tmp_path / "cache", **options)
    assert list((tmp_path / "cache").iterdir()) == []
    train(tmp_path / "memory", cache="memory", **options)
    assert state(tmp_path / "disk") == state(tmp_path / "memory")


def test_the_notice_of_a_cache_on_the_disk_is_at_the_call_of_fit_bridge():
    with pytest.warns(RuntimeWarning, match="goes to the disk") as told:
        train(cache_limit=1, iterations=1)
    assert [Path(one.filename).name for one in told] == ["bridge_runs.py"]


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_cache_is_where_it_is_asked_to_be_and_on_the_disk_beside_what_the_run_writes(where, tmp_path, monkeypatch):
    places, mapped = [], room._mapped
    monkeypatch.setattr(room, "_mapped", lambda *a: (places.append(a[-1]), mapped(*a))[1])
    train(tmp_path / "run", cache=where, iterations=1, cache_limit=1)
    train(tmp_path / "other", cache=where, iterations=1, cache_folder=tmp_path / "cache")
    train(cache=where, iterations=1)
    wanted = [tmp_path / "run", tmp_path / "cache", Path(tempfile.gettempdir())]
    assert places == (wanted if where == "disk" else [])


def test_a_steps_order_is_looked_up_once_for_all_its_micro_batches(monkeypatch):
    seen, order = [], sys.modules["halfbridge.training.bridge.half_trainer"].shuffled
    monkeypatch.setattr(
        "halfbridge.training.bridge.half_trainer.shuffled", lambda *a: (seen.append(a[2]), order(*a))[1]
    )
    train(accumulate=4, iterations=1)
    assert len(seen) == 10


@pytest.mark.parametrize(
    ("form", "why"),
    [("full", "the covariance of step 0"), ("diagonal", "the forward network's variances at t"), ("scalar", "the forward")],
)  # fmt: skip
def test_new_kernels_that_leave_the_numbers_cost_no_iterate_but_their_own(form, why):
    """NaN beyond training, where covariances are taken on fresh paths: what they were taught by was fitted, and measured. In 5
    dimensions, where LAPACK has no eigenvalues of a NaN matrix."""

    class Lost(MLP):
        def forward(self, x, t):
            bad = not self.training and len(x) == 40  # the paths of the covariances
            return super().forward(x, t) * (float("nan") if bad else 1.0)

    ends = {name: Normal((5,), dtype=F64, mean=mean) for name, mean in (("start", 0.0), ("end", 1.0))}
    both = [kind(5, hidden=8, depth=1).double() for kind in (Lost, MLP)]
    with pytest.warns(RuntimeWarning, match=rf"half-bridge 2 \(forward\) diverged: {why}"):
        made = train(both=both, variance="matched", form=form, refresh=5, cache_paths=4, **ends)
    assert made.iterate.index == 1
    assert len(made.monitors) == 1
    half = HalfBridge(0, PathLaw(NEAR0, ReferenceTransitions(CHAIN)))
    means = NetworkTransitions(CHAIN, Direction.BACKWARD, lambda x, t: x * float("nan"))
    with pytest.raises(NotFitted, match=r"the means of step 0 \(backward\) are not finite on 40 fresh paths"):
        variance_factors(half, means, 40, 0)


@pytest.mark.parametrize("method", ["dsb", "dsbm"])
def test_a_refresh_longer_than_a_half_bridge_is_one_that_never_comes(method):
    """To the bits, of every half-bridge; and of a matched network's variances, where no row is used twice, none are corrected."""
    options = {"method": method, "cache_paths": 40, "variance": "matched"}
    made = [train(refresh=refresh, **options) for refresh in (STEPS, STEPS + 20, 10**17, (1 << 62) - 1)]
    for one in made:
        assert one.backward.factors is None
        for losses, wanted in zip(one.losses, made[0].losses, strict=True):
            assert torch.equal(losses, wanted)
    assert train(**{**options, "cache_paths": 10}, refresh=10**9).backward.factors is not None
