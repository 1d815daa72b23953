"""Kernels with affine means, and the exact laws of their chains between Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.gaussian_chain import AffineKernels, GaussianChain
from halfbridge.solvers.reference.views import PerDevice, flat_rows
from halfbridge.training.bridge.chains import PathLaw
from halfbridge.training.bridge.covariances import Covariance
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.transitions import Sum, Transitions

__all__ = ["AffineTransitions", "affine_map", "affine_of", "gaussian_chain", "probes"]

TOLERANCE = 1e-9  # relative, of a mean that is to be affine


class AffineTransitions(Transitions):
    """M_k(x) = gain[j] x + offset[j] on states of d numbers, j the interval of step k; gain (N, d, d), offset (N, d).

    covariances: one an interval, or None for 2 gamma I. Means are computed in float64 and answered in x's dtype.
    """

    def __init__(
        self,
        reference: ReferenceChain,
        direction: Direction,
        gain: Tensor,
        offset: Tensor,
        covariances: Sequence[Covariance] | None = None,
    ) -> None:
        super().__init__(reference, direction)
        n, d = reference.steps, offset.shape[-1]
        if gain.shape != (n, d, d) or offset.shape != (n, d) or (covariances is not None and len(covariances) != n):
            count = "no" if covariances is None else len(covariances)
            raise ValueError(
                f"`gain` is {tuple(gain.shape)}, `offset` {tuple(offset.shape)}, with {count} covariances; a chain of {n} steps "
                f"in d dimensions takes ({n}, d, d), ({n}, d) and {n} covariances or None"
            )
        self._tables = PerDevice(gain.double(), offset.double())
        self.covariances = covariances

    def terms(self, k: int, x: Tensor) -> Sum:
        gain, offset = self._tables(x.device)
        j = self.direction.interval(k)
        rows = torch.addmm(offset[j], flat_rows(x, offset.shape[1]), gain[j].mT)
        return Sum([rows.to(x.dtype).view(x.shape)], [1.0])

    def covariance(self, k: int, x: Tensor) -> Covariance:
        return super().covariance(k, x) if self.covariances is None else self.covariances[self.direction.interval(k)]


def probes(d: int) -> Tensor:
    """0 and the d unit vectors, (d + 1, d) float64: what an affine map does to them is all of it (`affine_map`)."""
    return torch.cat([torch.zeros(1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)])


def affine_map(values: Tensor) -> tuple[Tensor, Tensor]:
    """(gain (d, d), offset (d,)) of the affine map with these values, (d + 1, d), at `probes`."""
    return (values[1:] - values[0]).mT, values[0]


def affine_of(transitions: Transitions, d: int) -> AffineKernels:
    """The kernels as matrices, in the order of the intervals, for states (batch, d).

    Means are read off at `probes` in float64, exactly where they are affine; ValueError where a further point shows that one is
    not, or where a covariance depends on the state.
    """
    at = probes(d)
    further = torch.linspace(-2.0, 3.0, d, dtype=torch.float64)[None] if d > 1 else torch.tensor([[2.5]]).double()
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    with torch.no_grad():
        for k in transitions.direction.leaves(transitions.reference.steps):
            gain, offset = affine_map(transitions.mean(k, at))
            terms = torch.cat([gain * further, offset[:, None]], 1)
            gap = (transitions.mean(k, further)[0] - terms.sum(1)).abs()
            if not bool((gap <= TOLERANCE * terms.abs().sum(1)).all()):
                raise ValueError(
                    f"the mean at x_{k} of {type(transitions).__name__} is not affine (off by {float(gap.max()):.3g}); laws "
                    "of chains are for affine means, PathLaw.sample is for all"
                )
            cov = transitions.covariance(k, at).matrix(at)
            if len(cov) > 1:
                raise ValueError(f"the covariance at x_{k} of {type(transitions).__name__} depends on the state")
            parts[transitions.direction.interval(k)] = gain, offset, cov[0]
    return AffineKernels(*(torch.stack(part) for part in zip(*(parts[j] for j in sorted(parts)), strict=True)))


def gaussian_chain(law: PathLaw) -> GaussianChain:
    """The exact law of a chain that starts from an hb.reference.Gaussian and has affine means: all its moments, its kernels in
    both directions, and the KL to another (`GaussianChain.kl`). ValueError for other laws."""
    if not isinstance(law.start, Gaussian):
        raise ValueError(
            f"the chain starts from {type(law.start).__name__}; its law is known in closed form from an hb.reference.Gaussian"
        )
    kernels = affine_of(law.transitions, law.start.dim)
    if law.transitions.direction is Direction.FORWARD:
        return GaussianChain.from_start(law.start, kernels)
    return GaussianChain.from_end(law.start, kernels)
