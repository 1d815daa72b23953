"""Brownian motion as a function of the seed and the time alone, so that runs on any grids follow one path.

W(t) is built by Levy's construction (midpoint displacement: Levy 1948; as a "virtual Brownian tree" on a splittable
generator: Li, Wong, Chen and Duvenaud 2020), on dyadic intervals that do not depend on a run:

    octave j    [2^j, 2^(j+1)), whose increment 2^(j/2) z is independent of every other octave's; the lowest is
                [0, 2^(FLOOR+1)); negative times have octaves of their own, and W(0) = 0
    level l     within an octave of width w the 2^l cells of width h = w 2^-l; the midpoint of a cell lies
                sqrt(h)/2 z above the mean of its ends
    last level  l = depth: inside a cell W is the Brownian bridge's mean plus its standard deviation times one z, so a
                time inside it has the exact law given the ends, and W is continuous

At a time that a fraction v into its cell, level l therefore contributes min(v, 1 - v) sqrt(h) z, the last one
sqrt(v (1 - v) h) z, and the octave u sqrt(w) z with u = (t - 2^j)/w: their squares sum to t - 2^j exactly.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from halfbridge.kernels import normal, philox
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.normal_sum import normal_sum

__all__ = ["BrownianPath", "check_like"]

FLOOR = -32  # the octave that holds the times below 2^-31
MAX_DEPTH = 31  # cell k of level l has draw 2^l + k, and a draw has 32 bits
TAG = (0x42726F77, 0x6E69616E)  # the sample index whose words make keys, "Brow" and "nian": no run has as many samples


class Place(NamedTuple):
    """|t| = 2^octave + u width, 0 <= u < 1 (u width in the lowest octave); side is 1 for t < 0. No rounding."""

    side: int
    octave: int
    u: float

    @property
    def width(self) -> float:
        return math.ldexp(1.0, max(self.octave, FLOOR + 1))

    def cell(self, depth: int) -> tuple[int, float]:
        """(index of the cell of level `depth`, fraction of it that lies below)."""
        scaled = math.ldexp(self.u, depth)
        return int(scaled), scaled - int(scaled)


def place(t: float) -> Place:
    side = int(t < 0.0)
    if abs(t) < math.ldexp(1.0, FLOOR + 1):
        return Place(side, FLOOR, math.ldexp(abs(t), -FLOOR - 1))
    mantissa, exponent = math.frexp(abs(t))
    return Place(side, exponent - 1, 2.0 * mantissa - 1.0)


def nodes(at: Place, depth: int) -> list[tuple[int, float]]:
    """[(draw, coefficient)]: W(t) less W at the lower end of its octave is the sum of coefficient times normal.

    Draw 0 is the octave's increment, draw 2^l + k cell k of level l. A time on a cell's end has no finer terms.
    """
    if at.u == 0.0:
        return []
    found = [(0, at.u * math.sqrt(at.width))]
    for level in range(depth + 1):
        k, v = at.cell(level)
        if v == 0.0:
            break
        h = math.ldexp(at.width, -level)
        share = min(v, 1.0 - v) * math.sqrt(h) if level < depth else math.sqrt(v * (1.0 - v) * h)
        found.append(((1 << level) + k, share))
    return found


@functools.lru_cache(maxsize=4096)
def key_of(seed: int, side: int, octave: int) -> int:
    """The generator's key in an octave: the first two words of the counter (octave, side, TAG) under the seed."""
    low, high, _, _ = philox.philox(octave & philox.MASK, side, *TAG, *philox.halves(seed))
    return int(low | high << 32)


@dataclass(frozen=True)
class BrownianPath:
    """A Brownian motion W on the whole time axis, W(0) = 0: pass it as `seed`, and every grid follows the same path.

    seed    int in [0, 2^64): sample i of a batch depends on (seed, first + i, the element's index in it) only
    first   global index of sample 0; `solve(..., first=k)` adds k
    depth   an octave [2^j, 2^(j+1)) has 2^depth cells, 1 <= depth <= 31. Paths of different depths agree on the cells' ends.

    `path(draw, t, s, like)` is the noise object's call: the normal (W_s - W_t)/sqrt|s - t| for the first draw of a step,
    and for what is no increment (t = s: the prior, later draws of a step) the plain stream's of (seed, draw).
    `path.increment(t, s, like)` is W_s - W_t.

    Law: increments over a monotone grid with at most one time inside each cell (any number on cells' ends) are jointly
    N(0, |s - t|) and independent, exactly up to the rounding of the normals. Steps of at least max(|t|, |s|, 2^-31) 2^-depth
    make such a grid. A step inside one cell raises ValueError: there the path is an arc, too smooth.
    Normals are float64 for a float64 `like`, else float32; sums are float64, rounded once to like's dtype. So increments add
    up over any partition to rounding, and a float32 run follows the float64 run's path to 1e-6 a normal. The value at the
    last time asked for is kept, one float64 tensor: a run costs depth + 2 normals a step. It never changes a result.
    Levy 1948; Li et al. 2020. Raises TypeError or ValueError for a seed, first, depth or time out of range.
    """

    seed: int
    first: int = 0
    depth: int = field(default=16, kw_only=True)
    _last: dict[Any, torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", philox.check_seed(self.seed))
        object.__setattr__(self, "first", philox.check_first(self.first, 0))
        philox.integer("depth", self.depth, 1, 32, "pass the number of halvings of an octave, 1 to 31")

    def shifted(self, first: int) -> BrownianPath:
        """The same path for the samples from self.first + first on."""
        return BrownianPath(self.seed, self.first + first, depth=self.depth)

    def __call__(self, draw: int, t: float, s: float, like: torch.Tensor) -> torch.Tensor:
        check_like(like)
        if t == s:
            philox.check_draw(draw)
            return normal(like.shape, self.seed, draw, self.first, dtype=like.dtype, device=like.device)
        return (self._increment(t, s, like) / math.sqrt(abs(s - t))).to(like.dtype)

    def increment(self, t: float, s: float, like: torch.Tensor) -> torch.Tensor:
        """W_s - W_t, of like's shape (batch, *shape), dtype and device; s may lie before t."""
        check_like(like)
        return self._increment(t, s, like).to(like.dtype)

    def _increment(self, t: float, s: float, like: torch.Tensor) -> torch.Tensor:
        t, s = _time("t", t), _time("s", s)
        a, b = place(t), place(s)
        self._check_cells(t, s, a, b)
        start = self._within(t, a, like)  # asked for first: it is what the step before left
        total = self._within(s, b, like) - start
        if a.side == b.side:
            between = [(a.side, octave, 1.0) for octave in range(a.octave, b.octave)]
            between += [(a.side, octave, -1.0) for octave in range(b.octave, a.octave)]
        else:
            between = [(b.side, octave, 1.0) for octave in range(FLOOR, b.octave)]
            between += [(a.side, octave, -1.0) for octave in range(FLOOR, a.octave)]
        for side, octave, sign in between:
            scale = sign * math.sqrt(Place(side, octave, 0.0).width)
            total += self._sum(key_of(self.seed, side, octave), [(0, scale)], like)
        return total

    def _within(self, t: float, at: Place, like: torch.Tensor) -> torch.Tensor:
        """W(t) less its value at the lower end of its octave, float64."""
        known = (t, like.shape, like.device, accumulation(like.dtype))
        value = self._last.get(known)
        if value is None:
            value = self._sum(key_of(self.seed, at.side, at.octave), nodes(at, self.depth), like)
            self._last.clear()
            self._last[known] = value
        return value

    def _sum(self, key: int, terms: list[tuple[int, float]], like: torch.Tensor) -> torch.Tensor:
        draws, coefficients = [draw for draw, _ in terms], [c for _, c in terms]
        return normal_sum(like.shape, key, draws, coefficients, self.first, like.dtype, like.device)

    def _check_cells(self, t: float, s: float, a: Place, b: Place) -> None:
        (k, v), (m, w) = a.cell(self.depth), b.cell(self.depth)
        if t == s or (a.side, a.octave, k) != (b.side, b.octave, m) or v == 0.0 or w == 0.0:
            return
        width = math.ldexp(a.width, -self.depth)
        needed = 1 + math.ceil(math.log2(a.width / abs(s - t)))
        remedy = f"pass BrownianPath({self.seed}, depth={needed})" if needed <= MAX_DEPTH else "rescale the time"
        raise ValueError(
            f"the step from t = {t!r} to s = {s!r} lies inside one cell of the path, which resolves {width:.3g} there "
            f"(depth = {self.depth}); {remedy}, or take larger steps"
        )


def check_like(like: Any) -> None:
    """Raise unless `like` is a floating-point tensor with a batch dimension."""
    if not isinstance(like, torch.Tensor):
        raise TypeError(f"like must be a tensor of shape (batch, *shape), got {type(like).__name__}")
    if like.ndim < 1 or not like.is_floating_point():
        raise ValueError(
            f"like has shape {tuple(like.shape)} and dtype {like.dtype}; pass a floating-point tensor, batch dimension first"
        )


def _time(name: str, t: Any) -> float:
    try:
        value = float(t)
    except (TypeError, ValueError):
        raise TypeError(f"{name} = {t!r} is not a time; pass a float") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} = {t!r} is not finite; pass a finite time")
    return value
