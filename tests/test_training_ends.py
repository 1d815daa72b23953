"""However training ends, by a callback, an error, a signal or another process, no step is lost and nobody else's run harmed."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from small_training import network, train, weights

import halfbridge as hb
from halfbridge.training import checkpoint, fit_score, saved
from halfbridge.training.interrupts import Interrupted
from halfbridge.training.log import Log, Row, read


def steps(out):
    return checkpoint.steps(out / "checkpoints")


def same(one, two):
    return torch.equal(one.losses, two.losses) and torch.equal(weights(one.net), weights(two.net))


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_a_callback_that_raises_costs_no_step(tmp_path, error):
    def callback(state):
        if state.step == 5:
            raise error

    with pytest.raises(type(error)) as raised:
        train(out=tmp_path, steps=9, save_every=0, callback=callback, log_every=1)
    assert raised.value is error
    assert "saved in" in error.__notes__[-1]
    assert steps(tmp_path) == [0, 5]
    assert same(train(out=tmp_path, resume=True, steps=9, log_every=1), train(steps=9))
    assert [row.step for row in read(tmp_path / "log.csv")] == list(range(1, 10))


def test_a_picture_that_fails_costs_no_step(tmp_path, monkeypatch):
    def draw(*arguments, **options):
        raise MemoryError("too large")

    monkeypatch.setattr("halfbridge.training.pictures.draw", draw)
    with pytest.raises(MemoryError, match="too large"):
        train(out=tmp_path, steps=9, sample_every=6, sample_count=2, sample_steps=1)
    assert steps(tmp_path) == [0, 6]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"process": hb.Brownian()}, ValueError, "cannot draw samples: .*sample_every=0"),
        ({"sample_grid": "karras(rh=5)"}, ValueError, "sample_grid = 'karras.rh=5.'"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused_before_the_first_step(tmp_path, options, error, message):
    seen = []
    with pytest.raises(error, match=message):
        train(out=tmp_path / "run", sample_every=5, callback=seen.append, **options)
    assert not seen
    assert not (tmp_path / "run").exists()


def test_pictures_without_their_package_are_refused_before_the_first_step(tmp_path, monkeypatch):
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"need matplotlib: pip install 'halfbridge\[train\]', or sample_every=0"):
        train(out=tmp_path / "run", sample_every=5)
    assert not (tmp_path / "run").exists()


def test_a_callback_that_returns_true_ends_training_with_what_there_is(tmp_path):
    for truthy in (1, "yes", None):
        assert train(steps=3, callback=lambda state, answer=truthy: answer).step == 3
    fit = train(out=tmp_path, steps=9, save_every=0, callback=lambda state: state.step == 4)
    assert fit.step == 4
    assert same(fit, train(steps=4))
    assert steps(tmp_path) == [0, 4]
    assert [row.step for row in read(tmp_path / "log.csv")] == [4]
    assert same(train(out=tmp_path, resume=True, steps=9), train(steps=9))


def test_a_callback_may_look_at_the_network_in_eval_mode():
    modes = []

    class Watched(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(2, 2).double()

        def forward(self, x, t):
            modes.append((self.training, self.inner.training))
            return self.inner(x)

    train(Watched(), steps=4, callback=lambda state: state.net.eval())
    assert modes == [(True, True)] * 4


class Breaks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = torch.nn.Linear(2, 2).double(), 0

    def forward(self, x, t):
        self.calls += self.training  # not where one example is tried before the first step
        return self.inner(x) * (float("nan") if self.calls == 6 else 1.0)


def test_a_loss_that_is_not_finite_deletes_no_checkpoint_and_its_remedy_works(tmp_path):
    with pytest.raises(FloatingPointError, match=r"nan at step 5 of 9.*average=0.0\).net.requires_grad_\(\)"):
        train(Breaks(), out=tmp_path / "one", steps=9, keep=1, save_every=3)
    assert steps(tmp_path / "one") == [3, 5]
    with pytest.raises(FloatingPointError, match="nan at step 5 of 9"):
        train(Breaks(), out=tmp_path / "two", steps=9)
    mended = Breaks()
    mended.calls = 9
    net = saved.load(tmp_path / "two", net=mended, average=0.0).net.requires_grad_()
    assert train(net, out=tmp_path / "three", steps=9, lr=1e-4).step == 9


def test_an_ignored_sigint_stays_ignored_and_the_last_step_is_no_interruption(tmp_path):
    def interrupted(step):
        return lambda state: os.kill(os.getpid(), signal.SIGINT) if state.step == step else None

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(out=tmp_path / "one", callback=interrupted(2)).step == 5
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(Interrupted, match=r"after step 2 of 5.*resume it to go on"):
            train(out=tmp_path / "two", callback=interrupted(2))
        with pytest.raises(Interrupted, match=r"after step 5 of 5.*: it is complete"):
            train(out=tmp_path / "three", callback=interrupted(5))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_folder_is_trained_in_once_at_a_time(tmp_path):
    """flock is of an open file, so that another thread stands for another process."""
    errors = []

    def other():
        try:
            train(out=tmp_path, resume="auto", steps=9)
        except Exception as error:
            errors.append(error)

    def callback(state):
        if state.step == 2:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    assert same(train(out=tmp_path, steps=9, callback=callback), train(steps=9))
    (error,) = errors
    assert isinstance(error, BlockingIOError)
    assert f"is in use by process {os.getpid()} on " in str(error)
    assert same(train(out=tmp_path, resume=True, steps=12), train(steps=12))  # which ended, and let it go


def test_a_run_that_was_refused_lets_the_folder_go(tmp_path):
    train(out=tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"settings\.lr"):
        train(out=tmp_path, resume=True, steps=3, lr=0.5)
    assert train(out=tmp_path, resume=True, steps=3).step == 3


def test_a_log_without_space_says_so_and_the_state_is_saved(tmp_path, monkeypatch):
    real = Log.row

    def full(log, row):
        if row.step == 4:
            log._file.close()
            log._file = Path("/dev/full").open("a")  # noqa: SIM115
        real(log, row)

    monkeypatch.setattr(Log, "row", full)
    with pytest.raises(OSError, match=r"cannot write log.csv in .*run: No space left on device.*checkpoints there are"):
        train(out=tmp_path / "run", steps=9, log_every=1, save_every=0)
    monkeypatch.undo()
    assert steps(tmp_path / "run") == [0, 4]
    assert same(train(out=tmp_path / "run", resume=True, steps=9), train(steps=9))


def test_a_line_that_is_none_of_the_log_is_told_by_its_number(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(",".join(Row._fields) + "\n1,1,1,1,1,1,1\n5,0.1\n")
    with pytest.raises(ValueError, match=r"log.csv, line 3 is '5,0.1', no line of a log of training; delete that line"):
        read(path)


def test_training_does_not_mind_being_called_without_gradients():
    expected = train()
    for off in (torch.no_grad(), torch.inference_mode()):
        net, x = network(), hb.training.data.moons(64, 0).double()
        with off:
            fit = fit_score(net, x, hb.VP(), steps=5, batch_size=16)
        assert same(fit, expected)
