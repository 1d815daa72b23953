"""The laws that are joined: their points, each with a place on a colour scale that says which part of its law it is from."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from halfbridge.training.data import points

PRIOR = 1.0
"""Standard deviation of the Gaussian."""
RADIUS, COMPONENTS = 2.0, 8
"""Of the 8 Gaussians, `points.ring`'s."""


class Drawn(NamedTuple):
    points: torch.Tensor
    """(n, 2) float32."""
    part: torch.Tensor
    """(n,) in [0, 1]: the moon, the Gaussian, the square, the place along the roll, the direction from the origin."""


class Case(NamedTuple):
    """A bridge of the page."""

    name: str
    title: str
    start: str
    end: str


MOONS = Case("moons", "Moons ↔ 8 Gaussians", "moons", "8 Gaussians")
CHECKERBOARD = Case("checkerboard", "Checkerboard ↔ Gaussian", "checkerboard", "Gaussian")
SWISS_ROLL = Case("swiss_roll", "Swiss roll ↔ Gaussian", "swiss roll", "Gaussian")
CASES = (MOONS, CHECKERBOARD, SWISS_ROLL)


def draw(law: str, n: int, seed: int) -> Drawn:
    """n points of the law."""
    if law == "moons":
        x, moon = points.labelled_moons(n, seed)
        return Drawn(x, moon.double())
    if law == "8 Gaussians":
        x, component = points.labelled_ring(n, seed)
        return Drawn(x, component.double() / COMPONENTS)
    if law == "checkerboard":
        x, square = points.labelled_checkerboard(n, seed)
        return Drawn(x, square.double() / 8)
    if law == "swiss roll":
        x = points.swiss_roll(n, seed)
        radius = x.double().norm(dim=1)  # it grows along the roll
        return Drawn(x, (radius - radius.min()) / (radius.max() - radius.min()))
    generator = torch.Generator("cpu").manual_seed(seed)
    x = PRIOR * torch.randn(n, 2, generator=generator)
    return Drawn(x, torch.atan2(x[:, 1], x[:, 0]).double() / (2 * math.pi) % 1.0)


def components(x: torch.Tensor) -> torch.Tensor:
    """The nearest of the 8 Gaussians, (n,) int64."""
    angle = torch.atan2(x[:, 1], x[:, 0]).double() / (2 * math.pi)
    return (angle * COMPONENTS).round().long() % COMPONENTS
