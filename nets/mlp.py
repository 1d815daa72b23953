"""A residual multilayer perceptron over flattened events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from halfbridge.nets.conditioned import Condition, Conditioned, SharedLabels
from halfbridge.nets.sizes import whole, whole_numbers
from halfbridge.solvers.processes import Process

__all__ = ["MLP"]


class _Block(torch.nn.Module):
    """h + W2 silu(W1 (scale * norm(h) + shift)), scale and shift read from the time embedding (Perez et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = torch.nn.Linear(width, 2 * width)
        self.inner = torch.nn.Linear(width, width)
        self.outer = torch.nn.Linear(width, width)

    def forward(self, h: torch.Tensor, time: Condition) -> torch.Tensor:
        scale, shift = time.through(self.modulate).chunk(2, dim=1)
        inner: torch.Tensor = self.inner(self.norm(h) * (1.0 + scale) + shift)
        out: torch.Tensor = self.outer(torch.nn.functional.silu(inner))
        return h + out


class MLP(Conditioned):
    """net(x, t) -> like x, or net(x, t, classes) -> like x: x of shape (batch, *shape), t and classes of shape (batch,).

    shape: the event's shape, or its dimension d for events of shape (d,). hidden: the width of every layer. depth: the
    number of residual blocks, each modulated by the time and the class. classes: how many classes there are, 0 for none;
    with n of them the network takes int64 labels 0 .. n - 1, and -1 for no class (see `ClassEmbedding`).
    time: how the label t is embedded: "sinusoidal" for a time of about unit range, "steps" for the index of a step,
    "fourier", "log_snr" for lambda = process.half_log_snr (give `process`; t is what `default_labels` makes of the time),
    or a module from (batch,) to (batch, features) with an attribute `features`. It is computed in the label's dtype and
    rounded to the weights': x has their dtype (any floating one), t need not.

    learned_variance: return (batch, 2 n, ...) for events of shape (n, ...), first the prediction and then what parametrises
    a variance, as the objectives "hybrid" and "ddpm_elbo" with learned=True train it (Nichol and Dhariwal 2021);
    `as_field(..., learned_variance=True)` takes the prediction.

    The last layer starts at zero, so an untrained network returns zero. `parameter_count` of MLP(2): 922 370, with
    learned_variance 922 884; of MLP(2, hidden=64, depth=2): 41 922. Raises ValueError for sizes that are not positive, an
    unknown `time`, and an x whose events are not of `shape`; TypeError for sizes that are not whole numbers.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        hidden: int = 256,
        depth: int = 3,
        classes: int = 0,
        learned_variance: bool = False,
        time: str | torch.nn.Module = "sinusoidal",
        process: Process | Mapping[str, Any] | None = None,
    ) -> None:
        event = (shape,) if isinstance(shape, int) else whole_numbers("shape", shape)
        if not event or min(event) < 1:
            raise ValueError(f"shape = {event} must hold positive sizes: the shape of one event, without the batch")
        hidden, depth = whole("hidden", hidden), whole("depth", depth)
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden = {hidden} must be an even number, at least 2")
        if depth < 1:
            raise ValueError(f"depth = {depth} must be at least 1")
        super().__init__(
            event, hidden, hidden, classes=classes, learned_variance=learned_variance, time=time, process=process
        )
        size = math.prod(event)
        self.hidden, self.depth = hidden, depth
        self.first = torch.nn.Linear(size, hidden)
        self.blocks = torch.nn.ModuleList(_Block(hidden) for _ in range(depth))
        self.last = torch.nn.Linear(hidden, size * (1 + self.learned_variance))
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    @property
    def sizes_config(self) -> dict[str, Any]:
        return {"hidden": self.hidden, "depth": self.depth}

    def forward(
        self, x: torch.Tensor, t: torch.Tensor | SharedLabels, classes: torch.Tensor | None = None
    ) -> torch.Tensor:
        time = self.condition(x, t, classes, self.first.weight.dtype)
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        out: torch.Tensor = self.last(torch.nn.functional.silu(h))
        n, *rest = self.shape
        return out.to(x.dtype).view(len(x), n * (1 + self.learned_variance), *rest)  # autocast has another dtype
