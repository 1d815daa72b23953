"""DSB against score-based models with the same network and as many steps of training, at few steps of sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

import halfbridge as hb
from bridged_digits.hundred import end_deviation
from bridged_digits.judged import Judged, like, mean_and_deviation, network
from bridged_digits.settings import Settings
from halfbridge.training import fit_score, objectives
from halfbridge.training.bridge import (
    Examples,
    Iterate,
    NetworkRegressor,
    Normal,
    PathLaw,
    ReferenceChain,
    gammas,
    ipf,
    reference_iterate,
)

__all__ = ["METHODS", "Model", "measured", "models"]

DSB, SHORT, LONG = "DSB", "SGM, same chain", "SGM, VP"
METHODS = (DSB, SHORT, LONG)


class Model(NamedTuple):
    """What makes digits in `budget` evaluations of its network."""

    name: str
    budget: int
    sample: Callable[[int, int], torch.Tensor]
    """(n, seed) -> (n, 1, 8, 8)."""
    gap: float | None
    """Energy distance of where its noising chain ends from the Gaussian that sampling starts from."""


def models(s: Settings, judged: Judged, seed: int, echo: Callable[[str], Any]) -> Iterator[Model]:
    """All of them, trained one after another."""
    x, _ = judged.digits.examples(s.copies)
    mean = x.mean(dim=0)
    for n in s.budgets:
        sizes = gammas.geometric(n, 1.0, s.few_ratio)
        reference = ReferenceChain.dsb(sizes * (s.few_noise / 2.0 / sizes.sum()))
        prior = Normal((1, 8, 8), end_deviation(x - mean, reference))
        begin = reference_iterate(Examples(x - mean), prior, reference)
        for name, half_bridges in ((SHORT, 1), (DSB, 2 * s.few_iterations)):
            echo(f"  {name}, {n} steps")
            yield _bridge(s, name, n, begin, half_bridges, mean, seed)
    echo(f"  {LONG}")
    yield from _long(s, x - mean, mean, seed)


def _bridge(s: Settings, name: str, n: int, begin: Iterate, half_bridges: int, mean: torch.Tensor, seed: int) -> Model:
    steps = 2 * s.few_iterations * s.few_steps // half_bridges
    torch.manual_seed(seed)
    regressor = NetworkRegressor(
        *(network(s) for _ in range(2)), settings=s.training(steps, seed), cache_paths=s.cache_paths, refresh=s.refresh
    )  # fmt: skip
    *_, last = ipf(begin, regressor, half_bridges)
    assert last.backward is not None
    law, prior = PathLaw(last.end, last.backward), last.end
    ends = PathLaw(last.start, last.forward).sample(s.samples, seed + 100)
    gap = hb.reference.energy_distance(ends, prior.sample(s.samples, seed + 101))
    return Model(name, n, lambda rows, run: law.sample(rows, run, last_noise=False) + mean, gap)


def _long(s: Settings, x: torch.Tensor, mean: torch.Tensor, seed: int) -> Iterator[Model]:
    """One score of VP for all budgets, which is sampled on a grid that is no part of its training."""
    objective = objectives.Denoising(hb.VP(), predicts="velocity")
    torch.manual_seed(seed)
    settings = s.training(2 * s.few_iterations * s.few_steps, seed)
    fit = fit_score(network(s), x, objective.process, objective=objective, settings=settings)
    field = objective.field(fit.net)
    for n in s.budgets:
        grid = hb.grids.quadratic(objective.process, n)

        def sample(rows: int, run: int, grid: Any = grid) -> torch.Tensor:
            return hb.sample(field, hb.Ancestral(), grid=grid, shape=(rows, 1, 8, 8), seed=run) + mean

        yield Model(LONG, n, sample, None)


def measured(s: Settings, judged: Judged, found: list[Model], seed: int) -> dict[str, Any]:
    """Mean and deviation over sampling seeds; the same of a Gaussian, and the distances of real digits to each other."""
    rows = []
    for model in found:
        told = [judged.to_held_out(model.sample(s.samples, seed + 1 + run)) for run in range(s.seeds)]
        rows.append({"model": model.name, "evaluations": model.budget, "gap": model.gap, **mean_and_deviation(told)})
    drawn = [like(judged.judges.train, s.samples, seed + 1 + run) for run in range(s.seeds)]
    pool = torch.cat([judged.judges.train, judged.judges.held_out])
    held_out = len(judged.judges.held_out)
    real = judged.between_real(pool, min(s.samples, len(pool) - held_out), held_out)
    return {
        "rows": rows,
        "gaussian": mean_and_deviation([judged.to_held_out(x) for x in drawn]),
        "real": {"recognised": judged.are_digits(judged.judges.train), **real},
    }
