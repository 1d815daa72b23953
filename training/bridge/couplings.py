"""Couplings of the two end laws that bridge matching may begin from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.kernels.philox import integer
from halfbridge.solvers.draws import choice_words
from halfbridge.solvers.nearest import nearest
from halfbridge.training.bridge.chains import path_index
from halfbridge.training.bridge.ends import End
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.notices import notice

__all__ = ["COUPLINGS", "Coupling", "check_coupling"]

COUPLINGS = ("independent", "ot", "sinkhorn")
PARTNERS, PICKS = (1 << 24) - 1, (1 << 24) - 2  # of the counters of half-bridges, never reached by one
UNEVEN, ITERATIONS = (
    0.01,
    1000,
)  # of Sinkhorn: what may be left of the second marginal, in all, and after how many it ends


@dataclass(frozen=True)
class Coupling:
    """Pairs of samples of `start` and `end`.

    how    "independent": product of the laws.
           "ot": each minibatch of `size` pairs is paired anew, by least sum |y - alpha x|^2, alpha the gain of the mean over the
           reference's process (exact optimal transport, by POT's `emd`; Tong et al. 2024).
           "sinkhorn": each x takes a y of its minibatch by the minibatch's own Schrödinger bridge under the process, by
           POT's `sinkhorn_log` from the potentials of the exact transport, until 1 % of the y at most are taken too often:
           nearer to the bridge's coupling.

    Minibatch m has the pairs m size, ..., (m + 1) size - 1, and a pair depends on the seed and its own index alone: what is asked
    for is cut from whole minibatches, up to two of which are made for a few pairs.
    Raises ValueError for another `how` or size < 1; ImportError for "ot" and "sinkhorn" without POT (pip install
    'halfbridge[transport]'); a RuntimeWarning where Sinkhorn does not converge, for lack of noise.
    """

    start: End
    end: End
    reference: ReferenceChain
    how: str = "independent"
    size: int = 256
    _last: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_coupling(self.how, self.size)
        if self.how != "independent":
            _pot(self.how)

    def sample(self, n: int, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """x_0 and x_N of the pairs first, ..., first + n - 1, (n, *shape) each."""
        if self.how == "independent":
            return self._ends(n, seed, first)
        begin = first - first % self.size
        pairs = [self._minibatch(seed, at) for at in range(begin, first + n, self.size)]
        x, y = (torch.cat(parts)[first - begin : first - begin + n] for parts in zip(*pairs, strict=True))
        return x, y

    def _ends(self, n: int, seed: int, first: int) -> tuple[Tensor, Tensor]:
        return self.start.sample(n, seed, path_index(0, first)), self.end.sample(n, seed, path_index(PARTNERS, first))

    def _minibatch(self, seed: int, first: int) -> tuple[Tensor, Tensor]:
        """The last one is kept: of one that is larger than what is asked for at once, it pairs the rest."""
        if (seed, first) not in self._last:
            made = self._paired(seed, first)
            self._last.clear()
            self._last[seed, first] = made
        return self._last[seed, first]

    def _paired(self, seed: int, first: int) -> tuple[Tensor, Tensor]:
        x, y = self._ends(self.size, seed, first)
        a, b = (z.flatten(1).double().cpu() for z in (x, y))
        process = self.reference.process
        gain, variance = process.transition(0.0, process.T)
        cost = torch.cdist(gain * a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / (2.0 * variance)
        plan, potentials = _transported(cost)
        picked = plan.argmax(1) if self.how == "ot" else _picked(_bridged(cost, potentials), seed, first)
        return x, y[picked.to(y.device)]


def check_coupling(how: str, size: int, known: tuple[str, ...] = COUPLINGS) -> None:
    """ValueError for what is none of `known`, and for no number of pairs."""
    if how not in known:
        raise ValueError(f"`coupling` = {how!r} is none that bridge matching begins from; {nearest(how, known)}")
    integer("coupling_size", size, 1, 1 << 20, "pass the pairs of a minibatch, 256 say")


def _pot(how: str) -> Any:
    try:
        import ot  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            f"`coupling` = {how!r} needs POT (Python Optimal Transport), which is not installed: pip install "
            "'halfbridge[transport]'; 'reference' and 'independent' need nothing"
        ) from error
    return ot


def _transported(cost: Tensor) -> tuple[Tensor, tuple[NDArray[Any], NDArray[Any]]]:
    """The least costly plan, a permutation over n, and its potentials."""
    equal = np.full(len(cost), 1.0 / len(cost))
    plan, log = _pot("ot").emd(equal, equal, cost.numpy(), numItermax=10**8, log=True)
    return torch.from_numpy(plan), (log["u"], log["v"])


def _bridged(cost: Tensor, potentials: tuple[NDArray[Any], NDArray[Any]]) -> Tensor:
    """exp(f_i + g_j - cost_ij) with equal row sums, and column sums within UNEVEN in all."""
    n = len(cost)
    equal, enough = np.full(n, 1.0 / n), UNEVEN / n**0.5
    with np.errstate(over="ignore"):  # POT also makes e^f and e^g, which are not used
        plan, log = _pot("sinkhorn").bregman.sinkhorn_log(
            equal,
            equal,
            cost.numpy(),
            1.0,
            numItermax=ITERATIONS,
            stopThr=enough,
            log=True,
            warn=False,
            warmstart=potentials,
        )
    if not log["err"][-1] < enough:
        notice(
            f"the coupling by Sinkhorn of {n} pairs has not converged after {ITERATIONS} iterations: the reference has so little "
            "noise that coupling='ot' is nearly the same; pass that"
        )
    return torch.from_numpy(plan)


def _picked(plan: Tensor, seed: int, first: int) -> Tensor:
    """A column for each row, with the row's probabilities."""
    rows = plan.cumsum(1)
    u = (choice_words(len(plan), seed, path_index(PICKS, first))[0].double() + 0.5) / 2.0**32
    return torch.searchsorted(rows / rows[:, -1:], u[:, None])[:, 0].clamp(max=plan.shape[1] - 1)
