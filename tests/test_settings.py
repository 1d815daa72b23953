"""Settings refuse what cannot be trained with, say it as JSON, and know their learning rate."""

import dataclasses
import json
import math

import pytest

from halfbridge.training.runs import check_same_run
from halfbridge.training.settings import FREE, Settings


def test_settings_come_back_from_their_json():
    for settings in (
        Settings(),
        Settings(
            clip=math.inf, ema_decay=(0.9, 0.999), betas=(0.5, 0.9), steps=7, precision="bfloat16", tensorboard=True
        ),
    ):
        text = json.dumps(settings.config, allow_nan=False)
        assert Settings.load(json.loads(text)) == settings
    assert Settings.load({}) == Settings()


def test_every_setting_says_what_it_means():
    for field in dataclasses.fields(Settings):
        assert len(field.metadata["help"]) > 5, field.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"batch_size": -1}, "batch_size"),
        (
            {"batch_size": 10, "accumulate": 4},
            "batch_size = 10 is not a multiple of accumulate = 4; pass batch_size=12",
        ),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"lr": math.inf}, "lr = inf"),
        ({"lr": math.nan}, "lr = nan"),
        ({"lr": "fast"}, "lr = 'fast' must be a number"),
        ({"clip": -1.0}, "clip = -1.0 must be positive; pass inf not to clip"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": 0.9}, "betas"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
        ({"warmup": 3, "steps": 2}, "warmup = 3 is more than steps = 2"),
        ({"optimizer": "adamww"}, "optimizer = 'adamww' is unknown; did you mean 'adamw'"),
        ({"schedule": "cosin"}, "schedule = 'cosin'.*did you mean 'cosine'"),
        ({"precision": "float64"}, "precision = 'float64' is unknown; did you mean"),
        ({"ema_decay": 1.0}, "ema_decay = 1.0"),
        ({"ema_decay": (0.9, 0.9)}, "ema_decay"),
        ({"ema_decay": ()}, "ema_decay"),
        ({"class_dropout": 1.0}, "class_dropout = 1.0"),
        ({"seed": -1}, "seed"),
        ({"keep": 0}, "keep"),
        ({"tensorboard": 1}, "tensorboard"),
        ({"sample_solver": "hein"}, "sample_solver = 'hein': .*did you mean 'Heun'"),
        ({"sample_grid": "kerras"}, "did you mean 'karras'"),
        ({"batchsize": 3}, "there is no setting 'batchsize'; did you mean 'batch_size'"),
    ],
)
def test_bad_settings_are_refused_by_name(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Settings().replace(**change)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    rates = Settings(steps=20, lr=2.0, warmup=4, schedule="cosine").rate
    assert [rates(k) for k in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    for k in range(4, 20):
        assert rates(k) == pytest.approx(2.0 * math.cos(math.pi * (k - 4) / 32) ** 2, rel=1e-14)
    assert rates(12) == pytest.approx(1.0, rel=1e-14)
    assert rates(20) == pytest.approx(0.0, abs=1e-15)
    constant = Settings(steps=20, lr=2.0, warmup=4).rate
    assert [constant(k) for k in (0, 3, 19)] == [0.5, 2.0, 2.0]


TRAINED = {
    "batch_size": 64, "accumulate": 2, "optimizer": "adamw", "lr": 2e-3, "betas": (0.8, 0.999), "weight_decay": 0.1,
    "warmup": 5, "schedule": "cosine", "clip": 2.0, "precision": "bfloat16", "ema_decay": 0.9, "class_dropout": 0.1, "seed": 1,
}  # fmt: skip
WRITTEN = {
    "steps": 3000, "save_every": 5, "keep": 3, "log_every": 2, "tensorboard": True, "sample_every": 7, "sample_count": 3,
    "sample_solver": "heun", "sample_grid": "karras", "sample_steps": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", [*TRAINED, *WRITTEN])
def test_what_is_trained_may_not_change_in_a_run_and_what_is_written_may(name):
    old = {"settings": Settings().config}
    new = {"settings": Settings().replace(**{name: (TRAINED | WRITTEN)[name]}).config}
    assert new != old
    if name in WRITTEN:
        check_same_run(old, new, "the run")
        return
    with pytest.raises(ValueError, match=rf"settings\.{name}"):
        check_same_run(old, new, "the run")


def test_each_setting_is_said_to_be_trained_or_written():
    assert {field.name for field in dataclasses.fields(Settings)} == {*TRAINED, *WRITTEN}


def test_what_a_resumed_run_may_change_is_what_the_state_does_not_depend_on():
    names = {field.name for field in dataclasses.fields(Settings)}
    assert set(FREE) <= names
    assert names - Settings().fixed().keys() == {*FREE, "steps"}
    assert names - Settings(schedule="cosine").fixed().keys() == set(FREE)
