"""What networks of a noisy state share: a shape, a label and a class that become one vector, and how they are written down."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from halfbridge.nets.classes import ClassEmbedding
from halfbridge.nets.embedding import described_time, embedding_of
from halfbridge.nets.sizes import flag, whole
from halfbridge.solvers.processes import Process

__all__ = ["Conditioned"]


class Conditioned(torch.nn.Module):
    """A network of events of `shape`, called net(x, t) or net(x, t, classes); see `MLP` for the arguments.

    The label is embedded in `embedded` numbers (a module says how many itself), two layers make `features` of them, and the
    class's vector is added.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        embedded: int,
        features: int,
        *,
        classes: int,
        learned_variance: bool,
        time: str | torch.nn.Module,
        process: Process | Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.shape, self.learned_variance = shape, flag("learned_variance", learned_variance)
        self._time_argument = time if isinstance(time, str) else None
        self.time = embedding_of(time, embedded, process)
        self.time_layers = torch.nn.Sequential(
            torch.nn.Linear(int(getattr(self.time, "features", embedded)), features),
            torch.nn.SiLU(),
            torch.nn.Linear(features, features),
        )
        self.class_embedding = ClassEmbedding(whole("classes", classes), features)

    @property
    def classes(self) -> int:
        """How many classes the network knows; 0: it takes no third argument."""
        return self.class_embedding.classes

    @property
    @abstractmethod
    def sizes_config(self) -> dict[str, Any]:
        """The constructor's arguments that are the network's own, in JSON values."""

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments in JSON values. ValueError if `time` is a module or `process` has no description."""
        return {
            "shape": list(self.shape),
            **self.sizes_config,
            "classes": self.classes,
            "learned_variance": self.learned_variance,
            **described_time(self._time_argument, self.time),
        }

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def condition(
        self, x: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """silu of the label's and the class's vector, (batch, features), in `dtype`. ValueError for an x of another shape."""
        if tuple(x.shape[1:]) != self.shape or t.shape != x.shape[:1]:
            raise ValueError(
                f"got x of shape {tuple(x.shape)} and t of shape {tuple(t.shape)}; this network takes x of shape "
                f"(batch, {', '.join(map(str, self.shape))}) and t of shape (batch,)"
            )
        label = self.time_layers(self.time(t).to(dtype))
        return torch.nn.functional.silu(self.class_embedding(label, classes))

    def extra_repr(self) -> str:
        return f"{self.parameter_count} parameters"
