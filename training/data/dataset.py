"""A data set: its examples, classes and grey levels, checked once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from halfbridge.solvers.dequantise import dequantise

__all__ = ["Dataset", "check_examples", "in_pieces"]

ELEMENTS = 1 << 20  # looked at, or converted, at once


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples to train on, all on the CPU. `load` makes one; so may you, from tensors of your own.

    Images hold grey level k of 0 .. levels - 1 as -1 + 2 k/(levels - 1), from -1 to 1, each level a point. A density needs
    bins: `dequantised` spreads level k over [-1 + 2 k/levels, -1 + 2 (k + 1)/levels). The point, times 1 - 1/levels, is
    the middle of that bin, and it lies in it (levels 0 and levels - 1 on its outer edge). A model trained on points is a
    good sampler but has no bits per dimension worth quoting, for its density may be as narrow as training allows; train
    on `load(..., dequantise=True)` and evaluate `dequantised(seed)` of the test images, through `hb.bits_per_dim` with
    the same `levels`. The examples of such a set are dequantised once; `fit_score`, given the Dataset and not its examples,
    draws fresh noise for its pixels whenever one is seen.

    Raises ValueError for examples that `check_examples` refuses and for members that disagree.
    """

    examples: torch.Tensor = dataclasses.field(repr=False)
    """(n, *shape), float: (n, d) for points, (n, channels, height, width) for images."""
    classes: torch.Tensor | None = dataclasses.field(default=None, repr=False)
    """(n,) int64, from 0, or None."""
    name: str = "data"
    names: tuple[str, ...] | None = None
    """What each class is called, or None."""
    levels: int | None = None
    """How many grey levels an image's pixels have (256; 17 for the digits), None for points."""
    range: tuple[float, float] | None = None
    """The smallest and largest value that an image may have, (-1, 1); None for points."""
    pixels: torch.Tensor | None = dataclasses.field(default=None, repr=False)
    """The grey levels of images, uint8, like `examples`; None for points."""
    config: Mapping[str, Any] | None = None
    """Arguments, of JSON values, that `load(**config)` makes this data set from; None for tensors of your own."""

    def __post_init__(self) -> None:
        check_examples(self.examples, f"data {self.name!r}" if self.name != "data" else "data")
        n = len(self.examples)
        if self.classes is not None:
            if self.classes.shape != (n,) or self.classes.dtype != torch.int64:
                raise ValueError(
                    f"classes has shape {tuple(self.classes.shape)} and dtype {self.classes.dtype}; "
                    f"pass int64 of shape ({n},), one class for each example"
                )
            low, high = (int(end) for end in self.classes.aminmax())
            if low < 0 or (self.names is not None and high >= len(self.names)):
                top = "" if self.names is None else f" to {len(self.names) - 1}, one for each of names"
                raise ValueError(f"classes hold values from {low} to {high}; number them from 0{top}")
        if (self.pixels is None) != (self.levels is None) or (self.pixels is None) != (self.range is None):
            raise ValueError("pixels, levels and range go together: pass all three for images and none for points")
        if self.pixels is not None and self.pixels.shape != self.examples.shape:
            raise ValueError(
                f"pixels has shape {tuple(self.pixels.shape)} and examples {tuple(self.examples.shape)}; they must agree"
            )
        if self.pixels is not None:
            _check_varied(self.pixels, f"data {self.name!r}")  # dequantised, examples of constant pixels vary

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.examples.shape[1:])

    @property
    def n_classes(self) -> int:
        """How many classes there are, 0 without classes: what a network is built with."""
        if self.classes is None:
            return 0
        return len(self.names) if self.names is not None else int(self.classes.max()) + 1

    def dequantised(self, seed: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """-1 + 2 (k + U)/levels for each pixel k, U uniform in (0, 1): `hb.dequantise` over `range`. ValueError for points.

        Row i depends on the seed and on i; another seed gives fresh noise.
        """
        if self.pixels is None:
            raise ValueError(f"data {self.name!r} has no grey levels to dequantise: only images have them")
        return self.spread(self.pixels, seed, dtype=dtype)

    def spread(
        self, pixels: torch.Tensor, seed: int, first: int = 0, *, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """`dequantised` for pixels (m, *shape) that are the examples first, first + 1, ...: their noise is of those numbers."""
        if self.levels is None or self.range is None:
            raise ValueError(f"data {self.name!r} has no grey levels to dequantise: only images have them")
        low, high = self.range
        return dequantise(pixels, seed, first, levels=self.levels, low=low, high=high, dtype=dtype)

    @property
    def anew(self) -> bool:
        """Whether training dequantises the pixels anew for each example seen: `load(..., dequantise=True)` made this."""
        return self.pixels is not None and bool((self.config or {}).get("dequantise"))


def check_examples(examples: torch.Tensor, name: str = "data") -> None:
    """Raise ValueError for examples that cannot be learned: empty, no floats, not finite (naming the first row), constant."""
    if examples.ndim < 2 or examples.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(examples.shape)}; it must be (n, *shape) with n >= 1: one row for each example"
        )
    if not examples.is_floating_point():
        raise ValueError(
            f"{name} is {examples.dtype}; scale it and convert it to the network's dtype, e.g. data.float() / 127.5 - 1"
        )
    bad = torch.cat([~torch.isfinite(part).flatten(1).all(dim=1) for part in in_pieces(examples)])
    if bad.any():
        raise ValueError(
            f"{name} has {int(bad.sum())} rows that are not finite, the first is row {int(bad.nonzero()[0])}; drop them"
        )
    _check_varied(examples, name)


def in_pieces(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of consecutive rows, so that what is made of each is small."""
    return torch.split(rows, max(1, ELEMENTS // max(1, rows[0].numel())))


def _check_varied(rows: torch.Tensor, name: str) -> None:
    if len(rows) == 1:
        raise ValueError(f"{name} is constant: it is a single row; pass at least 2, which differ")
    if all(bool((part == rows[:1]).all()) for part in in_pieces(rows)):
        raise ValueError(f"{name} is constant: its {len(rows)} rows are all the same, so there is nothing to learn")
