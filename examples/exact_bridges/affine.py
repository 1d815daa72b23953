"""What is exact: IPF by affine regressions between Gaussians, and how far each kind of kernel goes from the bridge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

import halfbridge as hb
from halfbridge.training.bridge import AffineRegressor, Iterate, ReferenceChain, gaussian_chain, ipf, reference_iterate

PROCESS = hb.OU(0.5, 1.0, 1.0)
"""dX = -X/2 dt + dW on [0, 1], the reference of all between Gaussians here."""
KERNELS = {
    "fixed, mean matching": AffineRegressor("fixed", "mean"),
    "fixed, increments": AffineRegressor("fixed", "increment"),
    "matched, scalar": AffineRegressor("matched", form="scalar"),
    "matched, diagonal": AffineRegressor("matched", form="diagonal"),
    "matched, full": AffineRegressor("matched", form="full"),
}


def gaussian(d: int, seed: int, spread: float) -> hb.reference.Gaussian:
    """A random Gaussian with eigenvalues of at least 0.3 spread^2."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    mean = 0.5 * torch.randn(d, generator=generator, dtype=torch.float64)
    return hb.reference.Gaussian(mean, spread**2 * (a @ a.mT / d + 0.3 * torch.eye(d)))


def ends(d: int) -> tuple[hb.reference.Gaussian, hb.reference.Gaussian]:
    """The two laws that are joined: correlated, and their covariances do not commute."""
    return gaussian(d, 0, 1.0), gaussian(d, 1, 1.2)


class Exactness(NamedTuple):
    """Greatest differences in d dimensions, relative to the greatest entry where that is above 1."""

    d: int
    fixed: float
    """Mean matching regressed exactly, against DSB's recursion (`gaussian_ipf(variance="fixed")`): means and covariances of all
    times and the coupling, over the first iterations."""
    matched: float
    """Full matched kernels against exact discrete IPF, the same."""
    limit: float
    """The coupling of the matched iterates, run long, against the closed form's."""
    iterations: int
    """To that limit."""


def exactness(d: int, steps: int, iterations: int) -> Exactness:
    """Over `iterations` of IPF on a chain of unequal steps."""
    p0, p1 = ends(d)
    times = np.linspace(0.0, 1.0, steps + 1) ** 1.4
    far = []
    for kind, transitions, variance in (
        ("fixed, mean matching", "euler", "fixed"),
        ("matched, full", "exact", "exact"),
    ):
        begin = reference_iterate(p0, p1, ReferenceChain(PROCESS, times, transitions))
        ours = [gaussian_chain(it.law) for it in ipf(begin, KERNELS[kind], 2 * iterations)]
        theirs = hb.reference.gaussian_ipf(p0, p1, PROCESS, times, 2 * iterations, variance=variance)[1:]
        far.append(max(
            _difference(a, b)
            for one, other in zip(ours, theirs, strict=True)
            for a, b in ((one.means, other.means), (one.covs, other.covs), (one.coupling().cov, other.coupling().cov))
        ))  # fmt: skip
    bridge = hb.reference.GaussianBridge(p0, p1, PROCESS)
    count = math.ceil(6 / -math.log10(float(bridge.correlations[0])))  # an iteration shrinks means by correlation^2
    *_, last = ipf(reference_iterate(p0, p1, ReferenceChain(PROCESS, times)), KERNELS["matched, full"], 2 * count)
    reached, star = gaussian_chain(last.law).coupling(), bridge.coupling()
    limit = max(_difference(reached.mean, star.mean), _difference(reached.cov, star.cov))
    return Exactness(d, far[0], far[1], limit, count)


def coupling_error(coupling: hb.reference.Gaussian, star: hb.reference.Gaussian) -> float:
    """|Cov - Cov*|/|Cov*|, Frobenius norms, of the pairs (x_0, x_T)."""
    return float((coupling.cov - star.cov).norm() / star.cov.norm())


def departures(d: int, steps: int, iterations: int) -> dict[str, list[float]]:
    """For each kind of kernel the coupling's error after 0, 1, ..., iterations of IPF begun at the Schrödinger bridge of `steps`
    exact steps, whose coupling is the closed form's: what is seen is the kernels' doing alone."""
    begin, star = at_the_bridge(d, steps), hb.reference.GaussianBridge(*ends(d), PROCESS).coupling()
    return {kind: [coupling_error(c, star) for c in _couplings(begin, kind, iterations)] for kind in KERNELS}


def progress(kind: str, d: int, steps: int, iterations: int) -> list[float]:
    """The same for one kind, begun at the reference, as IPF is run."""
    star = hb.reference.GaussianBridge(*ends(d), PROCESS).coupling()
    begin = reference_iterate(*ends(d), ReferenceChain(PROCESS, steps))
    return [coupling_error(c, star) for c in _couplings(begin, kind, iterations)]


def truncated(d: int, iterations: int) -> tuple[float, float]:
    """What is left after that many iterations of exact IPF: the greatest error of a mean, and `coupling_error`; the larger of the
    two directions. (It does not depend on the chain.)"""
    star = hb.reference.GaussianBridge(*ends(d), PROCESS).coupling()
    begin = reference_iterate(*ends(d), ReferenceChain(PROCESS, 1))
    last = [gaussian_chain(it.law).coupling() for it in ipf(begin, KERNELS["matched, full"], 2 * iterations)][-2:]
    return max(float((c.mean - star.mean).abs().max()) for c in last), max(coupling_error(c, star) for c in last)


def at_the_bridge(d: int, steps: int) -> Iterate:
    """The chain's Schrödinger bridge as an iterate of even index: IPF by matched full kernels, run until nothing moves."""
    p0, p1 = ends(d)
    rate = float(hb.reference.GaussianBridge(p0, p1, PROCESS).correlations[0]) ** 2
    count = math.ceil(10 / -math.log10(rate))
    *_, last = ipf(reference_iterate(p0, p1, ReferenceChain(PROCESS, steps)), KERNELS["matched, full"], 2 * count)
    return last


def slope(steps: Sequence[int], moves: Sequence[float]) -> float:
    """Of log moves against log(1/steps)."""
    return -float(np.polyfit(np.log(steps), np.log(moves), 1)[0])


def _couplings(begin: Iterate, kind: str, iterations: int) -> Iterable[hb.reference.Gaussian]:
    yield gaussian_chain(begin.law).coupling()
    for it in itertools.islice(ipf(begin, KERNELS[kind], 2 * iterations), 1, None, 2):
        yield gaussian_chain(it.law).coupling()


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
