"""Couplings of the two end laws that bridge matching may begin from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halfbridge.kernels.philox import integer
from halfbridge.solvers.draws import choice_words
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.reference.static_bridge import static_bridge
from halfbridge.training.bridge.chains import path_index
from halfbridge.training.bridge.ends import End
from halfbridge.training.bridge.reference import ReferenceChain

__all__ = ["COUPLINGS", "Coupling", "check_coupling"]

COUPLINGS = ("independent", "ot", "sinkhorn")
PARTNERS, PICKS = (1 << 24) - 1, (1 << 24) - 2  # of the counters of half-bridges, never reached by one


@dataclass(frozen=True)
class Coupling:
    """Pairs of samples of `start` and `end`.

    how    "independent": product of the laws.
           "ot": each minibatch of `size` consecutive pairs is paired anew, by least sum |y - alpha x|^2, alpha the gain of
           the mean over the reference process (exact optimal transport; Tong et al. 2024).
           "sinkhorn": each x takes a y of its minibatch by the minibatch's own Schrödinger bridge under the reference
           (`hb.reference.static_bridge`, which needs POT): nearer to the bridge's coupling.
    A pair depends on the seed and its minibatch's place. ValueError for another `how` or size < 1.
    """

    start: End
    end: End
    reference: ReferenceChain
    how: str = "independent"
    size: int = 256

    def __post_init__(self) -> None:
        check_coupling(self.how)
        integer("coupling_size", self.size, 1, 1 << 20, "pass the pairs of a minibatch, 256 say")

    def sample(self, n: int, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """x_0 and x_N of the pairs first, ..., first + n - 1, (n, *shape) each."""
        x = self.start.sample(n, seed, path_index(0, first))
        y = self.end.sample(n, seed, path_index(PARTNERS, first))
        if self.how == "independent":
            return x, y
        parts = []
        for at in range(0, n, self.size):
            a, b = (z[at : at + self.size].flatten(1).double().cpu() for z in (x, y))
            picked = self._assigned(a, b) if self.how == "ot" else self._drawn(a, b, seed, first + at)
            parts.append(at + picked)
        return x, y[torch.cat(parts).to(y.device)]

    def _assigned(self, x: Tensor, y: Tensor) -> Tensor:
        from scipy.optimize import linear_sum_assignment

        process = self.reference.process
        cost = torch.cdist(process.alpha(process.T) * x, y).square()
        return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])

    def _drawn(self, x: Tensor, y: Tensor, seed: int, first: int) -> Tensor:
        coupling = static_bridge(x, y, self.reference.process, tol=1e-6).coupling
        rows = coupling.cumsum(1)
        u = (choice_words(len(x), seed, path_index(PICKS, first))[0].double() + 0.5) / 2.0**32
        return torch.searchsorted(rows / rows[:, -1:], u[:, None])[:, 0].clamp(max=len(y) - 1)


def check_coupling(how: str) -> None:
    """ValueError for what is none of COUPLINGS."""
    if how not in COUPLINGS:
        raise ValueError(f"`coupling` = {how!r} is none that bridge matching begins from; {nearest(how, COUPLINGS)}")
