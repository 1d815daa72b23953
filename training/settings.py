"""How a network is trained: every number and choice of a run, checked, and written down as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeVar

from halfbridge.kernels.philox import check_seed, integer
from halfbridge.solvers import names
from halfbridge.solvers.nearest import nearest

__all__ = ["OPTIMIZERS", "PRECISIONS", "SCHEDULES", "Settings", "settings_with"]

T = TypeVar("T")

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16", "float16")

FREE = ("save_every", "keep", "log_every", "tensorboard", "sample_every", "sample_count", "sample_solver", "sample_grid",
        "sample_steps")  # fmt: skip
"""What a resumed run may change: it says what is written, not what is trained."""


def _of(default: T, meaning: str) -> T:
    field: T = dataclasses.field(default=default, metadata={"help": meaning})
    return field


@dataclasses.dataclass(frozen=True)
class Settings:
    """Each field's meaning is in its metadata, `dataclasses.fields(Settings)[i].metadata["help"]`; the command line has a
    flag of the same name for each.

    The learning rate at step k = 0, 1, ... is lr min(1, (k + 1) / warmup), then with schedule "cosine" lr (1 + cos(pi u)) / 2,
    u = (k - warmup) / (steps - warmup) (Loshchilov and Hutter 2017). The optimisers are Adam (Kingma and Ba 2015) and AdamW
    (Loshchilov and Hutter 2019).

    Raises ValueError, or TypeError for what is not a number, naming the field.
    """

    steps: int = _of(2000, "optimiser steps")
    batch_size: int = _of(128, "examples a step, over all processes and micro-batches")
    accumulate: int = _of(1, "micro-batches a step: less memory, and the same gradient to rounding but for BatchNorm")
    optimizer: str = _of("adam", "adam or adamw (decoupled weight decay)")
    lr: float = _of(1e-3, "learning rate, the highest that warm-up and schedule reach")
    betas: tuple[float, float] = _of((0.9, 0.999), "Adam's decays of the gradient's mean and mean square")
    weight_decay: float = _of(
        0.0, "adam: times the weights, added to the gradient; adamw: shrinks them by lr times this"
    )
    warmup: int = _of(0, "steps in which the learning rate rises linearly to lr")
    schedule: str = _of("constant", "learning rate after the warm-up: constant, or cosine to 0 at the last step")
    clip: float = _of(1.0, "greatest norm of the whole gradient; longer ones are scaled down; inf: none are")
    precision: str = _of("float32", "float32: the network's own; bfloat16, float16: its matrix products under autocast")
    ema_decay: float | tuple[float, ...] = _of(0.999, "decay of the averaged network, or several: the first is sampled")
    class_dropout: float = _of(0.0, "chance that an example loses its class, for classifier-free guidance")
    seed: int = _of(0, "of batches, times, noise, dropout and the pictures' samples")
    save_every: int = _of(1000, "steps between checkpoints in the run's folder; 0: only at the start and at the end")
    keep: int = _of(2, "checkpoints kept")
    log_every: int = _of(10, "steps between lines of the folder's log.csv")
    tensorboard: bool = _of(False, "also write the log for TensorBoard, to the folder tensorboard/")
    sample_every: int = _of(0, "steps between pictures of samples in the folder; 0: none")
    sample_count: int = _of(64, "samples in a picture")
    sample_solver: str = _of("dpm3", "solver of the pictures' samples, by name: heun, 'DDIM(eta=0.5)', ...")
    sample_grid: str = _of("half_log_snr", "times of the pictures' samples: half_log_snr, uniform, quadratic or karras")
    sample_steps: int = _of(10, "steps of the pictures' solver")

    def __post_init__(self) -> None:
        counts = {"steps": 1, "batch_size": 1, "accumulate": 1, "warmup": 0, "save_every": 0, "keep": 1, "log_every": 1,
                  "sample_every": 0, "sample_count": 1, "sample_steps": 1}  # fmt: skip
        for name, least in counts.items():
            _set(self, name, _count(name, getattr(self, name), least))
        _set(self, "seed", check_seed(self.seed))
        for name in ("lr", "clip"):
            number = _set(self, name, _number(name, getattr(self, name)))
            if not number > 0.0 or (name == "lr" and math.isinf(number)):
                raise ValueError(
                    f"{name} = {number} must be positive{'; pass inf not to clip' if name == 'clip' else ''}"
                )
        if not 0.0 <= _set(self, "weight_decay", _number("weight_decay", self.weight_decay)) < math.inf:
            raise ValueError(f"weight_decay = {self.weight_decay} must be at least 0")
        if not 0.0 <= _set(self, "class_dropout", _number("class_dropout", self.class_dropout)) < 1.0:
            raise ValueError(
                f"class_dropout = {self.class_dropout} must be in [0, 1): a chance; 0.1 suits classifier-free guidance"
            )
        self._check_decays()
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r} is unknown; {nearest(getattr(self, name), known)}")
        if not isinstance(self.tensorboard, bool):
            raise TypeError(f"tensorboard = {self.tensorboard!r} must be True or False")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of accumulate = {self.accumulate}; pass "
                f"batch_size={-(-self.batch_size // self.accumulate) * self.accumulate}, or another accumulate"
            )
        if self.warmup > self.steps:
            raise ValueError(f"warmup = {self.warmup} is more than steps = {self.steps}; lr would never be reached")
        finders: dict[str, Callable[[str], Any]] = {"sample_solver": names.solver, "sample_grid": names.grid}
        for name, find in finders.items():
            try:
                find(getattr(self, name))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} = {getattr(self, name)!r}: {error}") from error

    def _check_decays(self) -> None:
        betas = tuple(_number("betas", beta) for beta in _sequence("betas", self.betas))
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas = {betas} must be two numbers in [0, 1)")
        _set(self, "betas", betas)
        several = isinstance(self.ema_decay, (tuple, list))
        decays = tuple(_number("ema_decay", d) for d in (self.ema_decay if several else (self.ema_decay,)))  # type: ignore
        if not decays or len(set(decays)) < len(decays) or not all(0.0 <= decay < 1.0 for decay in decays):
            raise ValueError(
                f"ema_decay = {self.ema_decay} must be in [0, 1), or several such numbers, each once; 0.999 remembers about a "
                "thousand updates"
            )
        _set(self, "ema_decay", decays if several else decays[0])

    @property
    def decays(self) -> tuple[float, ...]:
        """`ema_decay` as a tuple."""
        return self.ema_decay if isinstance(self.ema_decay, tuple) else (self.ema_decay,)

    @property
    def config(self) -> dict[str, Any]:
        """JSON values, `Settings.load(config)` being an equal. An infinite clip is the string "inf": JSON has no infinity."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else "inf" if value == math.inf else value
            for name, value in values.items()
        }

    @classmethod
    def load(cls, config: Mapping[str, Any]) -> Settings:
        """The settings of a `config`; fields it does not name have their defaults. TypeError for names of no field."""
        return cls().replace(**config)

    def replace(self, **changes: Any) -> Settings:
        """These settings with some fields changed. TypeError, with the nearest name, for one that there is not."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"there is no setting {name!r}; {nearest(name, known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        return dataclasses.replace(self, **values)

    def rate(self, step: int) -> float:
        """The learning rate of the update at `step` = 0, 1, ..."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))

    def fixed(self) -> dict[str, Any]:
        """The part of `config` that a resumed run may not change: what the state after a step depends on."""
        free = (*FREE, "steps") if self.schedule == "constant" else FREE
        return {name: value for name, value in self.config.items() if name not in free}


def _set(settings: Settings, name: str, value: T) -> T:
    object.__setattr__(settings, name, value)
    return value


def _count(name: str, value: object, least: int) -> int:
    return integer(name, value, least, 1 << 62, f"pass an int of at least {least}")


def _number(name: str, value: object) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} = {value!r} must be a number")
    return float(value)


def _sequence(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} = {value!r} must be a tuple of numbers")
    return tuple(value)


def settings_with(settings: Settings | None, changes: dict[str, Any]) -> Settings:
    """The settings, or the defaults, with these changes. TypeError for what are none, and for names of no field."""
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(f"settings is a {type(settings).__name__}; pass a Settings, or its fields as keywords")
    return (Settings() if settings is None else settings).replace(**changes)
