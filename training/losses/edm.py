"""EDM's training: a law of noise levels and a weight on the error of the denoised data, for each column of its table 1.

The loss is E over nu of w(nu) |D(x0 + nu n; nu) - x0|^2/d. `losses.LogNormal` is the law of the column "edm"; the others are
here. Karras et al. 2022, table 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from halfbridge.nets.adapter import Labels, Network
from halfbridge.nets.columns import iddpm_levels
from halfbridge.solvers.processes import VP, Process
from halfbridge.training.losses.denoising import denoising_loss
from halfbridge.training.losses.times import Drawn, LogNormal, TimeLaw
from halfbridge.training.losses.weighting import EDMWeight, Weighting

__all__ = ["EDM_COLUMNS", "IDDPMLevels", "LogUniform", "VPLevels", "edm_loss"]


def edm_loss(
    net: Network,
    process: Process,
    x0: torch.Tensor,
    t: torch.Tensor,
    z: torch.Tensor,
    *,
    sigma_data: float = 0.5,
    predicts: str = "data",
    labels: Labels | None = None,
) -> torch.Tensor:
    """(nu^2 + sigma_data^2)/(nu sigma_data)^2 |D(x_t) - x0|^2/d at the times t, (batch,): the squared error of the output of
    EDM's network, |F - (x0 - c_skip x)/c_out|^2/d, when D = c_skip x + c_out F. Karras et al. 2022, eq. 8.

    net: a denoiser such as `nets.Precondition`, D(x_t, labels(t)), or what `predicts` says. The rest as in
    `denoising_loss`; any process, nu = sigma/alpha.
    """
    weight = EDMWeight(sigma_data)
    return denoising_loss(net, process, x0, t, z, predicts=predicts, weighting=weight, labels=labels)


@dataclass(frozen=True)
class LogUniform(TimeLaw):
    """log nu uniform between log low and log high: the column VE."""

    low: float = 0.02
    high: float = 100.0

    def __post_init__(self) -> None:
        if not 0.0 < self.low < self.high < math.inf:
            raise ValueError(f"LogUniform: low = {self.low!r} must be positive and below high = {self.high!r}")

    def __call__(self, process: Process, u: torch.Tensor) -> Drawn:
        log_nu = math.log(self.low) * (1.0 - u) + math.log(self.high) * u
        return Drawn(process.time_at(-log_nu), None)


@dataclass(frozen=True)
class VPLevels(TimeLaw):
    """nu = sigma/alpha of hb.VP(beta_min, beta_max) at a time uniform in [epsilon, 1]: the column VP."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if not 0.0 < self.epsilon < 1.0:
            raise ValueError(f"VPLevels: epsilon = {self.epsilon!r} must be in (0, 1), the range of times")
        VP(self.beta_min, self.beta_max)  # checks them

    def __call__(self, process: Process, u: torch.Tensor) -> Drawn:
        s = self.epsilon + (1.0 - self.epsilon) * u
        return Drawn(process.time_at(VP(self.beta_min, self.beta_max).half_log_snr(s)), None)


@dataclass(frozen=True)
class IDDPMLevels(TimeLaw):
    """nu = u_j, j uniform in 0..M-1, of `nets.columns.iddpm_levels(steps=M, c1, c2)`: the column iDDPM."""

    steps: int = 1000
    c1: float = 0.001
    c2: float = 0.008

    def __post_init__(self) -> None:
        iddpm_levels(self.steps, self.c1, self.c2)  # checks them

    def levels(self) -> torch.Tensor:
        """u_0 > ... > u_{M-1} > 0, (M,), float64."""
        return torch.tensor(iddpm_levels(self.steps, self.c1, self.c2)[:-1], dtype=torch.float64, device="cpu")

    def __call__(self, process: Process, u: torch.Tensor) -> Drawn:
        j = torch.floor(u * self.steps).long().clamp(max=self.steps - 1)
        return Drawn(process.time_at(-self.levels().to(u.device)[j].log()), None)


EDM_COLUMNS: dict[str, tuple[TimeLaw, Weighting]] = {
    "vp": (VPLevels(), "simple"),
    "ve": (LogUniform(), "simple"),
    "iddpm": (IDDPMLevels(), "simple"),
    "edm": (LogNormal(), EDMWeight()),
}
"""The law of levels and the weight of each column: 1/nu^2 on the data's error is "simple", 1 on the noise's.
What the networks of these columns see and return is in `nets.columns.COLUMNS`."""
