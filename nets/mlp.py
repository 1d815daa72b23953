"""A residual multilayer perceptron over flattened events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from halfbridge.nets.classes import ClassEmbedding
from halfbridge.nets.embedding import described_time, embedding_of
from halfbridge.nets.sizes import flag, whole, whole_numbers
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

    def forward(self, h: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulate(time).chunk(2, dim=1)
        inner: torch.Tensor = self.inner(self.norm(h) * (1.0 + scale) + shift)
        out: torch.Tensor = self.outer(torch.nn.functional.silu(inner))
        return h + out


class MLP(torch.nn.Module):
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
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else whole_numbers("shape", shape)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(
                f"shape = {self.shape} must hold positive sizes: the shape of one event, without the batch"
            )
        hidden, depth = whole("hidden", hidden), whole("depth", depth)
        if hidden < 2 or hidden % 2:
            raise ValueError(f"hidden = {hidden} must be an even number, at least 2")
        if depth < 1:
            raise ValueError(f"depth = {depth} must be at least 1")
        self.learned_variance = flag("learned_variance", learned_variance)
        size = math.prod(self.shape)
        self.hidden, self.depth, self._time_argument = hidden, depth, time if isinstance(time, str) else None
        self.time = embedding_of(time, hidden, process)
        self.time_layers = torch.nn.Sequential(
            torch.nn.Linear(int(getattr(self.time, "features", hidden)), hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(hidden, hidden),
        )
        self.class_embedding = ClassEmbedding(whole("classes", classes), hidden)
        self.first = torch.nn.Linear(size, hidden)
        self.blocks = torch.nn.ModuleList(_Block(hidden) for _ in range(depth))
        self.last = torch.nn.Linear(hidden, size * (1 + self.learned_variance))
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    @property
    def classes(self) -> int:
        """How many classes the network knows; 0: it takes no third argument."""
        return self.class_embedding.classes

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments in JSON values. ValueError if `time` is a module or `process` has no description."""
        arguments = {
            "shape": list(self.shape),
            "hidden": self.hidden,
            "depth": self.depth,
            "classes": self.classes,
            "learned_variance": self.learned_variance,
        }
        return arguments | described_time(self._time_argument, self.time)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        if tuple(x.shape[1:]) != self.shape or t.shape != x.shape[:1]:
            raise ValueError(
                f"got x of shape {tuple(x.shape)} and t of shape {tuple(t.shape)}; this network takes x of shape "
                f"(batch, {', '.join(map(str, self.shape))}) and t of shape (batch,)"
            )
        time = self.time_layers(self.time(t).to(self.first.weight.dtype))
        time = torch.nn.functional.silu(self.class_embedding(time, classes))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        out: torch.Tensor = self.last(torch.nn.functional.silu(h))
        n, *rest = self.shape
        return out.to(x.dtype).view(len(x), n * (1 + self.learned_variance), *rest)  # autocast has another dtype

    def extra_repr(self) -> str:
        return f"{self.parameter_count} parameters"
