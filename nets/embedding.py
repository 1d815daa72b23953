"""Embeddings of a network's label (a time, a step, a log-SNR): modules that map (batch,) to (batch, features)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.processes import DiscreteVP, Process, described

__all__ = ["Fourier", "LogSNR", "Sinusoidal"]

TIMES = ("sinusoidal", "steps", "fourier", "log_snr")


def embedding_of(
    time: str | torch.nn.Module, features: int, process: Process | Mapping[str, Any] | None
) -> torch.nn.Module:
    """The module that a network's `time` names, as wide as `features`, or `time` itself if it is a module.

    "sinusoidal": `Sinusoidal`, for labels of about unit range; "steps": `Sinusoidal` with scale = 1, for labels that count
    steps; "fourier": `Fourier`; "log_snr": `LogSNR` of `process`, which no other takes.
    """
    if isinstance(time, str) and time not in TIMES:
        raise ValueError(f"time = {time!r} is no embedding; {nearest(time, TIMES)}, or pass a module")
    if time == "log_snr":
        if process is None:
            raise ValueError("time = 'log_snr' needs the process whose log-SNR it is; pass process=, such as hb.VP()")
        return LogSNR(features, process)
    if process is not None:
        raise ValueError(f"process is read by time = 'log_snr' alone, but time = {time!r}; leave process out")
    if time == "sinusoidal":
        return Sinusoidal(features)
    if time == "steps":
        return Sinusoidal(features, scale=1.0)
    if time == "fourier":
        return Fourier(features)
    if not isinstance(time, torch.nn.Module):
        raise TypeError(f"time is a {type(time).__name__}; pass one of {', '.join(map(repr, TIMES))}, or a module")
    return time


def described_time(name: str | None, embedding: torch.nn.Module) -> dict[str, Any]:
    """The arguments `time` and `process` of a network in JSON values; `name` is None where `time` was a module.

    ValueError where they cannot be written down.
    """
    if name is None:
        raise ValueError(
            f"time is a module, {type(embedding).__name__}, and cannot be written down; pass one of "
            f"{', '.join(map(repr, TIMES))}, or build the network in your code and pass it when loading: net="
        )
    process = described.describe(embedding.process) if isinstance(embedding, LogSNR) else None
    return {"time": name, "process": process}


def _check_features(features: int) -> int:
    if features < 2 or features % 2:
        raise ValueError(f"features = {features} must be an even number, at least 2: half are sines, half cosines")
    return features // 2


class _Frequencies(torch.nn.Module):
    """Holds `frequencies`, which move with the module but stay float32: rounded to half precision they would shift every
    label that a float32 network was trained on."""

    frequencies: torch.Tensor

    def _hold(self, frequencies: torch.Tensor) -> None:
        self.register_buffer("frequencies", frequencies)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> _Frequencies:
        exact = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        if not label.is_floating_point():
            label = label.float()
        angle = label[:, None] * self.frequencies.to(label.dtype)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Sinusoidal(_Frequencies):
    """[sin(w_k s), cos(w_k s)] with s = scale * label and w_k = period^(-k / (K - 1)), K = features / 2.

    Vaswani et al. 2017, as DDPM (Ho et al. 2020) uses it on step indices, with scale = 1. The default suits labels of
    unit range or so: times of VP, log nu / 4. A larger scale makes a network wiggle in t, which solvers feel: with 1000,
    100 and 200 steps of DPM-Solver-3 on a small network for digits end 6e-4 apart, with 30 they end 1e-6 apart.
    Whole numbers are taken as float32.
    """

    def __init__(self, features: int, *, scale: float = 30.0, period: float = 1e4) -> None:
        super().__init__()
        half = _check_features(features)
        self.features, self.scale, self.period = features, scale, period
        powers = [-k / max(half - 1, 1) for k in range(half)]
        self._hold(torch.tensor([scale * period**p for p in powers], dtype=torch.float32))

    def extra_repr(self) -> str:
        return f"{self.features}, scale={self.scale:g}, period={self.period:g}"


class Fourier(_Frequencies):
    """[sin(2 pi w_k label), cos(2 pi w_k label)] with w_k drawn once from N(0, scale^2), K = features / 2.

    Random Fourier features (Tancik et al. 2020), as score_sde uses them on log sigma (Song et al. 2021). The
    frequencies are fixed by `seed`, kept in the state dict and not trained.
    """

    def __init__(self, features: int, *, scale: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        half = _check_features(features)
        self.features, self.scale, self.seed = features, scale, seed
        draws = torch.randn(half, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
        self._hold(2.0 * math.pi * scale * draws.to(torch.get_default_device()))

    def extra_repr(self) -> str:
        return f"{self.features}, scale={self.scale:g}, seed={self.seed}"


class LogSNR(Sinusoidal):
    """`Sinusoidal` of lambda = half_log_snr(t), the log of the signal-to-noise ratio alpha / sigma at the label's time t.

    So the network is told how noisy x is, in the same way under every process: lambda runs over about [-6, 8], and
    scale = 7.5 makes of it what Karras et al. 2022 embed, log(nu) / 4 = -lambda / 4, at the default scale of `Sinusoidal`.
    Kingma et al. 2021 condition on the log-SNR too.

    label: as `default_labels(process)` gives it: the time, or for DiscreteVP the step minus 1. lambda, the angles, the
    sines and cosines are computed in float64 and rounded to the label's dtype, so the rounding of the label is all there
    is. process: a process, or its description. A label whose time has no lambda (0 or below, or beyond the steps of a
    DiscreteVP) gives NaN and no error, for which it would be read back from the device at each call; every t in
    [t_min, T] has one.
    """

    def __init__(
        self, features: int, process: Process | Mapping[str, Any], *, scale: float = 7.5, period: float = 1e4
    ) -> None:
        super().__init__(features, scale=scale, period=period)
        if isinstance(process, Mapping):
            process = described.build(process)
        if not isinstance(process, Process):
            raise TypeError(f"process is a {type(process).__name__}; pass a process such as hb.VP()")
        self.process = process

    def forward(self, label: torch.Tensor) -> torch.Tensor:
        t = label.double()
        last = math.inf
        if isinstance(self.process, DiscreteVP):
            # Beyond T there is no beta to look up: an index out of range would stop a GPU's whole program.
            t, last = t + 1.0, self.process.T
        known = (t > 0) & (t <= last)
        half_log_snr = self.process._half_log_snr(torch.where(known, t, self.process.T))
        out = super().forward(torch.where(known, half_log_snr, torch.nan))
        return out.to(label.dtype if label.is_floating_point() else torch.float32)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, process={self.process!r}"
