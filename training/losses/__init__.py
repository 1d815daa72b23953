"""Training losses, a file a family; each gives one number a sample."""

from halfbridge.training.losses.ddpm import ddpm_elbo, ddpm_loss, hybrid_loss, prior_kl
from halfbridge.training.losses.decoders import Discretised, gaussian_nll
from halfbridge.training.losses.denoising import denoising_loss, target, to_noise_error
from halfbridge.training.losses.edm import EDM_COLUMNS, IDDPMLevels, LogUniform, VPLevels, edm_loss
from halfbridge.training.losses.high_order import (
    HighOrderTerms,
    high_order_loss,
    high_order_terms,
    second_order_loss,
    third_order_loss,
    trace_loss,
)
from halfbridge.training.losses.implicit import implicit_loss
from halfbridge.training.losses.ncsn import LevelLabels, geometric_levels, level_times, ncsn_loss
from halfbridge.training.losses.schedule import LearnedSchedule, LearnedVP
from halfbridge.training.losses.score_function import score_function, score_jacobian
from halfbridge.training.losses.sliced import sliced_loss
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
from halfbridge.training.losses.vdm import learned_vdm_loss, reconstruction, vdm_discrete_loss, vdm_loss
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
    "EDM_COLUMNS",
    "TIMES",
    "WEIGHTINGS",
    "Discretised",
    "Drawn",
    "EDMWeight",
    "HighOrderTerms",
    "IDDPMLevels",
    "Importance",
    "LearnedSchedule",
    "LearnedVP",
    "LevelLabels",
    "LogNormal",
    "LogUniform",
    "MinSNR",
    "Sigmoid",
    "TimeLaw",
    "Times",
    "VPLevels",
    "Weight",
    "Weighting",
    "correction",
    "ddpm_elbo",
    "ddpm_loss",
    "denoising_loss",
    "draw_times",
    "edm_loss",
    "gaussian_nll",
    "geometric_levels",
    "high_order_loss",
    "high_order_terms",
    "hybrid_loss",
    "implicit_loss",
    "learned_vdm_loss",
    "level_times",
    "ncsn_loss",
    "noise_weight",
    "prior_kl",
    "reconstruction",
    "sample_times",
    "score_function",
    "score_jacobian",
    "second_order_loss",
    "sliced_loss",
    "target",
    "third_order_loss",
    "time_span",
    "to_noise_error",
    "trace_loss",
    "vdm_discrete_loss",
    "vdm_loss",
]
