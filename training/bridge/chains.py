"""Simulated chains, with counted noise and reused buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from halfbridge.kernels.philox import check_seed, integer
from halfbridge.training.bridge.ends import End
from halfbridge.training.bridge.transitions import Drawn, Transitions

__all__ = ["PathLaw", "Step", "path_index", "simulate", "walk"]

PATHS = 40  # bits of the sample index that count the paths of one half-bridge; the 24 bits above count half-bridges


def path_index(half_bridge: int, first: int = 0) -> int:
    """The global sample index of path `first` of a half-bridge: first + half_bridge 2^40.

    Noise is that of `kernels.normal` for (seed, draw, index): draw 0 is the start's and draw j the j-th step's, so that two
    paths, two steps and two half-bridges share no normal. ValueError for 2^40 paths or 2^24 half-bridges and more.
    """
    half_bridge = integer("half_bridge", half_bridge, 0, 1 << (64 - PATHS), "pass the index of the half-bridge")
    return (half_bridge << PATHS) + integer("first", first, 0, 1 << PATHS, "pass the index of the first path")


class Step(NamedTuple):
    """One step of a simulation, from x_k = `before` to `after` = `mean` + noise, in the direction of the kernels.

    The three tensors (batch, *shape) are buffers: they are overwritten as soon as the next step is asked for.
    """

    k: int
    before: Tensor
    mean: Tensor
    after: Tensor


def simulate(
    transitions: Transitions,
    x: Tensor,
    seed: int,
    first: int = 0,
    half_bridge: int = 0,
    *,
    keep: bool = False,
    last_noise: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Run the chain from x (batch, *shape), which is left as it is: x <- M_k(x) + C_k(x)^(1/2) z, N steps in one buffer.

    Returns the last state, or with `keep` all N + 1, (N + 1, batch, *shape), entry k being x_k in both directions.
    seed, first, half_bridge: row i is path first + i of that half-bridge (see `path_index`); its bits depend on these and on
    x only, up to the rounding of a network over batches. last_noise: False leaves the noise of the last step out, as is usual
    for pictures. out: receives the result, of its shape, dtype and device. No gradient is recorded.
    Raises FloatingPointError, naming the step, where the chain leaves the finite numbers; ValueError for a bad `out`.
    """
    steps, direction = transitions.reference.steps, transitions.direction
    shape = (steps + 1, *x.shape) if keep else tuple(x.shape)
    seed, index = check_seed(seed), path_index(half_bridge, first)
    if out is not None and (out.shape != shape or out.dtype != x.dtype or out.device != x.device):
        got = f"{tuple(out.shape)}, {out.dtype} on {out.device}"
        raise ValueError(f"`out` is {got}; this chain needs {shape}, {x.dtype} on {x.device}")
    with torch.no_grad():
        states = torch.empty(shape, dtype=x.dtype, device=x.device) if out is None else out
        here = states[direction.start(steps)].copy_(x) if keep else x
        for j, k in enumerate(direction.leaves(steps), start=1):
            drawn = Drawn(seed, j, index) if last_noise or j < steps else None
            here = transitions.step(k, here, drawn, states[direction.arrives(k)] if keep else states)
        if not bool(here.isfinite().all()):
            raise FloatingPointError(_not_finite(transitions, here, states if keep else None))
    return states


def walk(transitions: Transitions, x: Tensor, seed: int, first: int = 0, half_bridge: int = 0) -> Iterator[Step]:
    """The chain of `simulate` step by step, with the means, for regressions and estimates; in three buffers.

    The states differ from simulate's by rounding: there mean and noise are summed in one pass. No gradient is recorded.
    """
    steps, direction = transitions.reference.steps, transitions.direction
    seed, index = check_seed(seed), path_index(half_bridge, first)
    here, there, mean = x.detach().clone(), torch.empty_like(x), torch.empty_like(x)
    for j, k in enumerate(direction.leaves(steps), start=1):
        with torch.no_grad():
            transitions.step(k, here, None, mean)
            there.copy_(mean)
            transitions.covariance(k, here).disturb(there, seed, j, index)
        yield Step(k, here, mean, there)
        here, there = there, here
    if not bool(here.isfinite().all()):
        raise FloatingPointError(_not_finite(transitions, here, None))


@dataclass(frozen=True)
class PathLaw:
    """The law of a chain: x_0 ~ start and forward kernels, or x_N ~ start and backward kernels."""

    start: End
    transitions: Transitions

    def begin(self, n: int, seed: int, first: int = 0, half_bridge: int = 0) -> Tensor:
        """The starts of paths first, ..., first + n - 1, (n, *shape)."""
        return self.start.sample(n, seed, path_index(half_bridge, first))

    def sample(
        self, n: int, seed: int, first: int = 0, half_bridge: int = 0, *, keep: bool = False, last_noise: bool = True
    ) -> Tensor:
        """n paths or their last states: `begin`, then `simulate`."""
        x = self.begin(n, seed, first, half_bridge)
        return simulate(self.transitions, x, seed, first, half_bridge, keep=keep, last_noise=last_noise)

    def walk(self, n: int, seed: int, first: int = 0, half_bridge: int = 0) -> Iterator[Step]:
        """n paths step by step: `begin`, then `walk`."""
        return walk(self.transitions, self.begin(n, seed, first, half_bridge), seed, first, half_bridge)


def _not_finite(transitions: Transitions, last: Tensor, states: Tensor | None) -> str:
    direction, steps = transitions.direction, transitions.reference.steps
    where = ""
    if states is not None:
        k = next(k for k in direction.leaves(steps) if not bool(states[direction.arrives(k)].isfinite().all()))
        where = f", first in the step from x_{k}"
    bad = int((~last.isfinite()).sum())
    return (
        f"the {direction.value} chain is not finite: {bad} of {last.numel()} entries of its last state{where}; the means come "
        f"from {type(transitions).__name__}: go back to the iterate before, or take smaller steps"
    )
