"""Iterative proportional fitting between two Gaussians on a discrete chain, in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.solvers.processes import Process
from halfbridge.solvers.reference.covariance import whole_number
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.gaussian_bridge import check_ends, rank
from halfbridge.solvers.reference.gaussian_chain import AffineKernels, GaussianChain
from halfbridge.solvers.reference.pinned import Pinned

__all__ = ["IPFIterate", "gaussian_ipf", "mean_matched", "reference_kernels"]


@dataclass(frozen=True, eq=False)
class IPFIterate(GaussianChain):
    """pi^n of `gaussian_ipf`, a law on the chain x_0, ..., x_N at `times` (N + 1,).

    `forward`, `backward`: its exact affine kernels. Those that define it (forward from p0 for even n, backward from p1 for
    odd n) have the covariance 2 gamma_k I under variance="fixed"; the others are its time reversal, and do not.
    `.law`: all of the chain stacked. `.means`, `.covs`, `.marginal(k)`, `.coupling()`: parts of it.
    In nats, None where there is no neighbour:
      kl_to_previous    KL(pi^n || pi^{n-1})        kl_to_next    KL(pi^n || pi^{n+1})
      kl_from_previous  KL(pi^{n-1} || pi^n)        kl_from_next  KL(pi^{n+1} || pi^n)
    """

    index: int = 0
    times: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    kl_to_previous: float | None = None
    kl_from_previous: float | None = None
    kl_to_next: float | None = None
    kl_from_next: float | None = None


def gaussian_ipf(
    p0: Gaussian,
    p1: Gaussian,
    reference: Process,
    steps: int | Sequence[float] | NDArray[Any] | Tensor,
    iterations: int,
    variance: str = "exact",
) -> list[IPFIterate]:
    """pi^0, ..., pi^`iterations`: the chain of `reference` from p0, then that many half-bridges.

    pi^{2n+1} = argmin {KL(pi || pi^{2n}) : pi_N = p1}, pi^{2n+2} = argmin {KL(pi || pi^{2n+1}) : pi_0 = p0}: each keeps the
    kernels from one end and replaces the law of that end. So pi^1 is what a score-based model approximates, two half-bridges
    are one DSB iteration, even iterates start exactly at p0 and odd ones end exactly at p1.

    steps      a number N of equal steps in [0, T], or the N + 1 times of the chain, increasing from 0 to T
    variance   "exact": the chain has the exact transitions of the process, every projection is exact, and the limit is
               the chain's Schrödinger bridge: its coupling is that of GaussianBridge(p0, p1, reference).
               "fixed": DSB (De Bortoli et al. 2021). Kernel k is N(x + gamma_k f_k(x), 2 gamma_k I) with f_k = 2 a x/g^2 and
               2 gamma_k = g^2 (t_{k+1} - t_k), a and g in the middle of the step: Euler-Maruyama where they are
               constant (keep -a (t_{k+1} - t_k) below 1). Each projection is fitted by mean matching with the same variances
               2 gamma_k, which is what DSB learns.
               An odd iterate then misses p0, an even one p1, by O(gamma), and the coupling leaves the bridge by O(gamma) more
               with each iteration, to an offset that small steps do not remove: few iterations, or many steps.

    The laws obey (De Bortoli et al. 2021, proposition 4, variance "exact") kl_from_next <= kl_from_previous and
    kl_to_next <= kl_to_previous. The inequalities with one of the two sides turned round are false in general.

    Raises ValueError for laws that are not Gaussians of one dimension or have singular covariances (kernels from states that
    have no density are not determined; GaussianBridge takes those), for times that do not run from 0 to T, iterations < 1, an
    unknown `variance`; TypeError for a `reference` that is no Process.
    """
    check_ends(p0, p1)
    for name, law in (("p0", p0), ("p1", p1)):
        if rank(law) < law.dim:
            raise ValueError(
                f"`{name}` has a singular covariance, of rank {rank(law)} in {law.dim} dimensions, and the kernels of IPF "
                "are not determined off its support; add a little variance, or take GaussianBridge, which needs none"
            )
    if variance not in ("exact", "fixed"):
        raise ValueError(
            f"`variance` = {variance!r} is not 'exact' (of each conditional law) or 'fixed' (2 gamma, as in DSB)"
        )
    count = whole_number("iterations", iterations)
    pinned = Pinned(reference)
    times = chain_times(pinned, steps)
    with torch.inference_mode(False), torch.no_grad():
        kernels = reference_kernels(pinned, times, variance).on(p0.dim)
        chains = [GaussianChain.from_start(p0, kernels)]
        for n in range(1, count + 1):
            last = chains[-1]
            if n % 2:
                fit = last.backward if variance == "exact" else mean_matched(last.forward, last.backward, kernels.cov)
                chains.append(GaussianChain.from_end(p1, fit))
            else:
                fit = last.forward if variance == "exact" else mean_matched(last.backward, last.forward, kernels.cov)
                chains.append(GaussianChain.from_start(p0, fit))
        return _with_neighbours(chains, times)


def mean_matched(there: AffineKernels, back: AffineKernels, cov: Tensor) -> AffineKernels:
    """argmin_B E|B(Y) - (Y + F(X) - F(Y))|^2 over the pairs Y = F(X) + noise, as kernels with the covariances `cov`.

    there: F(x) = gain x + offset; back: the exact E[X | Y = y] = G y + h. B(y) = (I - F + F G) y + F h, which equals
    2 y - F(y) + cov(Y | X) grad log p(y). De Bortoli et al. 2021, proposition 3.
    """
    F = there.gain
    gain = torch.eye(F.shape[-1], dtype=torch.float64, device="cpu") + F @ back.gain - F
    return AffineKernels(gain, (F @ back.offset[..., None])[..., 0], cov)


class ScalarKernels(NamedTuple):
    """x_{k+1} = gains[k] x_k + N(0, variances[k] I)."""

    gains: list[float]
    variances: list[float]

    def on(self, d: int) -> AffineKernels:
        """The same kernels as matrices on R^d."""
        gains, variances = (torch.tensor(a, dtype=torch.float64, device="cpu") for a in self)
        eye = torch.eye(d, dtype=torch.float64, device="cpu").expand(len(gains), d, d)
        offset = torch.zeros(len(gains), d, dtype=torch.float64, device="cpu")
        return AffineKernels(gains[:, None, None] * eye, offset, variances[:, None, None] * eye)


def reference_kernels(pinned: Pinned, times: NDArray[np.float64], variance: str) -> ScalarKernels:
    """The chain of the reference at `times`: its exact transitions, or DSB's kernels (see `gaussian_ipf`)."""
    pairs = list(zip(times[:-1].tolist(), times[1:].tolist(), strict=True))
    if variance == "exact":
        return ScalarKernels(*map(list, zip(*(pinned.step(u, t) for u, t in pairs), strict=True)))
    process, gains, variances = pinned.process, [], []
    for k, (u, t) in enumerate(pairs):
        middle = (u + t) / 2
        gains.append(1.0 + process.drift_rate(middle) * (t - u))
        variances.append(process.diffusion(middle) ** 2 * (t - u))
        if not variances[-1] > 0:
            raise ValueError(
                f"step {k} of the chain, from {u:.6g} to {t:.6g}, has no noise: {process!r} has g = "
                f"{process.diffusion(middle):.6g} in its middle; pass other `steps`, or variance='exact'"
            )
    return ScalarKernels(gains, variances)


def chain_times(pinned: Pinned, steps: Any) -> NDArray[np.float64]:
    """The N + 1 times of a chain; ValueError unless `steps` is a number of steps, or times from 0 up to T."""
    if not isinstance(steps, (list, tuple, np.ndarray, Tensor)):
        return np.linspace(0.0, pinned.T, whole_number("steps", steps, " (or the times of the chain from 0 to T)") + 1)
    times = pinned.times(steps)
    if len(times) < 2 or times[0] != 0.0 or times[-1] != pinned.T:
        raise ValueError(
            f"`steps` runs from {float(times[0])!r} to {float(times[-1])!r}, but the chain joins p0 at 0 and p1 at T = "
            f"{pinned.T!r}; pass times that increase from 0 to T"
        )
    return times


def _with_neighbours(chains: list[GaussianChain], times: NDArray[np.float64]) -> list[IPFIterate]:
    """The iterates with the KLs between neighbours, each from the end whose kernels the later one was fitted to."""
    pairs = list(itertools.pairwise(chains))
    up = [old.kl(new, end=0 if n % 2 else -1) for n, (old, new) in enumerate(pairs)]
    down = [new.kl(old, end=0 if n % 2 else -1) for n, (old, new) in enumerate(pairs)]
    return [
        IPFIterate(
            chain.means,
            chain.covs,
            chain.forward,
            chain.backward,
            index=n,
            times=times,
            kl_to_previous=down[n - 1] if n else None,
            kl_from_previous=up[n - 1] if n else None,
            kl_to_next=up[n] if n < len(pairs) else None,
            kl_from_next=down[n] if n < len(pairs) else None,
        )
        for n, chain in enumerate(chains)
    ]
