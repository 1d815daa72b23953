"""What the readers of files return: images as they are stored, before any scaling."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from halfbridge.solvers.dequantise import dequantise
from halfbridge.training.data.dataset import Dataset, in_pieces

__all__ = ["Raw"]


class Raw(NamedTuple):
    """Rows of a data set as stored: grey levels, or floats that nobody scales."""

    values: torch.Tensor
    """uint8 grey levels (n, channels, height, width), or floats (n, *shape)."""
    classes: torch.Tensor | None = None
    """(n,), int64."""
    names: tuple[str, ...] | None = None
    """Of all classes of the whole set, also of those that a subset has not."""
    levels: int = 256
    """How many levels a pixel has."""
    own_split: bool = False
    """Whether the set came in parts of its own, so that `values` are one of them."""

    def rows(self, chosen: torch.Tensor) -> Raw:
        """The rows of those numbers."""
        classes = None if self.classes is None else self.classes[chosen]
        return self._replace(values=self.values[chosen], classes=classes)

    def dataset(self, name: str, config: dict[str, Any], noise: int | None = None) -> Dataset:
        """Levels k become -1 + 2 k/(levels - 1), rounded once from float64; dequantised with `noise` as its seed, if told.

        Floats stay, and ValueError is raised if they are to be dequantised.
        """
        if self.values.is_floating_point():
            if noise is not None:
                raise ValueError(
                    f"dequantise = True: data {name!r} has no grey levels, only images have them; leave it out"
                )
            return Dataset(self.values, self.classes, name, self.names, config=config)
        return Dataset(
            self.examples(noise),
            self.classes,
            name,
            self.names,
            levels=self.levels,
            range=(-1.0, 1.0),
            pixels=self.values,
            config=config,
        )

    def examples(self, noise: int | None = None) -> torch.Tensor:
        """The rows as `Dataset.examples` has them."""
        if self.values.is_floating_point():
            return self.values
        steps = torch.arange(self.levels, dtype=torch.float64, device="cpu")
        table = ((2.0 * steps - (self.levels - 1)) / (self.levels - 1)).float()
        examples = torch.empty(self.values.shape, dtype=torch.float32, device="cpu")
        first = 0
        for part, place in zip(in_pieces(self.values), in_pieces(examples), strict=True):
            place.copy_(table[part.long()] if noise is None else dequantise(part, noise, first, levels=self.levels))
            first += len(part)
        return examples
