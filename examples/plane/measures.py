"""What is measured of bridges and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import halfbridge as hb
from halfbridge.training.bridge import BridgeFit
from plane.laws import COMPONENTS, Case, components, draw
from plane.models import FIRST, Row, Trained
from plane.settings import Settings

FLOORS = 12
"""Pairs of samples of a law, for the mean and the deviation of what a perfect bridge would have."""


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def described(trained: Trained, s: Settings, seed: int, parts: int = 40) -> dict[str, Any]:
    """What results.json holds of a bridge: a row a half-bridge, the floors of its errors, and means of its losses."""
    fit = trained.fit
    losses = [
        [float(part.mean()) for part in torch.tensor_split(values, min(parts, len(values)))] for values in fit.losses
    ]
    rows = [{k: v if isinstance(v, str) else number(v) for k, v in row._asdict().items()} for row in fit.monitors]
    for row in rows:
        del row["seconds"]  # by the clock on the wall
    return {
        "case": trained.case.name, "stopped": fit.stopped, "monitors": rows, "floors": fit.floors,
        "law_floors": law_floors(trained.case, s, seed), "losses": losses,
        "steps": fit.reference.steps, "parameters": sum(p.numel() for p in fit.forward.net.parameters()),
        "cpu_seconds": trained.cpu_seconds,
    }  # fmt: skip


def law_floors(case: Case, s: Settings, seed: int) -> dict[str, list[float]]:
    """Sliced W2 of two samples of each end law, of the size of the monitors': mean and standard deviation over FLOORS pairs."""
    found = {}
    for end, law in (("start", case.start), ("end", case.end)):
        x, y = (
            [draw(law, s.monitor_paths, seed + place * FIRST + k).points for k in range(FLOORS)] for place in (8, 9)
        )
        mean, error = mean_error([hb.reference.sliced_w2(a, b) for a, b in zip(x, y, strict=True)])
        found[end] = [mean, error * math.sqrt(FLOORS)]
    return found


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    x = torch.tensor(list(values), dtype=torch.float64)
    return float(x.mean()), float(x.std()) / math.sqrt(len(x))


def against_data(row: Row, case: Case, s: Settings, seed: int) -> dict[str, float]:
    """Sliced W2 and energy distance of s.seeds samples, each to a fresh sample of data."""
    return _distances([row.sampler(s.samples, seed + FIRST + k) for k in range(s.seeds)], case, s, seed)


def floor(case: Case, s: Settings, seed: int) -> dict[str, float]:
    """The same for fresh samples of data themselves: what a perfect model would have."""
    return _distances([draw(case.start, s.samples, seed + 3 * FIRST + k).points for k in range(s.seeds)], case, s, seed)


def _distances(samples: Sequence[Tensor], case: Case, s: Settings, seed: int) -> dict[str, float]:
    data = [draw(case.start, s.samples, seed + 2 * FIRST + k).points for k in range(len(samples))]
    pairs = list(zip(samples, data, strict=True))
    sliced = mean_error([hb.reference.sliced_w2(x, y, projections=s.projections) for x, y in pairs])
    energy = mean_error([hb.reference.energy_distance(x, y) for x, y in pairs])
    return {"sliced_w2": sliced[0], "sliced_w2_se": sliced[1], "energy": energy[0], "energy_se": energy[1]}


def static(case: Case, s: Settings, seed: int, process: hb.Process) -> dict[str, Any]:
    """The Schrödinger bridge's own coupling, by Sinkhorn between points of both laws, mean and standard error over
    s.static_samples sets of points: its transport cost E|x_1 - x_0|^2, and the table of moons and Gaussians."""
    costs, tables = [], []
    for k in range(s.static_samples):
        x, y = (
            draw(law, s.static_points, seed + FIRST + 2 * k + j).points for j, law in enumerate((case.start, case.end))
        )
        moon = draw(case.start, s.static_points, seed + FIRST + 2 * k).part
        solved = hb.reference.static_bridge(x, y, process, tol=1e-6)
        plan = solved.coupling / solved.coupling.sum()
        costs.append(float((plan * torch.cdist(solved.x0, solved.x1).square()).sum()))
        tables.append(_table(moon[:, None].expand_as(plan), components(y)[None].expand_as(plan), plan))
    cost, error = mean_error(costs)
    table = torch.stack(tables).mean(0)
    return {"cost": cost, "cost_se": error, "table": table.tolist(),
            "variation": mean_error([_variation(t, table) for t in tables])[0]}  # fmt: skip


def learned(fit: BridgeFit, case: Case, s: Settings, seed: int, table: list[list[float]]) -> dict[str, dict[str, Any]]:
    """The same of a bridge's couplings, forward and backward, with the total variation between their table and that one."""
    out = {}
    for way, law, to, at in (("forward", case.start, "end", 0), ("backward", case.end, "start", 1)):
        x, part = draw(law, s.pairs, seed + 4 * FIRST + at)
        y = fit.translate(x, seed + FIRST, to=to)
        cost, error = mean_error((y - x).double().square().sum(1).tolist())
        moon = part if way == "forward" else nearest_moon(y)
        gaussian = components(y if way == "forward" else x)
        mine = _table(moon, gaussian, torch.full_like(part, 1.0 / s.pairs))
        out[way] = {"cost": cost, "cost_se": error, "table": mine.tolist(),
                    "variation": _variation(mine, torch.tensor(table, dtype=torch.float64))}  # fmt: skip
    return out


def nearest_moon(x: Tensor) -> Tensor:
    """0 for points nearer to the upper half circle, 1 for the lower, (n,) float64."""
    angle = torch.linspace(0.0, math.pi, 400, dtype=torch.float64)
    half = torch.stack([angle.cos(), angle.sin()], dim=1)
    centre = torch.tensor([0.5, 0.25], dtype=torch.float64)
    far = [torch.cdist(x.double(), arc).amin(dim=1) for arc in (half - centre, centre - half)]
    return (far[1] < far[0]).double()


def _table(moon: Tensor, gaussian: Tensor, weight: Tensor) -> Tensor:
    """The weight of each moon (rows) with each Gaussian (columns), (2, 8) float64."""
    cell = (moon.long() * COMPONENTS + gaussian).reshape(-1)
    sums = torch.zeros(2 * COMPONENTS, dtype=torch.float64)
    return sums.index_add_(0, cell, weight.double().reshape(-1)).view(2, COMPONENTS)


def _variation(a: Tensor, b: Tensor) -> float:
    """Total variation."""
    return 0.5 * float((a - b).abs().sum())
