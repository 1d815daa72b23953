"""The four columns of Karras et al. 2022, table 1: what a network sees of a noisy state, and how its output is read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from halfbridge.kernels.edm_precondition import Scalings as EDMScalings
from halfbridge.solvers.processes import VP

__all__ = ["COLUMNS", "Column", "Scalings", "iddpm_levels"]


class Scalings(NamedTuple):
    """c_skip, c_out, c_in and c_noise of noise levels, float64 tensors of their shape."""

    skip: torch.Tensor
    out: torch.Tensor
    into: torch.Tensor
    label: torch.Tensor


class Column(Protocol):
    """A frozen dataclass of the column's constants."""

    def scalings(self, nu: torch.Tensor) -> Scalings:
        """Of float64 noise levels."""


@dataclass(frozen=True)
class VPColumn:
    """1, -nu, 1 / sqrt(nu^2 + 1), (M - 1) nu^{-1}(nu): noise prediction by the networks of Song et al. 2021.

    nu^{-1} is the time at which hb.VP(beta_min, beta_max) has the level nu; M = steps.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    steps: int = 1000

    def __post_init__(self) -> None:
        VP(self.beta_min, self.beta_max)
        _check_steps(self.steps)

    def scalings(self, nu: torch.Tensor) -> Scalings:
        one, range_of_beta = torch.ones_like(nu), self.beta_max - self.beta_min
        clock = (nu * nu).log1p()  # time_at without its look at the values, for which a GPU would be waited
        time = 2 * clock / (self.beta_min + (self.beta_min**2 + 2 * range_of_beta * clock).sqrt())
        label = (self.steps - 1) * time
        return Scalings(one, -nu, torch.hypot(nu, one).reciprocal(), label)


@dataclass(frozen=True)
class VEColumn:
    """1, nu, 1, ln(nu / 2): the networks of Song et al. 2021 under VE."""

    def scalings(self, nu: torch.Tensor) -> Scalings:
        one = torch.ones_like(nu)
        return Scalings(one, nu, one, (nu / 2).log())


@dataclass(frozen=True)
class IDDPMColumn:
    """1, -nu, 1 / sqrt(nu^2 + 1), M - 1 - argmin_j |u_j - nu|: the networks of Nichol and Dhariwal 2021.

    The levels u_0 > ... > u_{M-1} are those of `iddpm_levels`, and the label counts from the least noise, as DDPM's steps do.
    j runs over the levels that such a network is trained on; the authors' code lets u_M = 0 in, which gives levels below
    u_{M-1} / 2 the label -1, that no network has seen. Halfway between two levels the larger one is taken.
    """

    c1: float = 0.001
    c2: float = 0.008
    steps: int = 1000
    _middles: dict[torch.device, torch.Tensor] = dataclasses.field(
        init=False, repr=False, compare=False
    )  # one a device

    def __post_init__(self) -> None:
        rising = torch.tensor(iddpm_levels(self.steps, self.c1, self.c2)[-2::-1], dtype=torch.float64, device="cpu")
        object.__setattr__(self, "_middles", {rising.device: (rising[1:] + rising[:-1]) / 2})

    def scalings(self, nu: torch.Tensor) -> Scalings:
        one = torch.ones_like(nu)
        if nu.device not in self._middles:  # brought there once: a copy from the host is waited for
            self._middles[nu.device] = next(iter(self._middles.values())).to(nu.device)
        label = torch.bucketize(nu.detach(), self._middles[nu.device], right=True).double()
        return Scalings(one, -nu, torch.hypot(nu, one).reciprocal(), label)


@dataclass(frozen=True)
class EDMColumn:
    """sigma_data^2 / s^2, nu sigma_data / s, 1 / s, ln(nu) / 4 with s^2 = nu^2 + sigma_data^2: the input and the target of
    the network have variance 1 where the data have sigma_data^2."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_data < math.inf:
            raise ValueError(
                f"sigma_data = {self.sigma_data} must be positive and finite: the data's standard deviation"
            )

    def scalings(self, nu: torch.Tensor) -> Scalings:
        c = EDMScalings(nu, self.sigma_data)
        return Scalings(c.skip, c.out, c.into, c.label)


COLUMNS: dict[str, type[Any]] = {"vp": VPColumn, "ve": VEColumn, "iddpm": IDDPMColumn, "edm": EDMColumn}


def iddpm_levels(steps: int = 1000, c1: float = 0.001, c2: float = 0.008) -> tuple[float, ...]:
    """u_0 > u_1 > ... > u_{M-1} > u_M = 0 with M = `steps`: the noise levels of improved DDPM (Karras et al. 2022, table 1).

        u_{j-1}^2 = (u_j^2 + 1) / max(abar_{j-1} / abar_j, c1) - 1,   abar_j = sin^2(pi/2 j / (M (c2 + 1)))

    With 1 / max(...) = 1 + e_j that is u_{j-1}^2 = u_j^2 + e_j (u_j^2 + 1), and e_j = sin(A + B) sin(A - B) / sin^2 B of the
    two angles A, B where c1 does not bind, so nothing cancels: the relative error is 1e-13 at most. (The -1 stands inside
    the root.) ValueError for steps < 1, c1 outside (0, 1), c2 < 0.
    """
    _check_steps(steps)
    if not 0.0 < c1 < 1.0:
        raise ValueError(f"c1 = {c1} must be in (0, 1); the paper's is 0.001")
    if not 0.0 <= c2 < math.inf:
        raise ValueError(f"c2 = {c2} must be at least 0 and finite; the paper's is 0.008")
    unit = math.pi / (2.0 * steps * (c2 + 1.0))
    square, levels = 0.0, [0.0]
    for j in range(steps, 0, -1):
        below = math.sin(unit * (j - 1))
        if below**2 > c1 * math.sin(unit * j) ** 2:
            e = math.sin(unit * (2 * j - 1)) * math.sin(unit) / below**2
        else:
            e = (1.0 - c1) / c1
        square += e * (square + 1.0)
        levels.append(math.sqrt(square))
    return tuple(reversed(levels))


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"steps = {steps!r} must be an integer, at least 2: the number of timesteps of the network")
