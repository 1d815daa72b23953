"""What is measured of each iterate: errors at both ends, the way to the last iterate, energy; a rule to stop by."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from halfbridge.kernels.philox import integer
from halfbridge.solvers.reference.two_sample import energy_distance, sliced_w2, sorted_projections, spread
from halfbridge.training.bridge.chains import PathLaw, path_index
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.ends import End
from halfbridge.training.bridge.estimates import Estimate, path_energy, path_kl
from halfbridge.training.bridge.ipf import Iterate

__all__ = ["Monitor", "Monitored", "Monitors", "StopRule", "table"]

PATHS = 1 << 38  # the first path of those that are measured, far from the paths trained on
DISTANCES = ("energy_distance", "sliced_w2")
EXPLODED = 100.0  # a chain's end is this many times as far out as the laws: it diverges


class Monitor(NamedTuple):
    """A line of monitors.csv: the iterate pi^n, n = `iterate`, whose kernels of `direction` are new. NaN: not to be had."""

    iterate: int
    direction: str
    loss: float
    """Mean of the last 100 losses of its training."""
    start_energy_distance: float
    """Between x_0 of the newest backward chain, from the law at T, and the law at 0."""
    start_sliced_w2: float
    """The same as sliced W2."""
    end_energy_distance: float
    """Between x_N of the newest forward chain, from the law at 0, and the law at T."""
    end_sliced_w2: float
    kl: float
    """KL(pi^n || pi^{n-2}) in nats: 0 at the limit, but for the noise of training. NaN for the first iterate."""
    kl_error: float
    """Standard error."""
    path_energy: float
    """E sum_k |M_k(x_k) - x_k|^2/(4 gamma_k) of pi^n."""
    path_energy_error: float
    seconds: float
    """Time in training so far, over all parts of a resumed run."""


class Monitored(NamedTuple):
    """A line, and the far ends of the chains that it was measured on, (paths, *shape): None in processes that did not."""

    row: Monitor
    samples: Tensor | None


class Monitors:
    """Measures iterates on `paths` paths of `seed`, for each direction always the same starts and noise, which no training sees:
    what differs between two lines is the kernels.

    chunk: the paths simulated at once. The floors are the same distances between two samples of the end law itself, of that size:
    what a perfect bridge would have. ValueError for fewer than 2 paths and chunk < 1.
    """

    def __init__(self, start: End, end: End, paths: int = 2048, seed: int = 0, chunk: int = 8192) -> None:
        self.paths = integer("monitor_paths", paths, 2, 1 << 20, "pass the number of paths, at least 2")
        self.chunk = integer("chunk", chunk, 1, 1 << 31, "pass the number of paths to simulate at once")
        self.start, self.end, self.seed = start, end, seed
        self._laws = {way: self._sample(law, 0) for way, law in ((Direction.BACKWARD, start), (Direction.FORWARD, end))}
        self._reach = max(_size(x) for x in self._laws.values())

    def floors(self) -> dict[str, float]:
        """{"start_energy_distance", "start_sliced_w2", "end_energy_distance", "end_sliced_w2"}."""
        return dict(self._floors)

    @cached_property
    def _floors(self) -> dict[str, float]:
        pairs = {"start": self._distances(self._sample(self.start, 2), Direction.BACKWARD),
                 "end": self._distances(self._sample(self.end, 2), Direction.FORWARD)}  # fmt: skip
        return {f"{k}_{name}": v for k, both in pairs.items() for name, v in zip(DISTANCES, both, strict=True)}

    @cached_property
    def _known(self) -> dict[Direction, tuple[float, Tensor]]:
        """What the distances to each law's sample have in common."""
        return {way: (spread(x), sorted_projections(x)) for way, x in self._laws.items()}

    def measure(self, now: Iterate, before: Iterate, rows: list[Monitor], loss: float, seconds: float) -> Monitored:
        """The line of `now`, the iterate after `before`. FloatingPointError where its chain explodes: its far end is not
        finite, or 100 times as far out as the laws."""
        law, way = now.law, now.law.transitions.direction
        samples = self._ends(law)
        size = _size(samples)
        if not size <= EXPLODED * self._reach:
            raise FloatingPointError(
                f"the {way.value} chain ends {size:.3g} from the origin (root mean square), and the laws that it joins are "
                f"within {self._reach:.3g}"
            )
        ends = dict.fromkeys(Direction, (math.nan, math.nan))
        if rows:
            last = rows[-1]
            ends[Direction.BACKWARD] = (last.start_energy_distance, last.start_sliced_w2)
            ends[Direction.FORWARD] = (last.end_energy_distance, last.end_sliced_w2)
        ends[way] = self._distances(samples, way)
        kl = Estimate(math.nan, math.nan)
        kernels = before.forward if way is Direction.FORWARD else before.backward
        if kernels is not None:
            kl = path_kl(law, PathLaw(law.start, kernels), self.paths, self.seed, PATHS + 2 * self.paths, self.chunk)
        energy = path_energy(law, self.paths, self.seed, PATHS + 2 * self.paths, self.chunk)
        row = Monitor(
            now.index, way.value, loss, *ends[Direction.BACKWARD], *ends[Direction.FORWARD], *kl, *energy, seconds
        )
        return Monitored(row, samples)

    def law_at_the_end(self, way: Direction) -> Tensor:
        """Samples of the law that chains of that direction are to end in, (paths, *shape)."""
        return self._laws[way]

    def _sample(self, law: End, half_bridge: int) -> Tensor:
        return law.sample(self.paths, self.seed, path_index(half_bridge, PATHS))

    def _ends(self, law: PathLaw) -> Tensor:
        """The far ends of the chain, of the same paths for all iterates of one direction."""
        begin, parity = PATHS + self.paths, law.transitions.direction.parity
        parts = []
        for first in range(begin, begin + self.paths, self.chunk):
            n = min(self.chunk, begin + self.paths - first)
            parts.append(law.sample(n, self.seed, first, parity))
        return torch.cat(parts)

    def _distances(self, x: Tensor, way: Direction) -> tuple[float, float]:
        law, (y_spread, y_sorted) = self._laws[way], self._known[way]
        return energy_distance(x, law, y_spread=y_spread), sliced_w2(x, law, y_sorted=y_sorted)


@dataclass(frozen=True)
class StopRule:
    """When to stop before the last iteration; asked after each, that is after each forward half-bridge.

    kl, error  stop where KL(pi^n || pi^{n-2}) was at most kl, in nats, for both half-bridges of the iteration, and the energy
               distances at both ends are at most error, in the data's units. They go together: networks that hardly train do
               not move either, and are near no end. Training noise keeps both above some level: monitors.csv shows it, and
               the floors what a perfect bridge would have (`BridgeFit.floors`; the command prints them)
    patience   stop where this many iterations in a row have not lowered the larger of the two ends' energy distances
    All may be None. ValueError for numbers that are not positive, and for one of kl and error without the other.
    """

    kl: float | None = None
    error: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, unit, value in (("kl", "in nats", self.kl), ("error", "an energy distance", self.error)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
                raise ValueError(f"`{name}` = {value!r} must be a positive number, {unit}, or None")
        if self.kl is not None and self.error is None:
            raise ValueError(
                f"`kl` = {self.kl!r} alone stops networks that do not train, since they do not move; pass `error` too, the most "
                "that the energy distances at both ends may be (monitors.csv has them; a perfect bridge's are about 0)"
            )
        if self.error is not None and self.kl is None:
            raise ValueError(
                f"`error` = {self.error!r} alone stops where both ends are reached, by a bridge or not; pass `kl` too, the most "
                "nats that a half-bridge may still move"
            )
        if self.patience is not None:
            integer("patience", self.patience, 1, 1 << 31, "pass a number of iterations, or None")

    def reason(self, rows: list[Monitor]) -> str | None:
        """Why to stop now, or None."""
        if not rows or rows[-1].iterate % 2 or len(rows) < 4:
            return None
        last = rows[-1]
        if self.kl is not None and self.error is not None:
            still = all(row.kl <= self.kl for row in rows[-2:])
            if still and all(end <= self.error for end in (last.start_energy_distance, last.end_energy_distance)):
                return (
                    f"both half-bridges of the iteration moved by at most {self.kl:g} nats, and both ends are within an energy "
                    f"distance of {self.error:g} of their laws"
                )
        worst = [max(row.start_energy_distance, row.end_energy_distance) for row in rows if row.iterate % 2 == 0]
        n = self.patience
        if n is not None and len(worst) > n and min(worst[-n:]) >= min(worst[:-n]):
            return f"the larger marginal error has not fallen for {n} iterations"
        return None


def table(rows: list[Monitor]) -> str:
    """monitors.csv."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([Monitor._fields, *rows])
    return text.getvalue()


def _size(x: Tensor) -> float:
    return float(x.flatten(1).double().square().mean().sqrt()) if bool(torch.isfinite(x).all()) else math.inf
