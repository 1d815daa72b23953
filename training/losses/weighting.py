"""Weights on the squared error of the noise, by which the losses of one regression differ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from halfbridge.solvers.processes import Process
from halfbridge.training.losses.choice import check_choice

__all__ = [
    "WEIGHTINGS",
    "EDMWeight",
    "MinSNR",
    "Sigmoid",
    "Weight",
    "Weighting",
    "noise_weight",
]


class Weight(ABC):
    """A weighting with parameters: a frozen dataclass called (process, t), t (batch,) float64, that returns the weight of
    |noise error|^2, (batch,). On the score's error that is sigma^2 times as much, on the data's SNR = (alpha/sigma)^2."""

    @abstractmethod
    def __call__(self, process: Process, t: torch.Tensor) -> torch.Tensor: ...

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{type(self).__name__}: {name} = {value!r} must be a positive finite number")


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(SNR, gamma)/SNR on the error of the noise, SNR = (alpha/sigma)^2. Hang et al. 2023.

    On the data's error it is min(SNR, gamma); on the velocity's min(SNR, gamma)/(SNR + 1) where alpha^2 + sigma^2 = 1,
    as in the paper.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        self._check_positive("gamma")

    def __call__(self, process: Process, t: torch.Tensor) -> torch.Tensor:
        return (self.gamma * process.nu(t) ** 2).clamp(max=1.0)


@dataclass(frozen=True)
class EDMWeight(Weight):
    """(nu^2 + sigma_data^2)/sigma_data^2 on the error of the noise, 1/c_out^2 = (nu^2 + sigma_data^2)/(nu sigma_data)^2 on
    the data's: it gives the output of EDM's network the weight 1 at every level. Karras et al. 2022, section 5."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        self._check_positive("sigma_data")

    def __call__(self, process: Process, t: torch.Tensor) -> torch.Tensor:
        return (process.nu(t) / self.sigma_data) ** 2 + 1.0


@dataclass(frozen=True)
class Sigmoid(Weight):
    """sigmoid(bias - log SNR) on the error of the noise, log SNR = 2 lambda. Hoogeboom et al. 2023; Kingma and Gao 2023.

    The weight is one of lambda: with times uniform in "half_log_snr" the loss is the papers'. It increases with the
    noise, so the loss is a bound of data with noise of random size (Kingma and Gao 2023, theorem 1).
    """

    bias: float = 2.0

    def __post_init__(self) -> None:
        if isinstance(self.bias, bool) or not isinstance(self.bias, (int, float)) or not math.isfinite(self.bias):
            raise ValueError(f"Sigmoid: bias = {self.bias!r} must be a finite number")

    def __call__(self, process: Process, t: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.bias - 2.0 * process.half_log_snr(t))


Weighting = str | Weight | Callable[[torch.Tensor], torch.Tensor]
"""A name of WEIGHTINGS, a `Weight`, or a function from the float64 times to the weight of |noise error|^2."""

WEIGHTINGS: dict[str, Callable[[Process, torch.Tensor], torch.Tensor]] = {
    "simple": lambda process, t: torch.ones_like(t),
    "likelihood": lambda process, t: (process.diffusion(t) / process.sigma(t)) ** 2,
    "uniform": lambda process, t: process.sigma(t) ** -2,
    "data": lambda process, t: process.nu(t) ** 2,
    "truncated_snr": lambda process, t: (process.nu(t) ** 2).clamp(min=1.0),
    "velocity": lambda process, t: (process.alpha(t) + process.sigma(t) * process.nu(t)) ** 2,
    "min_snr": MinSNR(),
    "edm": EDMWeight(),
    "sigmoid": Sigmoid(),
}
"""Weights on the squared error of the noise. The first three are sigma^2, g^2 and 1 on the score's (Song et al. 2021);
"data" is 1 on the data's error, "truncated_snr" max(SNR, 1) there, the larger of "simple" and "data" (Salimans and Ho 2022),
"velocity" 1 on the velocity's; the last three are `MinSNR`, `EDMWeight` and `Sigmoid` with their defaults."""


def noise_weight(weighting: Weighting, process: Process, t: torch.Tensor) -> torch.Tensor:
    """The weight of |noise error|^2 at the times t. ValueError for an unknown name."""
    if isinstance(weighting, Weight):
        return weighting(process, t)
    if callable(weighting):
        return weighting(t)
    check_choice("weighting", weighting, WEIGHTINGS, "a function of t")
    return WEIGHTINGS[weighting](process, t)
