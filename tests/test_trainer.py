"""What a step of training does: pieces, optimiser, averages, classes, precision, objectives, logs, and how it fails."""

import copy
import csv
import math

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.solvers import names
from halfbridge.training import data, fit_score, objectives, saved
from halfbridge.training.data import Dataset
from halfbridge.training.data.order import shuffled
from halfbridge.training.noise import StepNoise
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import NotFinite, Trainer, training_mode
from halfbridge.training.workers import ALONE


def network(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return MLP(2, hidden=8, depth=1, **options).to(dtype)


def train(net=None, x=None, process=hb.VP(), **changes):  # noqa: B008
    net = network() if net is None else net
    x = data.moons(64, 0).to(next(net.parameters())) if x is None else x
    return fit_score(net, x, process, **{"steps": 5, "batch_size": 16, **changes})


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_micro_batches_give_the_step_of_the_whole_batch(accumulate):
    """Also which examples lose their class, clipping, and times that are stratified over the whole batch."""
    classes = torch.arange(64) % 3
    options = {"classes": classes, "class_dropout": 0.4, "clip": 0.3, "lr": 1e-2, "steps": 8}
    one, pieces = (train(network(classes=3), accumulate=k, **options) for k in (1, accumulate))
    assert torch.allclose(one.losses, pieces.losses, rtol=1e-12, atol=0.0)
    assert torch.allclose(weights(one.net), weights(pieces.net), rtol=1e-11, atol=1e-13)


def test_adamw_shrinks_the_weights_and_adam_adds_their_decay_to_the_gradient():
    """Clipped to nothing, the gradient of the loss moves nothing: what is left is the decay."""
    start = weights(network())
    for optimizer, expected in (("adamw", start * (1 - 1e-2 * 0.3)), ("adam", start - 1e-2 * start.sign())):
        net = network()
        train(net, steps=1, optimizer=optimizer, weight_decay=0.3, lr=1e-2, clip=1e-30)
        seen = start.abs() > 1e-3  # below, Adam's epsilon of 1e-8 shows beside 0.3 w
        assert torch.allclose(weights(net)[seen], expected[seen], rtol=0.0, atol=2e-6)


def test_steps_are_as_long_as_the_schedule_says():
    """Adam's first step moves each weight by the learning rate times |g| / (|g| + 1e-8), with both betas 0 every step."""
    lengths, last = [], []

    def callback(state):
        now = weights(state.net)
        if last:
            lengths.append((now - last[-1]).abs().max().item())
        last.append(now.clone())

    settings = Settings(steps=12, batch_size=16, lr=1e-2, warmup=4, schedule="cosine", betas=(0.0, 0.0))
    net = network()
    last.append(weights(net))
    fit_score(net, data.moons(64, 0).double(), hb.VP(), settings=settings, callback=callback)
    assert lengths == pytest.approx([settings.rate(k) for k in range(12)], rel=1e-4)


def test_each_decay_has_its_average_and_the_first_is_the_field():
    decays, sums = (0.5, 0.9), {}
    net = network()
    for decay in decays:
        sums[decay] = weights(net)

    def callback(state):
        for decay in decays:
            rate = min(decay, state.step / (state.step + 9))
            sums[decay] = rate * sums[decay] + (1 - rate) * weights(state.net)
        assert torch.allclose(weights(state.average), sums[0.5], rtol=1e-12, atol=1e-14)

    fit = train(net, ema_decay=decays, steps=30, callback=callback)
    assert list(fit.nets) == [0.5, 0.9]
    for decay in decays:
        assert torch.allclose(weights(fit.nets[decay]), sums[decay], rtol=1e-12, atol=1e-14)
    assert fit.net is fit.nets[0.5]
    assert fit.step == 30
    x = torch.ones(1, 2, dtype=torch.float64)
    assert torch.equal(fit.field.noise(0.5, x), fit.net(x, torch.full((1,), 0.5, dtype=torch.float64)))


def test_a_callback_sees_every_step():
    seen = []
    fit = train(steps=120, callback=seen.append, warmup=10)
    assert [state.step for state in seen] == list(range(1, 121))
    assert [state.loss for state in seen] == fit.losses.tolist()
    assert seen[119].smoothed == fit.losses[20:].mean().item()
    assert seen[9].smoothed == fit.losses[:10].mean().item()
    assert seen[3].lr == pytest.approx(4e-4, rel=1e-15)
    assert seen[6].examples == 7 * 16
    assert all(state.gradient_norm > 0.0 and state.seconds > 0.0 for state in seen)
    assert not seen[0].average.training


class Listens(MLP):
    """Notes the classes it is told in training."""

    def forward(self, x, t, classes):
        if self.training:
            self.told = [*getattr(self, "told", []), classes]
        return super().forward(x, t, classes)


def test_examples_come_with_their_classes_and_lose_them_by_chance():
    """Of n = 2000 a share p is lost, with standard error sqrt(p (1 - p) / n) = 0.01; 4 of them are allowed."""
    classes = torch.arange(64) % 3
    for p in (0.0, 0.25):
        net = Listens(2, hidden=8, depth=1, classes=3)
        train(net, classes=classes, class_dropout=p, steps=40, batch_size=50, seed=4)
        told = torch.cat(net.told)
        right = torch.cat([classes[shuffled(64, 4, step, 50)] for step in range(40)])
        lost = told == -1
        assert torch.equal(told[~lost], right[~lost])
        assert abs(lost.double().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / 2000)
    rows = StepNoise(4, 39, 50, torch.zeros(50, 2)).chance(0.25)
    assert torch.equal(lost[-50:], rows)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (None, {}, "the network has 3 classes and none are given; pass classes="),
        (torch.arange(63) % 3, {}, r"classes is \(63,\), torch.int64; pass an int64 tensor of shape \(64,\)"),
        (torch.arange(64.0) % 3, {}, r"classes is \(64,\), torch.float32"),
        (list(range(64)), {}, "classes is list"),
        (torch.arange(64) % 4, {}, r"classes hold 3; the network has 0 \.\. 2, and -1 means no class"),
        (torch.arange(64) % 3 - 2, {}, "classes hold -2"),
    ],
)
def test_classes_that_the_network_has_not_are_refused(classes, options, message):
    with pytest.raises(ValueError, match=message):
        train(network(classes=3), classes=classes, **options)


def test_classes_for_a_network_without_are_refused():
    with pytest.raises(ValueError, match="the network has none; build it with classes=2"):
        train(classes=torch.arange(64) % 2)
    with pytest.raises(ValueError, match=r"class_dropout = 0.1, but there are no classes; pass classes="):
        train(class_dropout=0.1)


def test_a_data_set_brings_its_classes_to_a_network_that_has_some():
    x = data.moons(64, 0)
    classes = (x[:, 0] > 0).long()
    known = Dataset(x, classes)
    one = train(network(classes=2), known)
    two = train(network(classes=2), x.double(), classes=classes)
    assert torch.equal(one.losses, two.losses)
    assert torch.equal(train(network(), known).losses, train(network(), x.double()).losses)


def test_half_precision_is_the_products_and_neither_the_weights_nor_the_loss():
    inside = []

    class Watched(MLP):
        def forward(self, x, t):
            inside.append((x.dtype, self.first(x).dtype))
            return super().forward(x, t)

    torch.manual_seed(0)
    net = Watched(2, hidden=32, depth=1)
    fit = train(net, data.moons(512, 0), steps=150, batch_size=64, lr=3e-3, precision="bfloat16")
    assert set(inside) == {(torch.float32, torch.bfloat16)}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert {p.dtype for p in fit.net.parameters()} == {torch.float32}
    assert fit.losses[-50:].mean() < 0.7 * fit.losses[:10].mean()
    full = train(Watched(2, hidden=32, depth=1), data.moons(512, 0), steps=1, batch_size=64)
    assert fit.losses[0] == full.losses[0]  # an untrained network returns 0 either way: the loss is not rounded


def test_precisions_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match=r"precision = 'float16' needs a CUDA GPU .*; pass precision='bfloat16'"):
        train(network(dtype=torch.float32), precision="float16")
    with pytest.raises(ValueError, match=r"keeps float32 weights and the network is torch.float64"):
        train(network(), precision="bfloat16")


class Learned(torch.nn.Module):
    """Denoising, and (s - 2)^2 with an s of its own."""

    def __init__(self):
        super().__init__()
        self.s = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.plain = objectives.Denoising(hb.VP())
        self.process, self.predicts, self.config = self.plain.process, "noise", {"type": "learned"}

    def forward(self, net, x0, noise):
        return self.plain(net, x0, noise) + (self.s - 2.0) ** 2

    def field(self, net, **options):
        return hb.Field(self.process, lambda t, x: x * self.s, "noise")


def test_an_objective_with_parameters_is_trained_and_averaged_with_the_network():
    objective = Learned()
    fit = train(objective=objective, process=None, steps=300, lr=2e-2, ema_decay=0.9)
    assert objective.s.item() == pytest.approx(2.0, abs=0.1)
    mean = fit.field.noise(0.5, torch.ones(1, 1, dtype=torch.float64)).item()
    assert mean == pytest.approx(2.0, abs=0.1)
    assert mean != objective.s.item()


def test_objectives_go_by_name_or_as_objects():
    named = train(objective="denoising", predicts="data", weighting="uniform")
    made = train(objective=objectives.Denoising(hb.VP(), "data", weighting="uniform"))
    assert torch.equal(named.losses, made.losses)
    assert named.field.predicts == "data"
    ddpm = train(objective="ddpm", process=hb.DiscreteVP([0.02 + 0.03 * k for k in range(10)]))
    assert ddpm.losses.isfinite().all()
    with pytest.raises(ValueError, match="did you mean 'denoising'"):
        train(objective="denoisin")
    with pytest.raises(ValueError, match="predicts belong to the objective; give them to Denoising itself"):
        train(objective=objectives.Denoising(hb.VP()), predicts="data")
    with pytest.raises(ValueError, match="is not the objective's"):
        train(objective=objectives.Denoising(hb.VP()), process=hb.VE())
    with pytest.raises(TypeError, match="there is no setting 'batchsize'; did you mean 'batch_size'"):
        train(batchsize=3)


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
    with pytest.raises(FloatingPointError, match=f"{message}; lower lr .*saved in .*run: ") as stopped:
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
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
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


def test_a_gradient_that_float16_cannot_hold_passes_over_the_step_and_halves_the_scale():
    """Where torch has float16 on CPUs, through the trainer itself; the scale starts at 2^16."""

    def made(precision="float16"):
        net = network(dtype=torch.float32)
        objective = objectives.Denoising(hb.VP(), weighting=lambda t: torch.full_like(t, 300.0))
        settings = Settings(steps=20, batch_size=16, precision=precision, lr=1e-2, ema_decay=0.9)
        return Trainer(net, objective, data.moons(64, 0), None, settings, ALONE)

    one = made()
    start = weights(one.net)
    with training_mode(one.model, one.device):
        first = one.advance()
        assert not math.isfinite(first.gradient_norm)
        assert math.isfinite(first.loss)
        assert one.scaler.get_scale() == 2.0**15
        assert torch.equal(weights(one.net), start)
        assert one.average.updates == 0
        while one.average.updates == 0:
            last = one.advance()
        plain = made("float32")
        plain.step = one.step - 1
        assert last.gradient_norm == pytest.approx(plain.advance().gradient_norm, rel=1e-2)
        assert torch.allclose(weights(one.net), weights(plain.net), rtol=0.0, atol=1e-4)
        scale, kept = one.scaler.get_scale(), copy.deepcopy(one.state())
        assert scale < 2.0**15
        other = made()
        other.load(kept, one.step)
        assert other.scaler.get_scale() == scale
        assert one.advance() == other.advance()
        assert torch.equal(weights(one.net), weights(other.net))
        assert not torch.equal(weights(one.net), start)
        one.scaler.update(0.5)
        one.objective = objectives.Denoising(hb.VP(), weighting=lambda t: torch.full_like(t, 1e36))
        with pytest.raises(NotFinite, match=r"its gradient's norm (inf|nan)"):
            one.advance()
