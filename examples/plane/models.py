"""What is trained: bridges, and score-based models with as many steps of training of the same network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import halfbridge as hb
from halfbridge.training import Settings as Training
from halfbridge.training import fit_score
from halfbridge.training.bridge import (
    BridgeFit,
    Examples,
    NetworkRegressor,
    Normal,
    ReferenceChain,
    Transitions,
    fit_bridge,
    gammas,
    ipf,
    reference_iterate,
    simulate,
)
from plane.laws import PRIOR, Case, draw
from plane.settings import Settings

FIRST = 10_000
"""Seeds from here on are of fresh points, which no training sees."""
Sampler = Callable[[int, int], Tensor]
"""(n, seed) -> (n, 2)."""


class Trained(NamedTuple):
    """A bridge with the processor time that its training and monitors took."""

    case: Case
    fit: BridgeFit
    cpu_seconds: float


class Row(NamedTuple):
    """A sampler of the comparison."""

    name: str
    sampler: Sampler
    evaluations: int


def chain(s: Settings, n: int) -> ReferenceChain:
    """Brownian motion in n steps whose variances, s.noise in sum, rise from 1 at both ends to n in the middle."""
    process = hb.Brownian(math.sqrt(s.noise), 1.0)  # one for all n: a score is trained for it once
    return ReferenceChain.spaced(process, gammas.symmetric(n, 1.0, float(n)))


def networks(s: Settings, seed: int, count: int = 2) -> list[torch.nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [hb.nets.MLP(2, hidden=s.hidden, depth=s.depth) for _ in range(count)]


def training(s: Settings, seed: int, steps: int) -> Training:
    """Adam, its rate falling to 0 along a cosine, anew for each half-bridge; the averaged networks are used."""
    return Training(steps=steps, batch_size=s.batch_size, lr=s.lr, schedule="cosine", ema_decay=s.ema_decay, seed=seed)


def ends(case: Case, s: Settings, seed: int) -> tuple[Examples | Normal, Examples | Normal]:
    """The laws as they are trained on: examples, or the Gaussian itself."""
    start, end = (
        Normal((2,), PRIOR) if law == "Gaussian" else Examples(draw(law, s.points, seed + k).points)
        for k, law in enumerate((case.start, case.end))
    )
    return start, end


def bridge(case: Case, s: Settings, seed: int, n: int, method: str = "dsb") -> Trained:
    """A bridge in n steps: by DSB, or by DSBM from pairs of minibatch optimal transport."""
    options: dict[str, Any] = {} if method == "dsb" else {"coupling": "ot", "coupling_size": s.coupling_size}
    cpu = time.process_time()
    fit = fit_bridge(
        *networks(s, seed),
        *ends(case, s, seed),
        chain(s, n),
        method=method,
        iterations=s.iterations,
        cache_paths=s.cache_paths,
        monitor_paths=s.monitor_paths,
        settings=training(s, seed, s.half_bridge),
        **options,
    )
    return Trained(case, fit, time.process_time() - cpu)


def first_half_bridge(case: Case, s: Settings, seed: int, n: int) -> Transitions:
    """The backward kernels of IPF's first half-bridge, which are a score-based model, with all steps of training for them."""
    regressor = NetworkRegressor(*networks(s, seed), settings=training(s, seed, s.training), cache_paths=s.cache_paths)
    (iterate,) = ipf(reference_iterate(*ends(case, s, seed), chain(s, n)), regressor, 1)
    assert iterate.backward is not None
    return iterate.backward


def score(case: Case, s: Settings, seed: int, process: hb.Process) -> hb.Field:
    """A score-based model by denoising score matching at all times of the process."""
    x = draw(case.start, s.points, seed).points
    (net,) = networks(s, seed, 1)
    return fit_score(net, x, process, settings=training(s, seed, s.training)).field


def compared(case: Case, s: Settings, seed: int, n: int, fit: BridgeFit, scores: dict[str, hb.Field]) -> list[Row]:
    """The samplers of the case's start law in n steps. All leave out the noise of the last step."""
    grid = list(reversed(chain(s, n).times))
    half = first_half_bridge(case, s, seed, n)
    short, long = scores["short"], scores["long"]
    wide = spread_at_T(case, s, seed)
    noise = hb.grids.half_log_snr(long.process, n)

    def kernels(transitions: Transitions, std: float) -> Sampler:
        return lambda m, k: simulate(transitions, Normal((2,), std).sample(m, k), k, last_noise=False)

    def solved(field: hb.Field, solver: hb.Solver, times: Any, std: float) -> Sampler:
        def sample(m: int, k: int) -> Tensor:
            with torch.no_grad():
                x: Tensor = hb.solve(field, solver, Normal((2,), std).sample(m, k), grid=times, seed=k).x
            return x

        return sample

    return [
        Row("DSB", kernels(fit.backward, PRIOR), n),
        Row("SGM, first half-bridge", kernels(half, PRIOR), n),
        Row("SGM, first half-bridge, wide prior", kernels(half, wide), n),
        Row("SGM, short", solved(short, hb.Ancestral(), grid, PRIOR), n),
        Row("SGM, short, wide prior", solved(short, hb.Ancestral(), grid, wide), n),
        Row("SGM, long", solved(long, hb.Ancestral(), noise, long.process.prior_std), n),
        Row("SGM, long, DPM-Solver++", solved(long, hb.DPMSolverPP(), noise, long.process.prior_std), n),
    ]


def spread_at_T(case: Case, s: Settings, seed: int) -> float:
    """The standard deviation per dimension of p_T, the data blurred by the reference."""
    x = draw(case.start, s.points, seed).points.double()
    return math.sqrt(float(x.var(dim=0).mean()) + s.noise)
