"""Where on [t_min, T] training times fall."""

from __future__ import annotations

from collections.abc import Callable

import torch

from halfbridge.solvers.processes import DiscreteVP, Process

__all__ = ["Times", "sample_times"]

Times = str | Callable[[torch.Tensor], torch.Tensor]


def sample_times(process: Process, u: torch.Tensor, times: Times = "uniform") -> torch.Tensor:
    """Training times in [t_min, T] from u uniform in [0, 1), float64.

    times: "uniform" in t (the integers 1..T for DiscreteVP); "half_log_snr", uniform in lambda, for processes whose T
    is not a time but a noise level (EDM); or a function of u.
    """
    if callable(times):
        return times(u)
    if times == "uniform":
        if isinstance(process, DiscreteVP):
            return 1.0 + torch.floor(u * process.T).clamp(max=process.T - 1.0)
        return process.t_min + u * (process.T - process.t_min)
    if times == "half_log_snr":
        least, most = process.half_log_snr(process.T), process.half_log_snr(process.t_min)
        return process.time_at(least + u * (most - least)).clamp(process.t_min, process.T)
    raise ValueError(f"times = {times!r} is not 'uniform' or 'half_log_snr'; pass one, or a function of u in [0, 1)")
