"""What a step of training does: pieces, optimiser, averages, classes, precision, objectives."""

import copy
import math

import pytest
import torch
from small_training import network, train, weights

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import data, fit_score, objectives
from halfbridge.training.data import Dataset
from halfbridge.training.data.order import shuffled
from halfbridge.training.modes import training_mode
from halfbridge.training.noise import StepNoise
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import NotFinite, Trainer
from halfbridge.training.workers import ALONE


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
    with pytest.raises(ValueError, match=r"class_dropout = 0.1, but the network is told no classes"):
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
