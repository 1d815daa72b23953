"""The two models: their numbers, their training and their samplers."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

import halfbridge as hb
from halfbridge.training import ScoreFit, data, fit_score, losses, objectives


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every number of the experiment."""

    examples: int = 10_000
    epochs: int = 500
    batch_size: int = 1000
    hidden: int = 64
    depth: int = 3
    lr: float = 4e-3
    ema_decay: float = 0.999
    chain: int = 1000
    """DDPM's steps; beta rises linearly from 0.1/chain to 20/chain, which Ho et al. have at 1000."""
    levels: int = 10
    sigma_first: float = 1.0
    sigma_last: float = 0.01
    """NCSN's noise levels, a geometric sequence: Song and Ermon's own."""
    corrections: int = 100
    langevin: float = 2e-5
    """T and epsilon of annealed Langevin sampling: Song and Ermon's own."""
    samples: int = 10_000
    references: int = 6
    """Fresh data samples, of `samples` points, that every sample is compared with."""
    projections: int = 100

    @property
    def steps(self) -> int:
        return self.epochs * self.examples // self.batch_size


FULL = Settings()
QUICK = Settings(examples=2000, epochs=20, batch_size=250, hidden=32, chain=100, corrections=10, samples=1000,
                 references=3, projections=50)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AnnealedLangevin(hb.Solver):
    """Song and Ermon 2019, algorithm 1, on the grid sigma_1 > ... > sigma_L > 0 of a process that keeps the data.

    At each level, `corrections` times x <- x + a/2 score + sqrt(a) z with a = step_size (sigma/sigma_L)^2; after the last
    x + sigma_L^2 score, the mean of the data that such a noisy x comes from (Jolicoeur-Martineau et al. 2021).
    """

    step_size: float
    sigma_last: float
    corrections: int = 100

    order = 0
    family = "corrector"
    source = "Song and Ermon 2019"
    integrates = (hb.Field,)

    @property
    def evals_per_step(self) -> int:  # type: ignore[override]
        return self.corrections

    def step(self, field: hb.Field, x: Any, t: float, s: float, draw: Callable[..., Any]) -> Any:
        a = self.step_size * (field.process.sigma(t) / self.sigma_last) ** 2
        langevin = hb.Langevin(step_size=a / 2)
        for _ in range(self.corrections):
            x = langevin.correct(field, x, t, draw)
        return x

    def finish(self, field: hb.Field, x: Any, t: float, draw: Callable[..., Any]) -> Any:
        return field.data(t, self.step(field, x, t, 0.0, draw))


class Model(NamedTuple):
    """One of the two: what is trained, and how it is sampled."""

    name: str
    net: torch.nn.Module
    objective: objectives.Objective
    solver: hb.Solver
    grid: list[float]
    shown: dict[float, str]
    """Times of the grid at which the picture of the path looks, with what it says there."""
    variants: dict[str, hb.Solver]
    """Other solvers that the same network is sampled with."""


def models(s: Settings, seed: int) -> list[Model]:
    """DDPM and NCSN, with networks that start from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = [hb.nets.MLP(2, hidden=s.hidden, depth=s.depth, time="steps") for _ in range(2)]

    chain = hb.DiscreteVP(torch.linspace(0.1, 20.0, s.chain, dtype=torch.float64) / s.chain)
    steps = [float(k) for k in range(s.chain, -1, -1)]
    seen = [steps[round(u * s.chain)] for u in (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)]
    ddpm = Model("DDPM", nets[0], objectives.DDPM(chain), hb.Ancestral(), steps, {t: f"step {t:g}" for t in seen},
                 {"large variance": hb.Ancestral(variance="transition")})  # fmt: skip

    # the network gives -sigma score, which has the same size at all levels (Song and Ermon 2020, technique 3)
    levels = losses.geometric_levels(s.sigma_first, s.sigma_last, s.levels)
    objective = objectives.NCSN(levels=levels, predicts="noise", labels="index")
    ladder = [*objective.times.tolist(), 0.0]
    looks = {ladder[i]: f"after σ = {ladder[i - 1]:.2g}" for i in (round(u * s.levels) for u in (0.2, 0.4, 0.6, 0.8))}
    looks = {ladder[0]: "start", **looks, 0.0: f"after σ = {ladder[-2]:.2g}, denoised"}
    annealed = AnnealedLangevin(s.langevin, s.sigma_last, s.corrections)
    return [ddpm, Model("NCSN", nets[1], objective, annealed, ladder, looks, {})]


def train(model: Model, examples: data.Dataset, s: Settings, seed: int, folder: Path) -> ScoreFit[Any]:
    """Adam, its rate falling to 0 along a cosine. The averaged network is the one that is sampled."""
    return fit_score(
        model.net,
        examples,
        model.objective.process,
        objective=model.objective,
        steps=s.steps,
        batch_size=s.batch_size,
        lr=s.lr,
        schedule="cosine",
        ema_decay=s.ema_decay,
        seed=seed,
        out=folder,
        resume="auto",
        progress=sys.stderr.isatty(),
    )


def sample(field: hb.Field, solver: hb.Solver, model: Model, n: int, seed: int) -> Any:
    """The `hb.Solution` of n samples, with the states at `model.shown`; `hb.sample` gives the same x."""
    start = field.process.prior_std * hb.kernels.normal((n, 2), seed)
    with torch.no_grad():
        return hb.solve(field, solver, start, grid=model.grid, seed=seed, save=list(model.shown))
