"""Embeddings of a network's label (a time, a step, a log-SNR): modules that map (batch,) to (batch, features)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

__all__ = ["Fourier", "Sinusoidal"]


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
        angle = label[:, None] * self.frequencies.to(label.dtype)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Sinusoidal(_Frequencies):
    """[sin(w_k s), cos(w_k s)] with s = scale * label and w_k = period^(-k / (K - 1)), K = features / 2.

    Vaswani et al. 2017, as DDPM (Ho et al. 2020) uses it on step indices, with scale = 1. The default suits labels of
    unit range or so: times of VP, log nu / 4. A larger scale makes a network wiggle in t, which solvers feel: with 1000,
    100 and 200 steps of DPM-Solver-3 on a small network for digits end 6e-4 apart, with 30 they end 1e-6 apart.
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
