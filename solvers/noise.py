"""The normals of one run, from a seed or from a noise object.

A seed is an int (the documented counter-based generator: sample i of draw k depends on the seed, k and i only) or a
callable `noise(draw, t, s, like)` that returns a standard normal tensor like `like`. The first draw of a step has the
step's t and s: a Brownian path answers (W_s - W_t)/sqrt|s - t|. The prior's draw and a step's later draws have t = s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch

from halfbridge.kernels import Noise, normal, normal_block, philox
from halfbridge.solvers.algebra import Draw
from halfbridge.solvers.brownian import BrownianPath

__all__ = ["Normals", "OneNormal", "check_seed", "check_seeded", "prior_normal"]

# Below this many elements in all, the normals of a run are made in one call: a call a draw would cost more than the step.
BLOCK = 1 << 16


def check_seed(seed: Any) -> None:
    """Raise unless `seed` is None, an int in [0, 2^64) or a callable noise object."""
    if seed is None or callable(seed):
        return
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed = {seed!r} must be an int or a noise object called (draw, t, s, like)")
    philox.check_seed(seed)


def check_seeded(seed: Any, draws: Sequence[Draw]) -> None:
    """Raise where a run draws normals and has no seed."""
    if draws and seed is None:
        raise ValueError(f"seed = None, but the run draws {len(draws)} normals; pass an int or a noise object")


def check_first(first: Any) -> None:
    """Raise unless `first` is an int in [0, 2^64)."""
    philox.check_first(first, 0)


class Normals:
    """The normals of a run on states like `x`: `block` holds those made beforehand, by index; of the others, `fused` is for
    the kernels that make their own and `tensor` for the rest."""

    def __init__(self, seed: Any, first: int, x: torch.Tensor, draws: Sequence[Draw] = ()) -> None:
        check_seed(seed)
        check_first(first)
        check_seeded(seed, draws)
        self.seed, self.first, self.x = _for_samples(seed, first), first, x
        self.block: dict[int, torch.Tensor] = {}
        small = x.numel() * len(draws) <= BLOCK and x.dtype in (torch.float32, torch.float64)
        if draws and not callable(seed) and small:
            indices = [draw.index for draw in draws]
            block = normal_block(tuple(x.shape), seed, indices, first=first, dtype=x.dtype, device=x.device)
            self.block = dict(zip(indices, block.unbind(0), strict=True))

    def fused(self, draw: Draw, scale: float = 1.0) -> Noise | None:
        """The normal as the kernels' own argument; None where it exists as a tensor already."""
        if callable(self.seed) or draw.index in self.block:
            return None
        return Noise(scale, self.seed, draw.index, self.first)

    def tensor(self, draw: Draw, shape: Sequence[int] | None = None) -> torch.Tensor:
        if shape is None and draw.index in self.block:
            return self.block[draw.index]
        like = self.x if shape is None else self.x.new_empty(tuple(shape))
        return _made(self.seed, draw, like, self.first)


class OneNormal:
    """One draw of a run, as an opaque primitive gets it."""

    def __init__(self, normals: Normals, draw: Draw) -> None:
        self._normals, self._draw = normals, draw

    def __call__(self, shape: Sequence[int] | None = None) -> torch.Tensor:
        return self._normals.tensor(self._draw, shape)

    def fused(self) -> Any:
        """What the kernels' `noise` argument takes: a Noise that they regenerate, or the tensor."""
        noise = self._normals.fused(self._draw)
        return self._normals.tensor(self._draw) if noise is None else noise


class Stream:
    """`draw()` for a step that runs on tensors: counts the normals of the run."""

    def __init__(self, normals: Normals, count: int = 0) -> None:
        self.normals, self.count, self.span = normals, count, (0.0, 0.0)

    def __call__(self, shape: Sequence[int] | None = None) -> torch.Tensor:
        if self.normals.seed is None:
            raise ValueError("seed = None, but the solver draws a normal; pass an int or a noise object")
        self.count += 1
        draw = Draw(self.count, *self.span)
        self.span = (draw.s, draw.s)
        return self.normals.tensor(draw, shape)


def prior_normal(seed: Any, t: float, like: torch.Tensor, first: int) -> torch.Tensor:
    """Draw 0: the prior's."""
    return _made(_for_samples(seed, first), Draw(0, t, t), like, first)


def _for_samples(seed: Any, first: int) -> Any:
    """The seed of a run whose x[0] is sample `first`: a path of its own, where the seed is a path."""
    if isinstance(seed, BrownianPath):
        return seed.shifted(first)
    if callable(seed) and first:
        raise ValueError(
            f"first = {first}, but a noise object is called (draw, t, s, like) and could not know; pass first=0 and an object "
            "that makes the noise of these samples"
        )
    return seed


def _made(seed: int | Callable[..., torch.Tensor], draw: Draw, like: torch.Tensor, first: int) -> torch.Tensor:
    if not callable(seed):
        return normal(tuple(like.shape), seed, draw.index, first, dtype=like.dtype, device=like.device)
    z = seed(draw.index, draw.t, draw.s, like)
    if not isinstance(z, torch.Tensor) or z.shape != like.shape or z.dtype != like.dtype or z.device != like.device:
        got = f"{tuple(z.shape)}, {z.dtype}, {z.device}" if isinstance(z, torch.Tensor) else type(z).__name__
        raise ValueError(
            f"the noise object returned {got} for draw {draw.index}; it must return a tensor like `like`: "
            f"{tuple(like.shape)}, {like.dtype}, {like.device}"
        )
    return z
