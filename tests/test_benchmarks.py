"""The benchmarks: what is timed is what was checked, how often, on which clock, and what a row says of it."""

import csv
import importlib.util
import math
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import combine, gpu_timing, hutchinson_probe, kernels, pairs
from benchmarks.case import KERNELS, MOST, Case, timed
from halfbridge.kernels import dispatch

OPERATORS = {"edm_precondition": ("edm_input", "edm_output")}


def made(ours, peer, bytes=64):
    return Case("made", ours, peer, bytes, 0.0, "absolute", "combine")


def cases(kernel):
    return importlib.import_module(f"benchmarks.{kernel}").cases("cpu")


def another_backend(monkeypatch, kernel, function):
    """Let `function` be what the CPU prefers for that kernel; the reference stays."""
    key = (kernel, "numba")
    monkeypatch.setitem(dispatch.TABLE, key, dispatch.TABLE[kernel, "reference"])
    monkeypatch.setitem(dispatch._loaded, key, function)


@pytest.mark.parametrize(
    ("kernel", "operator"), [(kernel, operator) for kernel in KERNELS for operator in OPERATORS.get(kernel, (kernel,))]
)
def test_a_kernel_that_is_off_is_not_timed(monkeypatch, kernel, operator):
    """By 1 %, in every result alike: the check must compare with something other than what it checks."""
    right = dispatch.load(operator, "reference")

    def wrong(*arguments, **named):
        result = right(*arguments, **named)
        results = result if isinstance(result, tuple) else (result,)
        found = [t for t in results if isinstance(t, torch.Tensor)]
        written = arguments[0] if isinstance(arguments[0], torch.Tensor) else arguments[0][0][0]  # of lists of averages
        for t in found or [written]:
            t.mul_(1.01)
        return result

    another_backend(monkeypatch, operator, wrong)
    with pytest.raises(RuntimeError, match=r"is off by .*: mend it, then time it"):
        list(cases(kernel))


@pytest.mark.parametrize("kernel", ["langevin", "hutchinson_dot"])
def test_normals_of_another_seed_are_not_timed(monkeypatch, kernel):
    right = dispatch.load("normal", "reference")
    another_backend(monkeypatch, "normal", lambda out, seed, *rest: right(out, seed + 1, *rest))
    with pytest.raises(RuntimeError, match=f"{kernel} at .* is off by"):
        list(cases(kernel))


def test_noise_of_another_draw_is_not_timed(monkeypatch):
    """Also where `combine` and `normal` are wrong alike."""
    right, fill = dispatch.load("combine", "reference"), dispatch.load("normal", "reference")
    another_backend(monkeypatch, "combine", lambda v, c, noise, out: right(v, c, noise and noise._replace(draw=9), out))
    another_backend(monkeypatch, "normal", lambda out, seed, draws, *rest: fill(out, seed, [9] * len(draws), *rest))
    with pytest.raises(RuntimeError, match=r"combine on cpu at .* is off by"):
        combine.checked_error(combine.case((64, 3072), torch.float32, 2, noise=True), "cpu")


def test_a_row_names_the_backend_that_ran(monkeypatch):
    """numba for `combine` from the first call on, the reference for kernels that numba has not."""
    pytest.importorskip("numba")
    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setattr(kernels, "cpu_bandwidth", lambda: 1e10)
    monkeypatch.setattr(kernels, "timed", lambda case: pairs.Pair((1, 1, 1), (1, 1, 1), (1, 1, 1)))
    found = {(row.kernel, row.form): row.backend for row in kernels.rows("cpu", ("combine", "edm_precondition"))}
    assert found == {
        ("combine", "ours"): "numba", ("combine", "eager"): "torch",
        ("edm_precondition", "ours"): "reference", ("edm_precondition", "eager"): "torch",
    }  # fmt: skip


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now, self.calls = 0.0, 0

    def read(self):
        return self.now

    def call(self, seconds):
        def run():
            self.now += seconds
            self.calls += 1

        return run


@pytest.mark.parametrize(("seconds", "calls"), [(0.1, 1), (1e-3, 10), (1e-7, MOST)])
def test_a_turn_has_as_many_calls_as_fit_whatever_they_move(monkeypatch, seconds, calls):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.read)
    pair = timed(made(clock.call(seconds), clock.call(seconds)))
    assert clock.calls == 2 * (2 + 16 * calls)
    assert pair.ours[1] == pytest.approx(1e3 * seconds)


class Device:
    """A GPU on which a call takes 7 us to launch and 5 us to run, after whatever was queued; the host queues and goes on."""

    def __init__(self):
        self.host = self.idle_at = 0.0  # microseconds
        self.done = []

    def queue(self, what, runs, launch):
        def run():
            self.host += launch
            self.idle_at = max(self.idle_at, self.host) + runs
            self.done.append(what)

        return run

    def wait(self):
        self.host = max(self.host, self.idle_at)

    def fake(self, monkeypatch):
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(device.idle_at, device.host)
                device.done.append("event")

            def synchronize(self):
                device.wait()

            def elapsed_time(self, end):
                return (end.at - self.at) / 1e3

        class Flush:
            zero_ = staticmethod(device.queue("flush", 200.0, 1.0))

        monkeypatch.setattr(gpu_timing.torch, "empty", lambda *size, **options: Flush)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", device.wait)
        monkeypatch.setattr(time, "perf_counter", lambda: device.host * 1e-6)


def test_device_time_is_of_the_call_after_a_flush(monkeypatch):
    device = Device()
    device.fake(monkeypatch)
    times = gpu_timing.microseconds(device.queue("call", 5.0, 7.0), calls=4)
    assert times == pytest.approx([5.0] * 4)
    assert device.done == ["flush", "event", "call", "event"] * 9


def test_calls_in_a_row_pay_for_their_launches(monkeypatch):
    device = Device()
    device.fake(monkeypatch)
    times = gpu_timing.in_a_row(device.queue("call", 5.0, 7.0), turns=3, calls=100)
    assert times == pytest.approx([7.05] * 3)  # the last call's 5 us run after all were launched
    assert device.done == ["call"] * 400


def test_on_a_gpu_each_form_is_timed_on_both_clocks(monkeypatch):
    device = Device()
    device.fake(monkeypatch)
    ours, peer = device.queue("ours", 5.0, 7.0), device.queue("peer", 10.0, 21.0)
    monkeypatch.setattr(gpu_timing, "as_graph", lambda call: device.queue("graph", 5.0, 1.0))
    monkeypatch.setattr(gpu_timing, "compiled", lambda call: None)
    found = {row.form: row for row in kernels.on_gpu(made(ours, peer))}
    assert list(found) == ["eager", "ours", "graph"]  # nothing was compiled, so no row says that it was
    assert [row.times[1] for row in found.values()] == pytest.approx([10.0, 5.0, 5.0])
    assert [row.of_eager for row in found.values()] == pytest.approx([1.0, 0.5, 0.5])
    assert [row.in_a_row for row in found.values()] == pytest.approx([21.2, 7.1, 5.02])
    assert found["graph"].in_a_row_of_eager == pytest.approx(5.02 / 21.2)


def test_a_graph_is_captured_after_one_call_beside_it(monkeypatch):
    log = []

    class Noted:
        def __init__(self, name="graph"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def replay(self):
            log.append("replay")

        def __enter__(self):
            log.append(f"enter {self.name}")

        def __exit__(self, *_):
            log.append(f"leave {self.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda: Noted("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Noted("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Noted)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    gpu_timing.as_graph(lambda: log.append("call"))()
    side = ["side waits for main", "enter side", "call", "leave side", "main waits for side"]
    assert log == [*side, "enter graph", "call", "leave graph", "replay"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_peer_is_compiled_for_itself(kernel):
    """Also the ninth, after which torch gives up on a function that it compiles again and again."""
    found = [*islice(cases(kernel), 2)] * 5
    assert all(gpu_timing.compiled(case.peer, backend="eager") is not None for case in found)


def test_what_is_not_compiled_is_refused():
    with pytest.warns(RuntimeWarning, match=r"compiled nothing of .*; it gets no row"):
        assert gpu_timing.compiled(torch.compiler.disable(lambda: torch.ones(2)), backend="eager") is None


def git(folder, *command):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_that_of_the_benchmarks_and_says_whether_it_was_changed(tmp_path, monkeypatch):
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    for folder in (theirs, own):
        (folder / "benchmarks").mkdir(parents=True)
        (folder / "benchmarks/pairs.py").write_text(Path(pairs.__file__).read_text() + f"# {folder.name}\n")
        git(folder, "init")
        git(folder, "add", ".")
        git(folder, "commit", "-m", folder.name)
    spec = importlib.util.spec_from_file_location("pairs_of_its_own", own / "benchmarks/pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(own)
    commit = module.provenance().split("commit ")[1]
    monkeypatch.chdir(theirs)
    assert commit not in ("", "none")
    assert module.provenance().endswith(f"commit {commit}")
    (own / "benchmarks/pairs.py").write_text("changed\n")
    assert module.provenance().endswith(f"commit {commit}-dirty")
    monkeypatch.setenv("PATH", "")
    assert module.provenance().endswith("commit none")


def test_the_versions_of_a_gpu_are_those_of_its_compiler_and_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(pairs, "said", lambda program, *_: "570.1\n570.1" if program == "nvidia-smi" else "abc")
    monkeypatch.setattr(pairs, "version", lambda package: {"triton": "3.9"}.get(package, "1"))
    assert "triton 3.9" in pairs.provenance()
    assert "CUDA 12.8, driver 570.1, python" in pairs.provenance()


def test_rows_are_kept_when_a_later_kernel_fails(tmp_path, monkeypatch):
    def failing(device):
        yield next(iter(real(device)))
        raise RuntimeError("the second case is off")

    real = hutchinson_probe.cases
    monkeypatch.setattr(hutchinson_probe, "cases", failing)
    monkeypatch.setattr(kernels, "cpu_bandwidth", lambda: 1e10)
    with pytest.raises(RuntimeError, match="the second case is off"):
        kernels.main(["hutchinson_probe", "--device", "cpu", "--out", str(tmp_path)])
    with (tmp_path / "kernels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["form"] for row in rows] == ["ours", "eager"]
    assert {row["error_unit"] for row in rows} == {"wrong signs"}
    assert all(math.isfinite(float(row["in_a_row"])) for row in rows)
    assert np.isclose(float(rows[1]["in_a_row"]), float(rows[1]["microseconds"]))
