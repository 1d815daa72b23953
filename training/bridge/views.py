"""A pair of transitions as what users ask of a bridge: translations, trajectories, drifts, flows."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

from halfbridge.kernels import Noise, combine
from halfbridge.solvers.field import Field
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.reference.pinned import Pinned
from halfbridge.training.bridge.chains import path_index, simulate
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.transitions import Sum, Transitions

__all__ = ["Bridge"]


class Bridge:
    """Forward and backward kernels under one reference, as `fit_bridge` leaves them.

    forward, backward: `Transitions`. Between the chain's times the bridge is the reference held at its neighbours, and its
    drifts are interpolated: see `trajectories` and `forward_drift`.
    """

    def __init__(self, forward: Transitions, backward: Transitions) -> None:
        for way, kernels in ((Direction.FORWARD, forward), (Direction.BACKWARD, backward)):
            if kernels.direction is not way:
                raise ValueError(f"`{way.value}` are kernels of the {kernels.direction.value} direction; exchange them")
        if forward.reference != backward.reference:
            raise ValueError(f"`backward` is under {backward.reference!r}, but `forward` under {forward.reference!r}")
        self.forward, self.backward = forward, backward
        self._pinned = Pinned(forward.reference.process)

    @property
    def reference(self) -> ReferenceChain:
        """The reference chain."""
        return self.forward.reference

    def translate(self, x: Tensor, seed: int, *, to: str = "end", first: int = 0, last_noise: bool = True) -> Tensor:
        """x (batch, *shape) carried along the chain to the other law: from 0 to T (to="end"), or from T to 0 (to="start").

        seed, first: row i takes the noise of path first + i. last_noise: False leaves out the noise of the last step.
        """
        return simulate(self._kernels(to), x, seed, first, last_noise=last_noise)

    def trajectories(
        self,
        x: Tensor,
        seed: int,
        *,
        to: str = "end",
        times: Sequence[float] | Tensor | None = None,
        first: int = 0,
        last_noise: bool = True,
    ) -> Tensor:
        """The states on the way of `translate`: (N + 1, batch, *shape), entry k at reference.times[k] in both directions; or
        at `times`, any in [0, T], strictly increasing or decreasing: (len(times), batch, *shape).

        A state between two of the chain's is drawn from the reference held at both, which is the bridge's own law there, given
        the one drawn before it in the same interval. ValueError for bad times.
        """
        nodes = simulate(self._kernels(to), x, seed, first, keep=True, last_noise=last_noise)
        if times is None:
            return nodes
        asked = self._pinned.times(times)
        order = sorted(range(len(asked)), key=lambda i: float(asked[i]))
        out = torch.empty(len(asked), *x.shape, dtype=x.dtype, device=x.device)
        grid, here, state = self.reference.times, -1.0, nodes[0]
        with torch.no_grad():
            for count, i in enumerate(order, start=1):
                t = float(asked[i])
                k = min(bisect.bisect_right(grid, t) - 1, len(grid) - 2)
                if t in (grid[k], grid[k + 1]):
                    state = nodes[k if t == grid[k] else k + 1]
                    out[i], here = state, t
                    continue
                if here <= grid[k]:
                    here, state = grid[k], nodes[k]
                (r, v), (gain, w) = self._pinned.step(here, t), self._pinned.step(t, grid[k + 1])
                whole = gain**2 * v + w
                noise = Noise((v * w / whole) ** 0.5, seed, self.reference.steps + count, path_index(0, first))
                combine([state, nodes[k + 1]], [r * w / whole, gain * v / whole], noise=noise, out=out[i])
                here, state = t, out[i]
        return out

    def forward_drift(self, t: float, x: Tensor) -> Tensor:
        """f(t, x) of dX = f dt + g dW from 0 to T: f = a x + g^2 h with h(t, x) linear in t between its values at the chain's
        times, h_k(x) = (r/v) (M_k(x) - r x), (r, v) the reference's kernel from x_k, and constant after the last of them.

        That h_k is grad log phi(t_k, x) itself where M_k is the exact conditional mean and the reference's transitions are
        exact: no error of the step then. Mean matching leaves O(gamma). x (batch, *shape), t in [0, T], else ValueError. Two
        evaluations of the kernels between the chain's times, one at them.
        """
        return self._drift(t, x, [Direction.FORWARD])[0]

    def backward_drift(self, t: float, x: Tensor) -> Tensor:
        """b(t, x) of dX = b dt + g dW from T down to 0, in forward-time sign: b = a x + g^2 h, h_k(x) = (x - r M_k(x))/v of the
        backward kernels, (r, v) the reference's kernel to x_k; constant before the first. b = f - g^2 grad log p at the bridge.
        """
        return self._drift(t, x, [Direction.BACKWARD])[0]

    def forward_sde(self) -> SDE:
        """dX = forward_drift dt + g dW, for increasing grids in [0, T]."""
        return SDE(self.forward_drift, self.reference.process.diffusion)

    def backward_sde(self) -> SDE:
        """dX = backward_drift dt + g dW in forward-time sign, for decreasing grids in [0, T]."""
        return SDE(self.backward_drift, self.reference.process.diffusion)

    def probability_flow(self) -> ODE:
        """dx/dt = (forward_drift + backward_drift)/2: deterministic, with the marginals of the bridge, either way."""
        return ODE(lambda t, x: combine(self._drift(t, x, list(Direction)), [0.5, 0.5]))

    def flow_field(self) -> Field:
        """A field under the reference's process whose probability flow is the bridge's: for `hb.log_likelihood`, with the law
        at T as prior, and for the solvers of a Field without noise.

        It predicts as "score" s = -(h_f + h_b), so that a x - g^2 s/2 = (f + b)/2. That is no score of the bridge's marginals, so
        the field's reverse SDE is not the bridge's: that is `backward_sde`.
        """

        def score(t: float, x: Tensor) -> Tensor:
            parts = [self._control(self._pinned.time(t), x, way) for way in Direction]
            return _summed(parts[0].plus(parts[1]).times(-1.0))

        return Field(self.reference.process, score, "score")

    def _kernels(self, to: str) -> Transitions:
        if to not in ("start", "end"):
            raise ValueError(f"`to` = {to!r} is no end of a bridge; {nearest(to, ('end', 'start'))}")
        return self.forward if to == "end" else self.backward

    def _drift(self, t: float, x: Tensor, ways: list[Direction]) -> list[Tensor]:
        t, process = self._pinned.time(t), self.reference.process
        a, g = process.drift_rate(t), process.diffusion(t)
        return [_summed(Sum([x], [a]).plus(self._control(t, x, way).times(g**2))) for way in ways]

    def _control(self, t: float, x: Tensor, way: Direction) -> Sum:
        """h(t, x)."""
        grid, leaves = self.reference.times, sorted(way.leaves(self.reference.steps))
        low, high = grid[leaves[0]], grid[leaves[-1]]
        if not low < t < high:
            return self._node(leaves[0] if t <= low else leaves[-1], x, way)
        k = bisect.bisect_right(grid, t) - 1
        u = (t - grid[k]) / (grid[k + 1] - grid[k])
        if u == 0.0:
            return self._node(k, x, way)
        return self._node(k, x, way).times(1.0 - u).plus(self._node(k + 1, x, way).times(u))

    def _node(self, k: int, x: Tensor, way: Direction) -> Sum:
        """h_k(x)."""
        kernels = self.forward if way is Direction.FORWARD else self.backward
        j = way.interval(k)
        r, v = self.reference.gains[j], 2.0 * self.reference.gammas[j]
        mean = kernels.terms(k, x)
        if way is Direction.FORWARD:
            return _merged(mean.plus(Sum([x], [-r]))).times(r / v)
        return _merged(mean.times(-r).plus(Sum([x], [1.0]))).times(1.0 / v)


def _merged(terms: Sum) -> Sum:
    """The same sum with each vector once: what nearly cancels does so among the coefficients, in float64."""
    totals: dict[int, tuple[Tensor, float]] = {}
    for vector, c in zip(*terms, strict=True):
        known = totals.get(id(vector))
        totals[id(vector)] = (vector, c if known is None else known[1] + c)
    return Sum([vector for vector, _ in totals.values()], [c for _, c in totals.values()])


def _summed(terms: Sum) -> Tensor:
    vectors, coefficients = _merged(terms)
    return combine(vectors, coefficients)
