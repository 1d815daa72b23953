"""Langevin correction at a fixed time, and the predictor-corrector loop around it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from halfbridge.kernels import langevin
from halfbridge.solvers.algebra import Vector
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process
from halfbridge.solvers.solver import Solver, ends_at_data

__all__ = ["Langevin", "PredictorCorrector"]


@dataclass(frozen=True)
class Langevin(Solver):
    """x' = x + e score + sqrt(2 e) z at a fixed time: one step of the unadjusted Langevin algorithm.

    step_size  gives e. On N(0, c) the stationary variance is c/(1 - e/(2c)), so the bias is first order in e.
    snr        gives e = 2 (snr |z|/|score|)^2, Euclidean norms of each sample (norm="sample") or their means over the
               batch (norm="batch", Song et al. 2021's own, which makes a sample depend on its neighbours).
    transition=True multiplies e by (alpha(t)/alpha(t'))^2, t' the next lower time of the grid (0 below the last): the
               factor 1 - beta of Song et al. on their grid of 1000 steps. It needs `solver.on(process, grid)`.
    Exactly one of snr and step_size; neither means snr = 0.16. Alone on a grid it corrects once at each time reached
    (annealed Langevin, Song and Ermon 2019). Song et al. 2021, algorithms 4 and 5. Raises ValueError out of range.
    """

    snr: float | None = None
    step_size: float | None = None
    norm: str = "sample"
    transition: bool = False

    order = 0
    family = "corrector"
    evals_per_step = 1
    source = "Song et al. 2021"
    integrates = (Field,)
    _grid: ClassVar[tuple[float, ...] | None] = None  # of the run, increasing: set on the copy that `on` returns

    def __post_init__(self) -> None:
        if self.snr is not None and self.step_size is not None:
            raise ValueError(
                f"snr = {self.snr!r} and step_size = {self.step_size!r} both set the step; pass one of them"
            )
        if self.snr is None and self.step_size is None:
            object.__setattr__(self, "snr", 0.16)
        for name in ("snr", "step_size"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} = {value!r} must be finite and positive")
        if self.norm not in ("sample", "batch"):
            raise ValueError(f"norm = {self.norm!r} is not one of 'sample', 'batch'")
        if self.transition and self.snr is None:
            raise ValueError("transition=True scales the step that snr gives; with step_size pass the step you want")

    def on(self, process: Process | None, grid: Sequence[float]) -> Langevin:
        return self._bound(_grid=tuple(sorted(float(t) for t in grid)))

    def step(self, field: Field, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        return self.correct(field, x, s, draw)

    def correct(self, field: Field, x: Any, t: float, draw: Callable[..., Any]) -> Any:
        """One correction at time t."""
        if self.step_size is not None:
            e = self.step_size
            return x + e * field.score(t, x) + math.sqrt(2.0 * e) * draw()
        m = field(t, x)
        return _snr_step(m.x, m.score, draw(), self, self._factor(field.process, t))

    def _factor(self, process: Process, t: float) -> float:
        if not self.transition:
            return 1.0
        if self._grid is None:
            raise ValueError("transition=True needs the grid of the run: call correct on solver.on(process, grid)")
        below = bisect_left(self._grid, t) - 1
        return (process.alpha(t) / process.alpha(self._grid[below] if below >= 0 else 0.0)) ** 2


def _snr_step(x: Any, score: Any, z: Any, solver: Langevin, factor: float) -> Any:
    """The step whose size is a ratio of norms: not linear, hence a primitive of its own in a plan."""
    rule: dict[str, Any] = {"snr": solver.snr, "norm": solver.norm}
    if not isinstance(x, Vector):
        return langevin(x, score, noise=z, factor=factor, **rule)
    terms = list(score.terms.items())
    scale = 1.0
    if len(terms) == 1:  # a multiple of a stored vector: no pass is spent on forming the score
        scale = terms[0][1]
        score = x.trace.vector(terms[0][0])

    def run(v: Sequence[torch.Tensor], noise: Any, out: torch.Tensor | None, scale: Any, factor: Any) -> torch.Tensor:
        return langevin(v[0], v[1], noise=noise.fused(), scale=scale, factor=factor, out=out, **rule)

    label = f"langevin(snr={solver.snr:g}, factor={factor:.6g}, score={scale:+.6g})"
    return x.trace.apply(label, run, [x, score], z, (scale, factor))


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """The predictor's step from t to s, then `corrector_steps` corrections at s. Song et al. 2021, algorithm 1.

    predictor: any solver (also a multistep one). corrector: a Langevin, or any object with `correct(field, x, t, draw)`.
    At the end of a grid where sigma = 0 the predictor's last value is returned uncorrected. With corrections the declared
    order is 0: a step of fixed size has a bias that finer grids do not remove (see Langevin).
    """

    predictor: Solver
    corrector: Any
    corrector_steps: int = 1

    integrates = (Field,)

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, Solver):
            raise TypeError(f"predictor must be a Solver, got {type(self.predictor).__name__}")
        if not callable(getattr(self.corrector, "correct", None)):
            raise TypeError(f"corrector must have correct(field, x, t, draw), got {type(self.corrector).__name__}")
        if type(self.corrector_steps) is not int or self.corrector_steps < 0:
            raise ValueError(f"corrector_steps = {self.corrector_steps!r} must be an integer of at least 0")

    @property
    def family(self) -> str:  # type: ignore[override]
        return "sde" if self.corrector_steps else self.predictor.family

    @property
    def order(self) -> int:  # type: ignore[override]
        return 0 if self.corrector_steps else self.predictor.order

    @property
    def evals_per_step(self) -> int:  # type: ignore[override]
        return self.predictor.evals_per_step + self.corrector_steps * getattr(self.corrector, "evals_per_step", 1)

    @property
    def source(self) -> str:  # type: ignore[override]
        return f"Song et al. 2021, around {self.predictor.source}"

    def check(self, problem: Any) -> None:
        super().check(problem)
        self.predictor.check(problem)

    def on(self, process: Process | None, grid: Sequence[float]) -> PredictorCorrector:
        bind = getattr(self.corrector, "on", None)
        return self._bound(
            predictor=self.predictor.on(process, grid),
            corrector=bind(process, grid) if bind else self.corrector,
        )

    def step(self, field: Field, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        return self.advance(field, x, t, s, draw)[0]

    def advance(
        self, problem: Any, x: Any, t: float, s: float, draw: Callable[..., Any], past: Any = None
    ) -> tuple[Any, Any]:
        x, past = self.predictor.advance(problem, x, t, s, draw, past)
        if not ends_at_data(problem, s):
            for _ in range(self.corrector_steps):
                x = self.corrector.correct(problem, x, s, draw)
        return x, past
