"""The coupling's error between Gaussians against the time of training: the second half of `python -m benchmarks.bridge`.

All train the same networks for as many steps of as many rows, with as many rows in the cache. What differs is the kernels:

ours, matched   fit_bridge(variance="matched", form="full"), weighting="kl": the bridge's coupling is its fixed point for any N,
                so that few steps do, and N = 4. This is another algorithm than the peer's
ours, fixed     mean matching with the variance 2 gamma and weighting="plain", the peer's algorithm
index           the peer: its fixed variance leaves an error of O(1/N), so it is shown for two N
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

import halfbridge as hb
from benchmarks import bridge_cases
from benchmarks.bridge_cases import LAWS, PROCESS, Case, Clock, forward_of, now, plain
from halfbridge.training.bridge import NetworkRegressor, Transitions, ipf, reference_iterate, simulate

__all__ = ["THRESHOLDS", "Point", "coupling_error", "errors_over_time", "show_errors", "until"]

ASKED = 0.03
"""The error of the coupling's covariance that trained networks are asked for between Gaussians in d = 5."""
THRESHOLDS = (0.2, 0.1, 0.05, ASKED)
MATCHED, FIXED, PEER = "ours, matched", "ours, fixed", "index"
ROWS = ((MATCHED, 4), (FIXED, 12), (PEER, 12), (PEER, 48))
STEPS, BATCH = 400, 2048
"""Of training a half-bridge."""
EXAMPLES = 400_000
"""Of each end: their own error, 0.4 %, is no part of what is compared."""


class Point(NamedTuple):
    """After an iteration: seconds so far, without those of measuring, and the error."""

    seconds: float
    error: float


def coupling_error(forward: Transitions, n: int = 50_000) -> float:
    """Of the covariance of (x_0, x_N), against the Schrödinger bridge's in closed form: |Cov - Cov*|/|Cov*|, Frobenius norms.
    Over n pairs of the bridge itself it is sqrt((1 + tr(Cov*)^2/|Cov*|^2)/n), 1.1 % here (root mean square), and adds in squares.
    """
    x = LAWS[0].sample(n, 99).float()
    z = torch.cat([x, simulate(forward, x, 7)], 1).double()
    star = hb.reference.GaussianBridge(*LAWS, PROCESS).coupling().cov
    return float((torch.cov(z.mT) - star).norm() / star.norm())


def case(steps: int, scale: float, seed: int) -> Case:
    """The Gaussians in so many steps; each row of a cache is trained on once."""
    made = bridge_cases.gaussians(scale, steps, EXAMPLES)
    settings = bridge_cases.settings(max(2, int(STEPS * scale)), BATCH).replace(seed=seed)
    return made._replace(settings=settings, refresh=max(1, made.paths * steps // BATCH))


def errors_over_time(case: Case, who: str, iterations: int) -> list[Point]:
    """After each iteration of IPF."""
    found, spent = [], 0.0
    forwards = _peer(case) if who == PEER else _ours(case, who, iterations)
    for _ in range(iterations):
        start = now()
        forward = next(forwards)
        spent += now() - start
        found.append(Point(spent, coupling_error(forward)))
    return found


def _ours(case: Case, who: str, iterations: int) -> Iterator[Transitions]:
    kernels = {"variance": "matched", "form": "full"} if who == MATCHED else {"weighting": "plain"}
    regressor = NetworkRegressor(
        *case.nets(), settings=case.settings, cache_paths=case.paths, refresh=case.refresh, **kernels
    )
    for iterate in ipf(reference_iterate(case.start, case.end, case.chain), regressor, 2 * iterations):
        if iterate.index % 2 == 0:
            yield iterate.forward


def _peer(case: Case) -> Iterator[Transitions]:
    bridge = plain(case, PEER, Clock())
    while True:
        yield forward_of(bridge.run(1), case.chain)


def until(run: Sequence[Point], error: float) -> str:
    """The seconds after which it is at most that, and stays; "never"."""
    over = [i for i, point in enumerate(run) if not point.error <= error]
    first = over[-1] + 1 if over else 0
    return f"{run[first].seconds:.1f}" if first < len(run) else "never"


def show_errors(scale: float, iterations: int, seeds: int) -> None:
    """The whole curves, and the seconds until some errors, for each seed."""
    print(
        f"\nGaussians, d = 5: error of the coupling's covariance in % after each iteration, half-bridges of "
        f"{max(2, int(STEPS * scale))} steps of {BATCH} rows\nkernels        N  seed  s each  error"
    )
    runs: dict[tuple[str, int], list[list[Point]]] = {}
    for who, steps in ROWS:
        for seed in range(seeds):
            run = errors_over_time(case(steps, scale, seed), who, iterations)
            runs.setdefault((who, steps), []).append(run)
            curve = " ".join(f"{100 * point.error:6.2f}" for point in run)
            print(f"{who:13s}{steps:3d}{seed:6d}{run[-1].seconds / iterations:8.2f}  {curve}", flush=True)
    print(f"\nseconds until the error is at most that, and stays, a seed each; {100 * ASKED:g} % is what is asked")
    print("kernels        N" + "".join(f"{f'{100 * error:g} %':>{11 + 7 * (seeds - 1)}s}" for error in THRESHOLDS))
    for (who, steps), found in runs.items():
        cells = (", ".join(until(run, error) for run in found) for error in THRESHOLDS)
        print(f"{who:13s}{steps:3d}" + "".join(f"{cell:>{11 + 7 * (seeds - 1)}s}" for cell in cells))
