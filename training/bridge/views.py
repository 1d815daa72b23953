"""A pair of transitions as what users ask of a bridge: translations, trajectories, drifts, flows."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from halfbridge.kernels import Noise, combine
from halfbridge.solvers.field import Field
from halfbridge.solvers.nearest import nearest
from halfbridge.solvers.problems import ODE, SDE
from halfbridge.solvers.reference.pinned import Pinned
from halfbridge.solvers.runner import check_state
from halfbridge.training.bridge.bridge_process import BridgeProcess
from halfbridge.training.bridge.chains import path_index, simulate
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.network import NetworkTransitions
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.transitions import Sum, Transitions

__all__ = ["Bridge"]

Self = TypeVar("Self", bound="Bridge")


class Bridge:
    """Forward and backward kernels under one reference, as `fit_bridge` leaves them.

    forward, backward: `Transitions`. Between the chain's times the bridge is the reference's process held at its neighbours,
    and its drifts are interpolated: see `trajectories` and `forward_drift`.
    """

    def __init__(self, forward: Transitions, backward: Transitions) -> None:
        for way, kernels in ((Direction.FORWARD, forward), (Direction.BACKWARD, backward)):
            if kernels.direction is not way:
                raise ValueError(f"`{way.value}` are kernels of the {kernels.direction.value} direction; exchange them")
        if forward.reference != backward.reference:
            raise ValueError(f"`backward` is under {backward.reference!r}, but `forward` under {forward.reference!r}")
        self.forward, self.backward = forward, backward
        self._pinned = Pinned(forward.reference.process)

    def __repr__(self) -> str:
        return f"Bridge({self.reference.process!r} in {self.reference.steps} steps)"

    @property
    def reference(self) -> ReferenceChain:
        """The reference chain."""
        return self.forward.reference

    def to(self: Self, device: torch.device | str) -> Self:
        """Move the networks to a device, in place, as modules do; returns the bridge. A score that was given as `first` stays
        where it is."""
        for kernels in (self.forward, self.backward):
            if isinstance(kernels, NetworkTransitions):
                kernels.to(device)
        return self

    def translate(self, x: Tensor, seed: int, *, to: str = "end", first: int = 0, last_noise: bool = True) -> Tensor:
        """x (batch, *shape) carried along the chain to the other law: from 0 to T (to="end"), or from T to 0 (to="start").

        seed, first: row i takes the noise of path first + i, another to="start" than to="end": a round trip may be made with one
        seed. last_noise: False leaves out the noise of the last step.
        ValueError for x that is not finite, or of another dtype or device than the networks; TypeError where it is no tensor.
        """
        kernels = self._kernels(to, x)
        return simulate(kernels, x, seed, first, kernels.direction.parity, last_noise=last_noise)

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

        A state between two of the chain's is drawn from the reference's process held at both, given the one drawn before it in
        the same interval: the bridge's own law there where the transitions are exact. Of an Euler chain it is the process's,
        and with last_noise=False it is noisy up to a last state without noise. ValueError for bad times.
        """
        kernels = self._kernels(to, x)
        parity = kernels.direction.parity
        nodes = simulate(kernels, x, seed, first, parity, keep=True, last_noise=last_noise)
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
                noise = Noise((v * w / whole) ** 0.5, seed, self.reference.steps + count, path_index(parity, first))
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
        """dX = forward_drift dt + g dW, for increasing grids in [0, T]: others are refused."""
        return SDE(self.forward_drift, self.reference.process.diffusion, runs="increasing")

    def backward_sde(self) -> SDE:
        """dX = backward_drift dt + g dW in forward-time sign, for decreasing grids in [0, T]: others are refused."""
        return SDE(self.backward_drift, self.reference.process.diffusion, runs="decreasing")

    def backward_field(self, stochasticity: float = 1.0, spread: float = 1.0) -> Field:
        """The way from T to 0 as a `Field`, for `hb.sample` and every solver of fields, on grids from T down to 0:

            hb.sample(bridge.backward_field(), hb.Ancestral(), grid=np.linspace(T, 0, 51), shape=x.shape, seed=0, prior=law_at_T)

        stochasticity  l of the solver it is for (its `stochasticity`): 1 for EulerMaruyama, ReverseDiffusion, Ancestral and
                       DDIM(1.0), 0 for Heun, DPMSolver, DPMSolverPP and DDIM(), eta for DDIM(eta). The field predicts as
                       "score" s = -((1 - l^2) h_f + (1 + l^2) h_b)/(1 + l^2), so that what such a solver integrates,
                       dx = [a x - (1 + l^2)/2 g^2 s] dt + l g dW, is for l = 1 the bridge's `backward_sde`, for l = 0 its
                       `probability_flow`, and between them a process with its marginals too. With another l the marginals
                       are those of no bridge
        spread         standard deviation that the law at 0 is taken to have, see `BridgeProcess`: results tend to the same for
                       any, and solvers without noise are the more exact the nearer it is to the law's own

        s is no score of the bridge's marginals, which is h_f - h_b. So corrections by hb.Langevin (in a PredictorCorrector) are
        right where h_f = 0 alone, for the first iterate (SGM), and Heun's churn nowhere. ValueError unless 0 <= l <= 1.
        """
        return self._field(Direction.BACKWARD, stochasticity, spread)

    def forward_field(self, stochasticity: float = 1.0, spread: float = 1.0) -> Field:
        """The way from 0 to T as a `Field`, in the time u = T - t, on grids of u from T down to 0: as `backward_field` of the
        bridge turned round: the prior is the law at 0, `forward_sde` what is solved for l = 1, and `spread` of the law at T."""
        return self._field(Direction.FORWARD, stochasticity, spread)

    def probability_flow(self) -> ODE:
        """dx/dt = (forward_drift + backward_drift)/2: deterministic, with the marginals of the bridge, either way.

        In continuous time that is so in the limit. Before it, a fit by IPF that ended with a forward half-bridge has the
        marginals of its backward kernels' chain from the law of the end, so that this law is the prior at T; one that ended
        with a backward half-bridge those of its forward kernels' chain from the start, whose law at T is not the end's
        yet. A fit by matching has neither before the limit.
        """
        return ODE(lambda t, x: combine(self._drift(t, x, list(Direction)), [0.5, 0.5]))

    def flow_field(self, spread: float = 1.0) -> Field:
        """`backward_field` of stochasticity 0: its probability flow is the bridge's, (f + b)/2, down to the law at 0 itself.

        For the solvers without noise, and for `hb.log_likelihood` with the law at T as prior.
        """
        return self.backward_field(0.0, spread)

    def _field(self, way: Direction, stochasticity: float, spread: float) -> Field:
        if not isinstance(stochasticity, (int, float)) or not 0 <= stochasticity <= 1:
            raise ValueError(
                f"`stochasticity` = {stochasticity!r} must be a number in [0, 1]; pass that of the solver, such as 1.0 for "
                "hb.EulerMaruyama() or 0.0 for hb.Heun(); with None a solver has no one equation"
            )
        process, square = BridgeProcess(self.reference.process, way, spread), float(stochasticity) ** 2
        sign = 1.0 if way is Direction.FORWARD else -1.0

        def score(u: float, x: Tensor) -> Tensor:
            t = self._pinned.time(u if way is Direction.BACKWARD else self.reference.process.T - u)
            whole = self._control(t, x, way).times(sign)
            if square < 1:
                whole = whole.plus(self._control(t, x, way.other).times(sign * (1 - square) / (1 + square)))
            return _summed(whole)

        return Field(process, score, "score")

    def _kernels(self, to: str, x: Tensor) -> Transitions:
        """Those that lead there, for states that they can take."""
        if to not in ("start", "end"):
            raise ValueError(f"`to` = {to!r} is no end of a bridge; {nearest(to, ('end', 'start'))}")
        check_state(x)
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            raise ValueError(f"x must be finite, but {bad} of its {x.numel()} entries are NaN or infinite")
        kernels = self.forward if to == "end" else self.backward
        weight = next(kernels.net.parameters(), None) if isinstance(kernels, NetworkTransitions) else None
        if weight is not None and (weight.dtype, weight.device) != (x.dtype, x.device):
            raise ValueError(
                f"x is {x.dtype} on {x.device}, but the {kernels.direction.value} network {weight.dtype} on {weight.device}; "
                "convert x, or move the bridge: bridge.to(x.device)"
            )
        return kernels

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
