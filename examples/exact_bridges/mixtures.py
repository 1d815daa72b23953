"""A bridge by networks between two mixtures on the line, against Sinkhorn's algorithm on a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import halfbridge as hb
from exact_bridges.settings import Training
from exact_bridges.trained import fit, pairs
from halfbridge.training.bridge import BridgeFit

LAW0 = hb.reference.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.1)
LAW1 = hb.reference.GaussianMixture([0.3, 0.4, 0.3], [[-2.0], [0.0], [2.0]], 0.1)
PROCESS = hb.Brownian(1.0, 1.0)
EDGE, SPACING, BIN = 4.0, 0.05, 4
"""The grid's half width and spacing, and the grid points of a bin of the heat maps (BIN^2 of the coupling)."""
FORWARD, BACKWARD = (0.0, 0.4, 0.8), (0.2, 0.6, 1.0)
"""Times at which drifts are compared: where Sinkhorn's, towards points, are far from infinite on the grid's scale."""


class Drift(NamedTuple):
    """One drift at one time, along `x`, where the bridge's density there is `density`."""

    way: str
    t: float
    x: NDArray[np.float64]
    density: NDArray[np.float64]
    found: NDArray[np.float64]
    exact: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Root mean square under the bridge's law at t."""
        return math.sqrt(float(np.average((self.found - self.exact) ** 2, weights=self.density)))

    @property
    def size(self) -> float:
        """The same of the exact drift."""
        return math.sqrt(float(np.average(self.exact**2, weights=self.density)))


class Compared(NamedTuple):
    """The trained bridge beside Sinkhorn's."""

    made: BridgeFit
    seconds: float
    edges: NDArray[np.float64]
    exact: NDArray[np.float64]
    """Probabilities of the bins, (x_0, x_1)."""
    found: dict[str, NDArray[np.float64]]
    """The same of the pairs carried to the "end" and to the "start"."""
    floor: float
    """Total variation between Sinkhorn's bins and as many pairs drawn from them."""
    fixed_x0: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    """Bins of x_0 by their middles; E[x_1 | x_0] over them, found and exact."""
    drifts: list[Drift]
    sinkhorn: tuple[int, float]
    """Its iterations, and what is left of its marginal conditions."""

    def variation(self, to: str) -> float:
        """Total variation distance over the bins."""
        return 0.5 * float(np.abs(self.found[to] - self.exact).sum())

    @property
    def mean_error(self) -> float:
        """Root mean square over x_0 of the error of E[x_1 | x_0]."""
        _, found, exact = self.fixed_x0
        weights = self.exact.sum(1)
        return math.sqrt(float(np.average((found - exact) ** 2, weights=weights)))

    @property
    def mean_size(self) -> float:
        """The same of E[x_1 | x_0] itself."""
        return math.sqrt(float(np.average(self.fixed_x0[2] ** 2, weights=self.exact.sum(1))))


def grid_bridge() -> hb.reference.StaticBridge:
    """Between the two laws' densities at the points of the grid."""
    grid = torch.arange(-EDGE, EDGE, SPACING, dtype=torch.float64)[:, None] + SPACING / 2
    weights = [p / p.sum() for p in (law.log_prob(grid).exp() for law in (LAW0, LAW1))]
    return hb.reference.static_bridge(grid, grid, PROCESS, *weights, tol=1e-7)


def compare(s: Training, n: int, seed: int) -> Compared:
    """Train, and compare over n pairs each way."""
    wanted = grid_bridge()
    made, seconds = fit((LAW0, LAW1), 1, PROCESS, "diagonal", s, seed)
    edges = np.arange(-EDGE, EDGE + 1e-9, BIN * SPACING)
    exact = _binned(wanted.coupling.numpy())
    found = {
        to: np.histogram2d(
            *np.concatenate(list(pairs(made, (LAW0, LAW1), to, n, 10_000 + seed))).T, bins=(edges, edges)
        )[0]
        / n
        for to in ("end", "start")
    }
    drawn = np.random.default_rng(seed).multinomial(n, (exact / exact.sum()).ravel()).reshape(exact.shape) / n
    floor = 0.5 * float(np.abs(drawn - exact).sum())
    fixed_x0 = _conditional(made, wanted, n // 40, seed)
    left = (wanted.iterations, max(wanted.errors))
    return Compared(made, seconds, edges, exact, found, floor, fixed_x0, _drifts(made, wanted), left)


def _binned(p: NDArray[np.float64]) -> NDArray[np.float64]:
    n = len(p) // BIN
    return p.reshape(n, BIN, n, BIN).sum((1, 3))


def _conditional(
    made: BridgeFit, wanted: hb.reference.StaticBridge, n: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """E[x_1 | x_0] at the grid point after the middle of each bin, from n paths each."""
    at = wanted.x0[BIN // 2 :: BIN, 0]
    exactly = (wanted.coupling @ wanted.x1)[:, 0] / wanted.coupling.sum(1)
    found = made.translate(at.float().repeat_interleave(n)[:, None], 20_000 + seed).view(len(at), n).double().mean(1)
    return at.numpy(), found.numpy(), exactly[BIN // 2 :: BIN].numpy()


def _drifts(made: BridgeFit, wanted: hb.reference.StaticBridge) -> list[Drift]:
    x = torch.linspace(-3.5, 3.5, 281, dtype=torch.float64)[:, None]
    out = []
    for way, times in (("forward", FORWARD), ("backward", BACKWARD)):
        for t in times:
            law = LAW0 if t == 0.0 else LAW1 if t == PROCESS.T else wanted.marginal(t)
            values = (getattr(b, f"{way}_drift")(t, x.to(kind))[:, 0].double().numpy()
                      for b, kind in ((made, torch.float32), (wanted, torch.float64)))  # fmt: skip
            out.append(Drift(way, t, x[:, 0].numpy(), law.log_prob(x).exp().numpy(), *values))
    return out
