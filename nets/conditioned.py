"""What networks of a noisy state share: a shape, a label and a class that become one vector, and how they are written down."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from halfbridge.nets.classes import ClassEmbedding
from halfbridge.nets.embedding import described_time, embedding_of
from halfbridge.nets.sizes import flag, whole
from halfbridge.solvers.processes import Process

__all__ = ["Condition", "Conditioned", "SharedLabels"]


class SharedLabels(NamedTuple):
    """The labels of a batch that has few different ones, so that each is embedded once: MLP and UNet take it for t."""

    values: torch.Tensor
    """The different labels, (m,)."""
    rows: torch.Tensor | None
    """Row i of the batch has values[rows[i]]: (batch,) int64, on the values' device. None: all have values[0], and m is 1."""


class Condition(NamedTuple):
    """What the layers of a network read of the label and the class."""

    vectors: torch.Tensor
    """(m, features), m the batch, the number of different labels, or 1 for one that all rows share."""
    rows: torch.Tensor | None
    """Which vector each row of the batch reads; None: its own, or the one that there is."""

    def through(self, layer: torch.nn.Module) -> torch.Tensor:
        """The layer's values, (batch, ...), or (1, ...) for all rows: computed once for each vector."""
        out: torch.Tensor = layer(self.vectors)
        return out if self.rows is None else out.index_select(0, self.rows)


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
        self, x: torch.Tensor, t: torch.Tensor | SharedLabels, classes: torch.Tensor | None, dtype: torch.dtype
    ) -> Condition:
        """silu of the label's and the class's vector, of `features` numbers in `dtype`. ValueError for an x of another shape."""
        values, rows = t if isinstance(t, SharedLabels) else (t, None)
        one_each = values if rows is None else rows
        counted = one_each.shape == x.shape[:1] or (values is not t and rows is None and values.shape == (1,))
        if tuple(x.shape[1:]) != self.shape or not counted:
            raise ValueError(
                f"got x of shape {tuple(x.shape)} and t of shape {tuple(one_each.shape)}; this network takes x of shape "
                f"(batch, {', '.join(map(str, self.shape))}) and t of shape (batch,)"
            )
        label = self.time_layers(self.time(values).to(dtype))
        if classes is not None and values is not t:
            label, rows = label.expand(len(x), -1) if rows is None else label.index_select(0, rows), None
        return Condition(torch.nn.functional.silu(self.class_embedding(label, classes)), rows)

    def extra_repr(self) -> str:
        return f"{self.parameter_count} parameters"
