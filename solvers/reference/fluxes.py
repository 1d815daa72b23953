"""The Fokker-Planck equation as a Markov chain between cells: exponentially fitted fluxes.

Scharfetter and Gummel 1969; Chang and Cooper 1970 (the same flux, written with a weight theta).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from halfbridge.solvers.problems import SDE
from halfbridge.solvers.reference.nodes import Array, Nodes

__all__ = ["Generator", "Rates", "has_noise", "rates"]

GAUSS_POINTS = (-math.sqrt(0.6), 0.0, math.sqrt(0.6))
GAUSS_WEIGHTS = (5 / 18, 8 / 18, 5 / 18)


class Rates(NamedTuple):
    """Mass that crosses each face in unit time, per mass in the cell it leaves, (faces,), both >= 0."""

    up: Array
    down: Array


class Generator:
    """dm/dt = A m for the mass m in each cell (flattened): A has off-diagonals >= 0 and columns that sum to 0.

    Face f lies between the nodes left[f] and right[f]; the faces of the first axis come first.
    """

    def __init__(self, nodes: Nodes) -> None:
        index = np.arange(nodes.volumes.size).reshape(nodes.shape)
        self.cells = index.size
        self.left = np.concatenate([np.delete(index, -1, k).ravel() for k in range(nodes.dim)])
        self.right = np.concatenate([np.delete(index, 0, k).ravel() for k in range(nodes.dim)])
        along_first = (nodes.shape[0] - 1) * (index.size // nodes.shape[0])
        self._axes = (slice(along_first), slice(along_first, None))[: nodes.dim]
        diagonal = np.arange(self.cells)
        rows = np.concatenate([self.right, self.left, diagonal])
        columns = np.concatenate([self.left, self.right, diagonal])
        self._order = np.lexsort((rows, columns))
        self._indices = rows[self._order].astype(np.int32)
        self._starts = np.searchsorted(columns[self._order], np.arange(self.cells + 1)).astype(np.int32)

    def flux(self, rates: Rates, m: Array) -> Array:
        """Net mass per time through each face, upwards."""
        net: Array = rates.up * m[self.left] - rates.down * m[self.right]
        return net

    def divergence(self, flux: Array) -> Array:
        """What each cell gains from fluxes through its faces."""
        return self._sums(self.right, flux) - self._sums(self.left, flux)

    def outflow(self, flux: Array) -> Array:
        """What leaves each cell, through the faces where the flux runs outwards."""
        return self._sums(self.left, np.maximum(flux, 0.0)) + self._sums(self.right, np.maximum(-flux, 0.0))

    def inflow(self, flux: Array) -> Array:
        """What enters each cell."""
        return self.outflow(-flux)

    def upwinding(self, rates: Rates, m: Array) -> float:
        """Mean of tanh(|w|/2) weighted by mass, along the axis where it is larger: w = |f| h/D is the cells' Peclet number.

        On even nodes up/down = e^w at each face. 0 for central differences, 1 for upwind fluxes, as without diffusion.
        """
        net, both = np.abs(rates.up - rates.down), rates.up + rates.down
        share = np.divide(net, both, out=np.zeros_like(both), where=both > 0.0)
        weights = m[self.left] + m[self.right]
        return max(float(share[s] @ weights[s] / max(float(weights[s].sum()), 1e-300)) for s in self._axes)

    def implicit_matrix(self, rates: Rates, h: float) -> Any:
        """I - h A as a scipy csc matrix: an M-matrix for every h > 0, dominated by its diagonal along columns."""
        from scipy.sparse import csc_matrix

        leaving = self._sums(self.left, rates.up) + self._sums(self.right, rates.down)
        entries = np.concatenate([-h * rates.up, -h * rates.down, 1.0 + h * leaving])[self._order]
        return csc_matrix((entries, self._indices, self._starts), shape=(self.cells, self.cells))

    def _sums(self, cells: NDArray[np.int64], values: Array) -> Array:
        sums: Array = np.bincount(cells, values, self.cells).astype(np.float64, copy=False)
        return sums


def rates(sde: SDE, nodes: Nodes, t: float, direction: float, absorbing: bool) -> Rates:
    """The rates at time t. direction: 1 for times that increase, -1 for times that decrease, where the drift changes sign.

    Between nodes a distance h apart the flux of dX = f dt + g dW (Ito), J = (f - D') p - D p' with D = g^2/2, is
    J = D/h (B(-w) p_i - B(w) p_{i+1}), B(z) = z/(e^z - 1), w = int f/D dx - log(D_{i+1}/D_i): p with no flux is
    exact at the nodes, whatever h. The integral is Gauss's with three points, exact for f/D of degree 5. Where D = 0 the
    limit is taken, the upwind flux. absorbing: nothing comes back from the nodes on the boundary.
    """
    up, down = [], []
    for axis in range(nodes.dim):
        h = np.expand_dims(np.diff(nodes.axes[axis]), tuple(k for k in range(nodes.dim) if k != axis))
        drift, diffusivity, log_ratio = _along(sde, nodes, axis, t)
        weights = np.array(GAUSS_WEIGHTS).reshape(3, *[1] * nodes.dim)
        diffuses = (diffusivity > 0.0).all(0)
        mean_drift = direction * (weights * drift).sum(0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            w = direction * h * (weights * drift / diffusivity).sum(0) - log_ratio
        steep = ~diffuses | ~np.isfinite(w)
        w = np.where(steep, 0.0, w)
        speed = diffusivity[1] / h
        forth = np.where(steep, np.maximum(mean_drift, 0.0), speed * _bernoulli(-w))
        back = np.where(steep, np.maximum(-mean_drift, 0.0), speed * _bernoulli(w))
        width = np.expand_dims(nodes.widths[axis], tuple(k for k in range(nodes.dim) if k != axis))
        forth, back = forth / np.delete(width, -1, axis), back / np.delete(width, 0, axis)
        if absorbing:
            forth[np.delete(nodes.edge, -1, axis)] = 0.0
            back[np.delete(nodes.edge, 0, axis)] = 0.0
        up.append(forth.ravel())
        down.append(back.ravel())
    return Rates(np.concatenate(up), np.concatenate(down))


def has_noise(sde: SDE, nodes: Nodes, t: float) -> bool:
    """Whether the diffusion at time t is not 0 everywhere."""
    return bool(torch.as_tensor(sde.g(t, _points([a[None] for a in nodes.axes]))).any())


def _bernoulli(z: Array) -> Array:
    """z/(e^z - 1), and 1 at 0."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.where(z == 0.0, 1.0, z / np.expm1(z))


def _along(sde: SDE, nodes: Nodes, axis: int, t: float) -> tuple[Array, Array, Array]:
    """On the faces of an axis: drift and D at the Gauss points, (3, *faces), and log(D_{i+1}/D_i), (*faces)."""
    x = nodes.axes[axis]
    h = np.diff(x)
    inside = np.stack([(x[1:] + x[:-1]) / 2 + h / 2 * c for c in GAUSS_POINTS])
    grids = [np.broadcast_to(a, (3, len(a))) for a in nodes.axes]
    grids[axis] = inside
    points = _points(grids)
    shape = (3, *(len(a) - (k == axis) for k, a in enumerate(nodes.axes)))
    drift = _finite("drift", sde.drift(t, points), t, points)[:, axis].reshape(shape)
    if not sde.state_dependent:
        g = _diffusivity(sde, t, points[:1], axis)
        return drift, np.full(shape, g[0]), np.zeros(shape[1:])
    diffusivity = _diffusivity(sde, t, points, axis).reshape(shape)
    at_nodes = _diffusivity(sde, t, _points([a[None] for a in nodes.axes]), axis).reshape(nodes.shape)
    low, high = np.delete(at_nodes, -1, axis), np.delete(at_nodes, 0, axis)
    ones = [1] * nodes.dim
    slope = (high - low) / 2 + np.array(GAUSS_POINTS).reshape(3, *ones) * (high + low - 2 * diffusivity[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        # at a node without diffusion the logarithm is infinite; the drift's quadrature, of D'/D with D a parabola, is not
        integral = 2 * (np.array(GAUSS_WEIGHTS).reshape(3, *ones) * slope / diffusivity).sum(0)
        log_ratio = np.where((low > 0) & (high > 0), np.log(high) - np.log(low), integral)
    return drift, diffusivity, log_ratio


def _points(grids: list[Array]) -> torch.Tensor:
    """All points of the products of the rows of each axis, (rows * nodes, d)."""
    if len(grids) == 1:
        return torch.from_numpy(grids[0].reshape(-1, 1).copy())
    first, second = np.broadcast_arrays(grids[0][:, :, None], grids[1][:, None, :])
    return torch.from_numpy(np.stack([first.ravel(), second.ravel()], 1))


def _diffusivity(sde: SDE, t: float, x: torch.Tensor, axis: int) -> Array:
    """D = g^2/2 along an axis at each row of x; ValueError where the noise mixes the axes."""
    g = torch.as_tensor(sde.g(t, x), dtype=torch.float64)
    if sde.noise != "matrix":
        return 0.5 * _finite("diffusion", g, t, x)[:, axis] ** 2
    full = g @ g.mT
    off = full - torch.diag_embed(full.diagonal(dim1=-2, dim2=-1))
    if float(off.abs().max()) > 1e-14 * float(full.abs().max()):
        i = int(off.abs().amax((1, 2)).argmax())
        raise ValueError(
            f"the diffusion matrix at t = {t:.6g}, x = {_shown(x[i])} has g g^T = {full[i].tolist()}: noise that is "
            "correlated between the axes has no positive five-point scheme; change to coordinates in which g g^T is diagonal"
        )
    return 0.5 * _finite("diffusion", full.diagonal(dim1=-2, dim2=-1), t, x)[:, axis]


def _finite(name: str, value: torch.Tensor, t: float, x: torch.Tensor) -> Array:
    """(n, d) as an array; ValueError that says where and when it is not finite."""
    bad = (~torch.isfinite(value)).any(1)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"the {name} is {value[i].tolist()} at t = {t:.6g}, x = {_shown(x[i])} ({int(bad.sum())} of {len(x)} points are "
            "not finite); end the times, or the box, before"
        )
    result: Array = value.detach().numpy()
    return result


def _shown(x: torch.Tensor) -> str:
    return ", ".join(f"{v:.4g}" for v in x.tolist())
