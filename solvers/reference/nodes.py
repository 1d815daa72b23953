"""Densities tabulated on the nodes of one axis or of two: their checks, cells, moments and samples."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.kernels.philox import integer
from halfbridge.solvers.draws import choice_words
from halfbridge.solvers.reference.covariance import float64

__all__ = ["Array", "Nodes"]

Array: TypeAlias = NDArray[np.float64]
INTEGRAL_SLACK = (
    1e-3  # a box cut at 4 standard deviations, or nodes too few for the rule, which are for the user to mind
)


class Nodes:
    """The nodes of an axis x (n,), or of a pair of axes, and the cells around them.

    A cell ends half way to the next node, and at the first and last node: cell volumes are the trapezoidal rule's weights,
    so sum(density * volumes) is the integral of the density interpolated linearly (bilinearly) between the nodes.
    Raises ValueError unless each axis has at least 3 finite, increasing nodes.
    """

    def __init__(self, x: Any) -> None:
        pair = isinstance(x, (tuple, list)) and len(x) == 2 and all(np.ndim(a) == 1 for a in x)
        self.axes: tuple[Array, ...] = tuple(_axis(f"x[{k}]", a) for k, a in enumerate(x)) if pair else (_axis("x", x),)
        self.dim = len(self.axes)
        self.shape = tuple(len(a) for a in self.axes)
        self.widths = tuple(np.concatenate([h[:1], h[1:] + h[:-1], h[-1:]]) / 2 for h in map(np.diff, self.axes))
        self.volumes: Array = self.widths[0] if self.dim == 1 else np.multiply.outer(*self.widths)

    @property
    def edge(self) -> NDArray[np.bool_]:
        """Which nodes lie on the boundary of the box."""
        inside = np.zeros(self.shape, dtype=bool)
        inside[(slice(1, -1),) * self.dim] = True
        return ~inside

    def density(self, name: str, value: Any) -> Array:
        """`value` as a float64 array on the nodes; ValueError unless it is a density: the shape, >= 0, integral 1."""
        p = float64(name, value)[0].numpy()
        if p.shape != self.shape:
            raise ValueError(
                f"`{name}` has shape {p.shape}, but `x` has {' by '.join(map(str, self.shape))} nodes; pass the density at "
                "each node"
            )
        if (p < 0).any():
            at = np.unravel_index(int(p.argmin()), p.shape)
            raise ValueError(
                f"`{name}` must be >= 0, but is {p[at]:.6g} at x = {self.shown(at)}; pass a density (not its logarithm)"
            )
        total = float((p * self.volumes).sum())
        if abs(total - 1) > INTEGRAL_SLACK:
            by = "torch.trapezoid(p0, x)" if self.dim == 1 else "torch.trapezoid(torch.trapezoid(p0, x[1]), x[0])"
            raise ValueError(
                f"`{name}` must integrate to 1 over the box, but its integral (trapezoidal rule) is {total:.6g}; pass "
                f"{name} / {by.replace('p0', name)} if the box holds the mass and the nodes resolve it"
            )
        return p

    def shown(self, at: tuple[Any, ...]) -> str:
        """The node at the index `at`, for an error."""
        values = [f"{a[i]:.4g}" for a, i in zip(self.axes, at, strict=True)]
        return values[0] if self.dim == 1 else f"({', '.join(values)})"

    def moments(self, p: Array) -> tuple[float, Array, Array]:
        """Mass, and the mean (d,) and covariance (d, d) of the density divided by its mass, by the trapezoidal rule."""
        m = p * self.volumes
        mass = float(m.sum())
        weights = [m / mass] if self.dim == 1 else [m.sum(1) / mass, m.sum(0) / mass]
        mean = np.array([w @ a for w, a in zip(weights, self.axes, strict=True)])
        centred = [a - c for a, c in zip(self.axes, mean, strict=True)]
        cov = np.diag([w @ c**2 for w, c in zip(weights, centred, strict=True)])
        if self.dim == 2:
            cov[0, 1] = cov[1, 0] = centred[0] @ (m / mass) @ centred[1]
        return mass, mean, cov

    def sample(self, p: Array, n: int, seed: int, first: int = 0) -> Tensor:
        """(n, d) float64 draws from the density interpolated linearly (bilinearly), by inverting its distribution function.

        Sample i uses the four Philox words of (seed, draw 2^32 - 1, first + i): two choose the box between nodes, then one
        places it along each axis. It depends on `seed` and first + i only.
        """
        n = integer("n", n, 0, 1 << 62, "pass the number of samples")
        w0, w1, w2, w3 = (w.numpy().astype(np.int64) for w in choice_words(n, seed, first))
        uniform = ((w0 << 21) + (w1 >> 11) + 0.5) / 2.0**53
        along: list[Any] = [(w + 0.5) / 2.0**32 for w in (w2, w3)]
        steps = [np.diff(a) for a in self.axes]
        if self.dim == 1:
            boxes = steps[0] * (p[1:] + p[:-1])
        else:
            boxes = np.multiply.outer(*steps) * (p[1:, 1:] + p[1:, :-1] + p[:-1, 1:] + p[:-1, :-1])
        cumulative = boxes.cumsum()
        chosen = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        at = np.unravel_index(np.minimum(chosen, boxes.size - 1), boxes.shape)
        out = np.empty((n, self.dim))
        if self.dim == 1:
            (i,) = at
            out[:, 0] = self.axes[0][i] + steps[0][i] * _linear_quantile(p[i], p[i + 1], along[0])
        else:
            i, j = at
            low, high = p[i, j] + p[i, j + 1], p[i + 1, j] + p[i + 1, j + 1]
            u: Array = _linear_quantile(low, high, along[0])
            out[:, 0] = self.axes[0][i] + steps[0][i] * u
            left, right = (1 - u) * p[i, j] + u * p[i + 1, j], (1 - u) * p[i, j + 1] + u * p[i + 1, j + 1]
            out[:, 1] = self.axes[1][j] + steps[1][j] * _linear_quantile(left, right, along[1])
        return torch.from_numpy(out)


def _axis(name: str, value: Any) -> Array:
    nodes = float64(name, value)[0].numpy()
    if nodes.ndim != 1 or len(nodes) < 3:
        raise ValueError(
            f"`{name}` has shape {nodes.shape}; pass an axis of at least 3 nodes, such as torch.linspace(-6, 6, 401), or a "
            "pair of axes for two dimensions"
        )
    falling = np.flatnonzero(np.diff(nodes) <= 0)
    if falling.size:
        i = int(falling[0])
        raise ValueError(
            f"`{name}` must increase, but {name}[{i}] = {nodes[i]:.6g} and {name}[{i + 1}] = {nodes[i + 1]:.6g}; sort it, "
            "without repeats"
        )
    return nodes


def _linear_quantile(a: Array, b: Array, q: Array) -> Array:
    """Where the density (1 - u) a + u b on [0, 1] has the share q of its mass below: no cancellation for any a, b >= 0."""
    share: Array = q * (a + b) / (a + np.sqrt(a**2 + q * (b - a) * (a + b)))
    return share
