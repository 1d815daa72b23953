"""Training losses, a file a family; each gives one number a sample."""

from halfbridge.training.losses.denoising import denoising_loss, target, to_noise_error
from halfbridge.training.losses.times import (
    TIMES,
    Drawn,
    Importance,
    LogNormal,
    TimeLaw,
    Times,
    correction,
    draw_times,
    sample_times,
    time_span,
)
from halfbridge.training.losses.weighting import (
    WEIGHTINGS,
    EDMWeight,
    MinSNR,
    Sigmoid,
    Weight,
    Weighting,
    noise_weight,
)

__all__ = [
    "TIMES",
    "WEIGHTINGS",
    "Drawn",
    "EDMWeight",
    "Importance",
    "LogNormal",
    "MinSNR",
    "Sigmoid",
    "TimeLaw",
    "Times",
    "Weight",
    "Weighting",
    "correction",
    "denoising_loss",
    "draw_times",
    "noise_weight",
    "sample_times",
    "target",
    "time_span",
    "to_noise_error",
]
