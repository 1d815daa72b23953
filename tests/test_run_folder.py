"""What a run leaves in its folder: the state before a step that failed, averages, logs, pictures."""

import csv
import math
import sys

import pytest
import torch
from small_training import network, train, weights

import halfbridge as hb
from halfbridge.solvers import names
from halfbridge.training import saved
from halfbridge.training.settings import Settings


class Breaks(torch.nn.Module):
    """Goes wrong in its fourth step: its output, or its gradient alone."""

    def __init__(self, what):
        super().__init__()
        torch.manual_seed(0)
        self.what, self.calls = what, 0
        self.inner = torch.nn.Linear(2, 2).double()
        self.norm = torch.nn.BatchNorm1d(2).double()
        self.register_buffer("total", torch.zeros(2, dtype=torch.float64))

    def forward(self, x, t):
        self.calls += self.training
        out = self.norm(self.inner(x))
        if self.calls == 4:
            out = out * math.nan if self.what == "loss" else out + 0.0 * (out - out.detach()).abs().sqrt()
        if self.training:
            self.total += out.detach().sum(0)
        return out


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_leaves_a_checkpoint(tmp_path, what):
    before = []
    net = Breaks(what)
    message = "the loss is nan at step 3 of 9" if what == "loss" else "its gradient's norm nan at step 3 of 9"
    with pytest.raises(FloatingPointError, match=f"{message}; lower lr .*saved in .*run, beside") as stopped:
        train(net, steps=9, out=tmp_path / "run", callback=lambda s: before.append(dict(clone(s.net))), save_every=2)
    assert str(tmp_path / "run") in str(stopped.value)
    for state in (net.state_dict(), saved.load(tmp_path / "run", net=Breaks(what), average=0.0).net.state_dict()):
        assert all(torch.equal(state[name], value) for name, value in before[-1].items())
    assert saved.load(tmp_path / "run", net=Breaks(what)).step == 3


def clone(net):
    return [(name, value.clone()) for name, value in net.state_dict().items()]


def test_a_run_is_loaded_with_its_averages(tmp_path):
    fit = train(out=tmp_path, ema_decay=(0.9, 0.5), labels=hb.VP().half_log_snr)
    for decay in (0.9, 0.5):
        found = saved.load(tmp_path, average=decay)
        assert torch.equal(weights(found.net), weights(fit.nets[decay]))
    x = torch.ones(3, 2, dtype=torch.float64)
    assert torch.equal(saved.load(tmp_path).field.noise(0.3, x), fit.field.noise(0.3, x))


def test_the_log_has_a_line_every_so_often_and_one_for_the_last_step(tmp_path, capsys):
    fit = train(out=tmp_path, steps=11, log_every=4, progress=True, warmup=5)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 8, 11]
    for row in rows:
        step = int(row["step"])
        assert float(row["loss"]) == fit.losses[step - 1].item()
        assert float(row["smoothed"]) == fit.losses[:step].mean().item()
        assert float(row["lr"]) == Settings(warmup=5).rate(step - 1)
        assert int(row["examples"]) == 16 * step
        assert float(row["gradient_norm"]) > 0.0
    shown = capsys.readouterr().err
    assert "11/11" in shown
    assert "step/s" in shown
    assert f"loss={fit.losses.mean().item():.4g}" in shown
    assert "examples=" in shown


def test_tensorboard_shows_each_step_once_after_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"tensorboard": True, "log_every": 2, "sample_every": 8, "sample_count": 4, "save_every": 4}
    train(out=tmp_path, steps=6, **options)
    for path in (tmp_path / "checkpoints").glob("step-000000006*"):
        path.unlink()  # as if it had been killed before
    fit = train(out=tmp_path, steps=8, resume=True, **options)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == [2, 4, 6, 8]
    assert [event.value for event in scalars] == pytest.approx([fit.losses[k].item() for k in (1, 3, 5, 7)], rel=1e-6)
    assert [image.step for image in events.Images("samples")] == [8]


def test_logs_that_need_an_extra_say_which(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'halfbridge\[train\]', or pass tensorboard=False"):
        train(out=tmp_path, tensorboard=True)


def test_pictures_are_drawn_of_the_average_from_the_same_start(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "halfbridge.training.pictures.draw", lambda samples, path, **rest: drawn.append((path, samples))
    )
    options = {
        "sample_every": 3,
        "sample_solver": "heun",
        "sample_grid": "karras",
        "sample_steps": 4,
        "sample_count": 6,
    }
    fit = train(network(classes=2), out=tmp_path, steps=6, seed=9, classes=torch.arange(64) % 2, **options)
    assert [path.name for path, _ in drawn] == ["step-000000003.png", "step-000000006.png"]
    field = hb.nets.as_field(fit.net, hb.VP(), classes=torch.arange(6) % 2)
    grid = hb.grids.karras(hb.VP(), 4)
    expected = hb.sample(field, names.solver("heun"), grid=grid, shape=(6, 2), seed=9, dtype=torch.float64)
    assert torch.equal(drawn[1][1], expected)
    assert not torch.equal(drawn[0][1], expected)
