"""A residual multilayer perceptron over flattened events."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from halfbridge.nets.embedding import Fourier, Sinusoidal

__all__ = ["MLP"]

TIMES: dict[str, Callable[[int], torch.nn.Module]] = {"sinusoidal": Sinusoidal, "fourier": Fourier}


class _Block(torch.nn.Module):
    """h + W2 silu(W1 (scale * norm(h) + shift)), scale and shift read from the time embedding (Perez et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = torch.nn.Linear(width, 2 * width)
        self.inner = torch.nn.Linear(width, width)
        self.outer = torch.nn.Linear(width, width)

    def forward(self, h: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulate(time).chunk(2, dim=1)
        inner: torch.Tensor = self.inner(self.norm(h) * (1.0 + scale) + shift)
        out: torch.Tensor = self.outer(torch.nn.functional.silu(inner))
        return h + out


class MLP(torch.nn.Module):
    """net(x, t) -> like x, for x of shape (batch, *shape) and labels t of shape (batch,).

    shape: the event's shape, or its dimension d for events of shape (d,). hidden: the width of every layer. depth: the
    number of residual blocks, each modulated by the time. time: "sinusoidal", "fourier", or a module from (batch,) to
    (batch, features) with an attribute `features`; labels that are step indices want `Sinusoidal(64, scale=1.0)`, and a
    log-SNR embedding is any of them with `labels=process.half_log_snr` in `as_field` and `fit_score`. The embedding is
    computed in the label's dtype and rounded to the weights': x has their dtype (any floating one), t need not.

    The last layer starts at zero, so an untrained network returns zero. Raises ValueError for sizes that are not
    positive, an unknown `time`, and an x whose events are not of `shape`.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        hidden: int = 256,
        depth: int = 3,
        time: str | torch.nn.Module = "sinusoidal",
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(
                f"shape = {self.shape} must hold positive sizes: the shape of one event, without the batch"
            )
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden = {hidden} must be an even number, at least 2")
        if depth < 1:
            raise ValueError(f"depth = {depth} must be at least 1")
        if isinstance(time, str):
            if time not in TIMES:
                raise ValueError(f"time = {time!r} is not one of {', '.join(map(repr, TIMES))}; pass one, or a module")
            time = TIMES[time](hidden)
        size = math.prod(self.shape)
        self.time = time
        self.time_layers = torch.nn.Sequential(
            torch.nn.Linear(int(getattr(time, "features", hidden)), hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(hidden, hidden),
        )
        self.first = torch.nn.Linear(size, hidden)
        self.blocks = torch.nn.ModuleList(_Block(hidden) for _ in range(depth))
        self.last = torch.nn.Linear(hidden, size)
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if tuple(x.shape[1:]) != self.shape or t.shape != x.shape[:1]:
            raise ValueError(
                f"got x of shape {tuple(x.shape)} and t of shape {tuple(t.shape)}; this network takes x of shape "
                f"(batch, {', '.join(map(str, self.shape))}) and t of shape (batch,)"
            )
        time = torch.nn.functional.silu(self.time_layers(self.time(t).to(self.first.weight.dtype)))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        out: torch.Tensor = self.last(torch.nn.functional.silu(h))
        return out.view_as(x)
