"""What a step is given: examples from where they are, fresh noise for pixels, masks of its own; and what no step can use."""

import copy
import json

import numpy as np
import pytest
import torch
from small_training import network, train, weights

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import data, fit_score, objectives, saved
from halfbridge.training.arguments import check
from halfbridge.training.data import Dataset
from halfbridge.training.data.order import shuffled
from halfbridge.training.settings import Settings
from halfbridge.training.trainer import Trainer
from halfbridge.training.workers import ALONE, Workers

X = data.moons(64, 0).double()
BASE = objectives.Denoising(hb.VP())


class Shaped:
    """The losses of BASE in another shape."""

    process, predicts, field = BASE.process, BASE.predicts, BASE.field

    def __init__(self, shape):
        self.shape = shape

    def __call__(self, net, x0, noise):
        return self.shape(BASE(net, x0, noise))


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        (lambda losses: losses.mean(), r"shape \(\)"),
        (lambda losses: losses[:3], r"shape \(3,\)"),
        (lambda losses: losses[:, None].expand(-1, 2), r"shape \(8, 2\)"),
        (lambda losses: losses.mean().item(), "float"),
    ],
    ids=["mean", "some", "of each element", "number"],
)
def test_an_objective_that_returns_no_loss_for_each_example_is_refused(shape, got):
    with pytest.raises(ValueError, match=rf"the objective, Shaped, returned {got} for 8 examples; .*shape \(8,\)"):
        train(objective=Shaped(shape), process=None, accumulate=2)


def test_a_minimal_objective_trains_and_its_choices_are_those_it_was_made_with(tmp_path):
    fit = train(objective=Shaped(torch.clone), process=None, out=tmp_path)
    assert torch.equal(fit.losses, train().losses)
    assert json.loads((tmp_path / "config.json").read_text())["objective"]["type"].endswith("Shaped")


def test_each_step_and_micro_batch_has_a_dropout_mask_of_its_own():
    masks = []

    class Masked(MLP):
        def forward(self, x, t):
            masks.append(torch.nn.functional.dropout(torch.ones(64), 0.5, self.training))
            return super().forward(x, t)

    torch.manual_seed(0)
    train(Masked(2, hidden=8).double(), steps=10, accumulate=2)
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks) == 20


def tiny_images(levels=4):
    pixels = torch.randint(0, levels, (20, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    examples = pixels.float() * (2.0 / (levels - 1)) - 1.0
    points = Dataset(examples, levels=levels, range=(-1.0, 1.0), pixels=pixels, config={"name_or_path": "x"})
    bins = Dataset(
        points.dequantised(0), levels=levels, range=(-1.0, 1.0), pixels=pixels, config={"dequantise": True, "seed": 0}
    )
    return points, bins


class Listens:
    """BASE, noting what it is given."""

    process, predicts, field = BASE.process, BASE.predicts, BASE.field

    def __init__(self):
        self.seen = []

    def __call__(self, net, x0, noise):
        self.seen.append(x0)
        return BASE(net, x0, noise)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_pixels_are_dequantised_anew_for_each_example_seen(accumulate):
    points, bins = tiny_images()
    for known in (points, bins):
        listens = Listens()
        torch.manual_seed(0)
        fit_score(
            MLP((1, 2, 2), hidden=8), known, objective=listens, steps=6, batch_size=12, accumulate=accumulate, seed=7
        )
        x0 = torch.cat(listens.seen)
        rows = torch.cat([shuffled(20, 7, step, 12) for step in range(6)])
        expected = hb.dequantise(known.pixels[rows], 7, levels=4) if known is bins else known.examples[rows]
        assert torch.equal(x0, expected)
    twice = [x0[rows == row] for row in range(20)]
    assert all(len(seen.unique(dim=0)) == len(seen) > 2 for seen in twice)


def test_a_run_on_fresh_noise_is_not_gone_on_with_on_fixed_examples(tmp_path):
    _, bins = tiny_images()
    options = {"steps": 2, "batch_size": 4, "out": tmp_path}
    fit_score(MLP((1, 2, 2), hidden=8), bins, hb.VP(), **options)
    with pytest.raises(ValueError, match=r"examples.dequantised = \(absent\) but was 'anew'"):
        fit_score(MLP((1, 2, 2), hidden=8), bins.examples, hb.VP(), resume=True, **options)


def test_data_on_the_cpu_trains_a_network_elsewhere_row_by_row(monkeypatch):
    """Without a GPU: that nothing but the rows of a batch goes over, and what is refused."""
    there = MLP(2, hidden=8).to("meta")
    assert check(there, X.float(), None, Settings(), ALONE).values.device.type == "cpu"
    assert check(there, Dataset(X.float()), None, Settings(), ALONE).values.device.type == "cpu"
    trainer = Trainer(network(), BASE, X, None, Settings(batch_size=16), ALONE)
    trainer.device = torch.device("meta")
    rows = trainer._examples(torch.arange(5), 0)
    assert (rows.shape, rows.device.type) == ((5, 2), "meta")
    monkeypatch.setattr("halfbridge.training.arguments.check_examples", lambda examples: None)
    with pytest.raises(ValueError, match="data is on meta and the network on cpu; move it there, or to the CPU"):
        check(network(), X.to("meta"), None, Settings(), ALONE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_data_on_the_cpu_trains_a_network_on_a_gpu_as_data_there_does():
    fits = [train(network().cuda(), X.to(device)) for device in ("cpu", "cuda")]
    assert torch.equal(fits[0].losses, fits[1].losses)


class Two(Workers):
    count = 2


def test_running_statistics_are_refused_for_several_processes():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).double()
    check(net, X, None, Settings(), ALONE)
    with pytest.raises(
        ValueError, match=r"the network cannot be trained by several processes: 1 is a BatchNorm1d, .*GroupNorm"
    ):
        check(net, X, None, Settings(), Two())
    check(torch.nn.Sequential(net[0], torch.nn.GroupNorm(1, 2)).double(), X, None, Settings(), Two())


class Counts(torch.nn.Linear):
    def forward(self, x, t):
        return super().forward(x)

    def get_extra_state(self):
        return {"n": 3}

    def set_extra_state(self, state):
        pass


def test_a_state_that_no_folder_keeps_is_refused_before_the_first_step(tmp_path):
    assert train(Counts(2, 2).double()).step == 5
    with pytest.raises(ValueError, match=r"the network has a state beside its tensors, of itself \(Counts.get_extra"):
        train(Counts(2, 2).double(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Embeds(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer, self.classes = torch.nn.Linear(2, 2).double(), classes

    def forward(self, x, t, *given):
        return self.layer(x) + (0.0 if not given else self.classes(given[0]))


def test_what_a_network_calls_classes_need_not_be_their_number(tmp_path):
    assert train(Embeds(["cat", "dog"])).step == 5
    fit = train(Embeds(torch.nn.Embedding(3, 2).double()), classes=torch.arange(64) % 3)
    assert fit.step == 5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": X.numpy()}, TypeError, "data is a ndarray; pass a tensor"),
        ({"x": "moons"}, TypeError, "data is a str; .*data.load"),
        ({"settings": {"steps": 3}}, TypeError, "settings is a dict; pass a Settings"),
        ({"net": network().half(), "x": X.half()}, ValueError, r"float16, where Adam's epsilon of 1e-8 is 0; pass net.float"),
    ],
    ids=["array", "name", "settings", "float16"],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_with_a_remedy(changes, error, message):
    with pytest.raises(error, match=message):
        train(**changes)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_takes_one_pass_and_the_steps_of_the_plain_one(monkeypatch, optimizer):
    options = {"optimizer": optimizer, "weight_decay": 0.1, "steps": 30, "lr": 1e-2}
    trainer = Trainer(network(), BASE, X, None, Settings(optimizer=optimizer), ALONE)
    assert trainer.optimizer.param_groups[0]["fused"]
    one = train(**options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]

    def plain(*arguments, fused=None, **rest):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")
        return kind(*arguments, **rest)

    monkeypatch.setattr(torch.optim, kind.__name__, plain)
    other = train(**options)
    assert torch.allclose(weights(one.net), weights(other.net), rtol=1e-11, atol=1e-13)


def test_numbers_of_numpy_are_numbers():
    lr = np.float32(1e-3)
    assert torch.equal(train(lr=lr, steps=np.int64(3)).losses, train(lr=float(lr), steps=3).losses)


def test_a_compiled_network_is_saved_as_what_was_compiled(tmp_path):
    net = network()
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    fit = train(compiled, out=tmp_path)
    assert torch.equal(weights(saved.load(tmp_path).net), weights(fit.net))
    assert torch.allclose(fit.losses, train(net).losses, rtol=1e-12, atol=0.0)
