"""Half-bridges fitted by training networks."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import torch

from halfbridge.kernels.philox import integer
from halfbridge.solvers.field import Field
from halfbridge.solvers.nearest import nearest
from halfbridge.training.bridge.cache import TrajectoryCache
from halfbridge.training.bridge.couplings import Coupling
from halfbridge.training.bridge.covariances import Covariance, check_form, pack, unpack
from halfbridge.training.bridge.direction import Direction
from halfbridge.training.bridge.half_bridge import HalfBridge
from halfbridge.training.bridge.half_trainer import HalfBridgeTrainer
from halfbridge.training.bridge.matching import BridgeMatching
from halfbridge.training.bridge.network import NetworkTransitions, VarianceHead
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.regression import Regression, check_weighting
from halfbridge.training.bridge.residuals import check_paths, residual_covariances, variance_factors
from halfbridge.training.bridge.room import check_place
from halfbridge.training.bridge.targets import check_target
from halfbridge.training.bridge.transitions import ScoreTransitions, Transitions
from halfbridge.training.modes import training_mode, uncompiled
from halfbridge.training.settings import Settings
from halfbridge.training.workers import ALONE, Workers

__all__ = ["NetworkRegressor"]

METHODS = ("dsb", "dsbm")
RESIDUALS = 1 << 39  # the first path of those that covariances are estimated from, far from the paths trained on


class NetworkRegressor:
    """Two networks, net(x, t) with t = reference.times[k] for x_k, trained in turn: what `ipf` needs for DSB.

    forward_net, backward_net  trained in place; of a half-bridge's kernels the averaged copy is kept (settings.ema_decay, the
                first), which the next one is taught by. One of them again, two half-bridges later, goes on from that copy,
                with a new optimiser
    target      default "mean" for the "fixed" variance (mean matching) and "increment" for the "matched"; see `TARGETS`
    variance    "fixed": 2 gamma I, as in DSB, and in DSBM: both miss the coupling by O(gamma), DSBM an end too (see
                `BridgeMatching`). "matched": the conditional covariance of each reverse kernel, around the exact conditional
                mean, which in the form "full" cures that between Gaussians
    form        of matched covariances: "full", a matrix each step, estimated from `covariance_paths` fresh paths, more than d,
                once the mean is trained (small d); "diagonal" (the default) and "scalar": by a network of the mean's
                architecture, trained beside it, see `VarianceHead`. The "fixed" variance has none
    weighting   of the loss, "kl" or "plain": see `Regression`
    settings    `training.Settings`; steps and schedule are those of each half-bridge
    cache_paths trajectories of a cache; refresh: steps between refreshes, default as many as see no row twice. With more, a mean
                comes to know its rows, and a network of variances learns too small ones from what it leaves of them: these are
                then multiplied, interval by interval, by `variance_factors` on `covariance_paths` fresh paths, which costs
                an evaluation of the teacher and both networks on each state of these, once a half-bridge
    chunk       paths that are simulated at once, for caches, covariances and monitors: the memory that simulation takes. Default
                8 times the rows of a micro-batch, batch_size/accumulate, of which training keeps all that a gradient needs;
                on a CPU at most 2048, so that small networks' activations stay in its caches
    cache, cache_limit, cache_folder  "auto", "memory" or "disk": where the cache is, see `room.buffer`
    method      "dsb": IPF on simulated pairs (De Bortoli et al. 2021). "dsbm": bridge matching, see `BridgeMatching` (Shi et al.
                2023), with the target "increment", regressed onto its conditional means given the far end
    coupling    what bridge matching begins from: a `Coupling`, or None for the reference's own (x_0, x_N), whose x_N has not the
                law of the end yet
    first       a score field of the reference's process, trained or exact: the first backward kernels are made from it and not
                trained (`ScoreTransitions`). The first half-bridge is SGM; without, it is trained like the others

    ValueError for unknown names and counts that are not positive.
    """

    def __init__(
        self,
        forward_net: torch.nn.Module,
        backward_net: torch.nn.Module,
        *,
        target: str | None = None,
        variance: str = "fixed",
        form: str | None = None,
        weighting: str = "kl",
        settings: Settings | None = None,
        cache_paths: int = 1024,
        refresh: int | None = None,
        cache: str = "auto",
        cache_limit: int | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        covariance_paths: int = 16384,
        chunk: int | None = None,
        method: str = "dsb",
        coupling: Coupling | None = None,
        first: Field | None = None,
        workers: Workers = ALONE,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"`method` = {method!r} is no way to a bridge; {nearest(method, METHODS)}")
        self.matching = method == "dsbm"
        self.target = target or ("mean" if variance == "fixed" and not self.matching else "increment")
        check_target(self.target, variance)
        if self.matching and self.target != "increment":
            raise ValueError(
                f"`target` = {target!r} is one of method='dsb'; bridge matching has 'increment' alone, leave it out"
            )
        if coupling is not None and (not self.matching or first is not None):
            other = (
                "method='dsb', which begins from the reference"
                if not self.matching
                else "first=, which makes the first kernels"
            )
            raise ValueError(f"`coupling` has no part in {other}; leave one of them out")
        self.coupling = coupling
        self.form = "diagonal" if form is None else form
        check_form(self.form)
        if form is not None and variance == "fixed":
            raise ValueError(f"`form` = {form!r} is of variance='matched'; pass that too, or leave form out")
        check_weighting(weighting)
        self.variance, self.weighting = variance, weighting
        self.settings = Settings() if settings is None else settings
        self.cache_paths = integer(
            "cache_paths", cache_paths, 1, 1 << 31, "pass the number of trajectories, at least 1"
        )
        self.covariance_paths = integer("covariance_paths", covariance_paths, 1, 1 << 31, "pass 16384, say")
        self.refresh = (
            None if refresh is None else integer("refresh", refresh, 1, 1 << 62, "pass the steps between refreshes")
        )
        rows = 8 * math.ceil(self.settings.batch_size / self.settings.accumulate)
        if next((p.device.type for p in forward_net.parameters()), "cpu") == "cpu":
            rows = min(rows, 2048)
        self.chunk = integer(
            "chunk", rows if chunk is None else chunk, 1, 1 << 31, "pass the paths to simulate at once"
        )
        check_place(cache, cache_limit, cache_folder)
        self._where, self._limit, self._folder = cache, cache_limit, cache_folder
        self._given = {Direction.FORWARD: forward_net, Direction.BACKWARD: backward_net}
        self.nets = {way: uncompiled(net) for way, net in self._given.items()}
        heads = variance == "matched" and self.form != "full"
        self.heads = {
            way: VarianceHead(copy.deepcopy(net), self.form) if heads else None for way, net in self.nets.items()
        }
        self.first, self.workers = first, workers
        self._cache: TrajectoryCache | None = None

    def fit(self, half: HalfBridge) -> Transitions:
        """Train the kernels of one half-bridge: all steps."""
        if not self.trains(half):
            return self.from_score(half)
        trainer = self.begin(half)
        with training_mode(trainer.model, trainer.device):
            while trainer.step < self.settings.steps:
                trainer.advance()
        return self.finish(trainer)

    def check(self, like: torch.Tensor) -> None:
        """ValueError where covariance_paths are too few for the matrices of states like this one, (1, *shape)."""
        if self.variance == "matched" and self.form == "full":
            check_paths("covariance_paths", self.covariance_paths, like)

    def trains(self, half: HalfBridge) -> bool:
        """Whether the half-bridge is to be trained: all are, but for the first where a score was given for it."""
        return self.first is None or half.index > 0

    def from_score(self, half: HalfBridge) -> ScoreTransitions:
        """The first backward kernels, of the score that was given."""
        assert self.first is not None
        if self.variance == "fixed":
            return ScoreTransitions(half.reference, self.first)
        # residuals are around the mean that goes with them, which any covariances select
        unit = ScoreTransitions(half.reference, self.first, unpack("scalar", torch.ones(half.reference.steps)))
        return ScoreTransitions(half.reference, self.first, self._residual(half, unit, self.form))

    def begin(self, half: HalfBridge) -> HalfBridgeTrainer:
        """The training of a half-bridge, at its step 0."""
        if self.matching:
            coupling = self.coupling if half.index == 0 else None
            half = BridgeMatching(half.index, half.law, half.previous, coupling)
        self.check(half.law.begin(1, self.settings.seed))
        net, head, before = self.nets[half.direction], self.heads[half.direction], half.previous
        if isinstance(before, NetworkTransitions):
            net.load_state_dict(before.net.state_dict())
            if head is not None and isinstance(before.spread, VarianceHead):
                head.load_state_dict(before.spread.state_dict())
        cache = self._cache_of(half)
        once = max(1, len(cache) // self.settings.batch_size)
        return HalfBridgeTrainer(
            half,
            self._given[half.direction],
            Regression(self.target, self.weighting, head),
            cache,
            once if self.refresh is None else self.refresh,
            self.settings,
            self.workers,
        )

    def finish(self, trainer: HalfBridgeTrainer) -> NetworkTransitions:
        """The kernels of the averaged networks."""
        net, regression = trainer.averaged()
        half = trainer.half
        fitted = NetworkTransitions(
            half.reference, half.direction, net, self.target, teacher=half.law.transitions, spread=regression.head
        )
        if self.variance == "matched" and self.form == "full":
            fitted.spread = self._residual(half, fitted, "full")
        elif regression.head is not None and trainer.refresh * self.settings.batch_size > len(trainer.cache):
            n, seed = self.covariance_paths, self.settings.seed
            fitted.factors = variance_factors(half, fitted, n, seed, RESIDUALS, self.chunk, self.workers)
        return fitted

    def state(self, transitions: Transitions) -> dict[str, Any]:
        """Tensors from which `restore` makes these kernels again: "net", "head", "covariances", "factors", None where absent."""
        net = transitions.net.state_dict() if isinstance(transitions, NetworkTransitions) else None
        spread = getattr(transitions, "spread", getattr(transitions, "covariances", None))
        head = spread.state_dict() if isinstance(spread, VarianceHead) else None
        given = None if head is not None or spread is None else pack(spread)
        factors = getattr(transitions, "factors", None)
        scaled = None if factors is None else torch.tensor(factors, dtype=torch.float64, device="cpu")
        return {"net": net, "head": head, "covariances": given, "factors": scaled}

    def restore(
        self, reference: ReferenceChain, direction: Direction, teacher: Transitions, state: dict[str, Any]
    ) -> Transitions:
        """Kernels from their `state`; teacher: those that they were fitted against, which the target "score" calls."""
        covariances = None if state["covariances"] is None else unpack(self.form, state["covariances"])
        if state["net"] is None:
            if self.first is None:
                raise ValueError("the first backward kernels were made from a score; pass it again: first=")
            return ScoreTransitions(reference, self.first, covariances)
        own = self.heads[direction]
        spread = covariances if own is None else _filled(own, state["head"])
        net = _filled(self.nets[direction], state["net"])
        made = NetworkTransitions(reference, direction, net, self.target, teacher=teacher, spread=spread)
        made.factors = None if state["factors"] is None else state["factors"].tolist()
        return made

    def _residual(self, half: HalfBridge, means: Transitions, form: str) -> list[Covariance]:
        n, seed = self.covariance_paths, self.settings.seed
        return residual_covariances(half, means, form, n, seed, RESIDUALS, self.chunk, self.workers)

    def _cache_of(self, half: HalfBridge) -> TrajectoryCache:
        if self._cache is None or self._cache.reference != half.reference:
            like = half.law.begin(1, self.settings.seed)
            self._cache = TrajectoryCache(
                half.reference,
                like,
                self.cache_paths,
                self.target,
                matching=self.matching,
                where=self._where,
                limit=self._limit,
                folder=self._folder,
                workers=self.workers,
                chunk=self.chunk,
            )
        return self._cache


def _filled(module: Any, state: dict[str, torch.Tensor]) -> Any:
    made = copy.deepcopy(module).eval().requires_grad_(False)
    made.load_state_dict(state)
    return made
