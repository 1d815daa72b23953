"""Training losses, a file a family; each gives one number a sample."""

from halfbridge.training.losses.denoising import (
    WEIGHTINGS,
    Weighting,
    denoising_loss,
    noise_weight,
    target,
    to_noise_error,
)
from halfbridge.training.losses.times import Times, sample_times

__all__ = [
    "WEIGHTINGS",
    "Times",
    "Weighting",
    "denoising_loss",
    "noise_weight",
    "sample_times",
    "target",
    "to_noise_error",
]
