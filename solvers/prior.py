"""The law that a likelihood assumes at the noise end of its run, as a density."""

from __future__ import annotations

import math
from typing import Any

import torch

from halfbridge.solvers.divergence import summed
from halfbridge.solvers.processes import Brownian, Process

__all__ = ["check_prior", "misplaced", "normal_log_prob", "prior_log_prob"]


def check_prior(prior: Any, process: Process, t: float, x: torch.Tensor) -> None:
    """Raise unless `prior` has a density for states like `x` at time t, where the run ends; before anything is spent."""
    if prior is None:
        if wrong := misplaced(process, t):
            raise ValueError(f"the run ends at {wrong}")
    elif not callable(getattr(prior, "log_prob", None)):
        raise TypeError(f"prior must be a law with log_prob(x), such as hb.reference.Gaussian, got {prior!r}")
    else:
        with torch.no_grad():
            prior_log_prob(prior, process, x.detach().double())


def misplaced(process: Process, t: float) -> str:
    """What is wrong with N(0, prior_std^2 I) as the law at time t, empty at T. ValueError for a process that has none."""
    if isinstance(process, Brownian):
        raise ValueError(
            "prior = None, but Brownian motion has no stationary prior; pass one, e.g. hb.reference.Gaussian"
        )
    if t == process.T:
        return ""
    return (
        f"t = {t:.6g} but the prior N(0, {process.prior_std:.6g}^2 I) is the law at T = {process.T:.6g}; pass prior= for "
        f"the law at {t:.6g}"
    )


def prior_log_prob(prior: Any, process: Process, x: torch.Tensor) -> torch.Tensor:
    """log prior density of x (batch, *shape), float64; (batch,) in nats. None stands for N(0, prior_std^2 I)."""
    if prior is None:
        return normal_log_prob(x, process.prior_std)
    try:
        value = prior.log_prob(x)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"prior.log_prob(x) failed for float64 x of shape {tuple(x.shape)}: {error}") from error
    if not isinstance(value, torch.Tensor) or value.shape != x.shape[:1]:
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(
            f"prior.log_prob(x) gave {got} for x of shape {tuple(x.shape)}; it must give ({len(x)},), one log density a "
            "sample (torch.distributions.Independent makes one of elementwise densities)"
        )
    return value.double()


def normal_log_prob(x: torch.Tensor, std: float) -> torch.Tensor:
    """log N(x; 0, std^2 I) in nats, (batch,) float64."""
    rows = x.double().flatten(1) if x.ndim > 1 else x.double()[:, None]
    return -0.5 * summed((rows / std) ** 2) - rows.shape[1] * (math.log(std) + 0.5 * math.log(2.0 * math.pi))
