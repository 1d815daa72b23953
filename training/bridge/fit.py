"""Diffusion Schrödinger bridges between two laws, by trained networks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbridge.solvers.field import Field
from halfbridge.solvers.reference.covariance import whole_number
from halfbridge.training.arguments import check_kept
from halfbridge.training.bridge.arguments import check, ends, settings_of
from halfbridge.training.bridge.bridge_folder import BridgeFolder, describe_bridge
from halfbridge.training.bridge.bridge_loop import BridgeLoop, BridgeState
from halfbridge.training.bridge.couplings import COUPLINGS, Coupling, check_coupling
from halfbridge.training.bridge.ends import End
from halfbridge.training.bridge.ipf import Iterate, reference_iterate
from halfbridge.training.bridge.monitors import Monitors, StopRule
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.reference import ReferenceChain
from halfbridge.training.bridge.run import BridgeRun
from halfbridge.training.bridge.views import Bridge
from halfbridge.training.data import Dataset
from halfbridge.training.folder import Resume, open_in_all
from halfbridge.training.saved import Saved, load
from halfbridge.training.settings import Settings
from halfbridge.training.workers import current

__all__ = ["BridgeFit", "BridgeState", "fit_bridge"]


class BridgeFit(Bridge):
    """What `fit_bridge` returns: a `Bridge` of the last good iterate.

    forward, backward   the kernels of both directions, by averaged networks
    iterate     pi^n with its end laws; `iterate.law` samples it
    monitors    a line each half-bridge
    losses      of each half-bridge's steps, (steps,) float64; empty where it was not trained
    stopped     why it ended: "iterations", the stop rule's reason, or where and how it diverged; diverged: whether it did
    folder      of the run, or None
    """

    def __init__(self, run: BridgeRun, folder: Path | None) -> None:
        now = run.good
        if now.backward is None:
            raise FloatingPointError(
                f"{run.stopped}; no iterate but the reference is good: lower lr, or take smaller steps"
            )
        super().__init__(now.forward, now.backward)
        self.iterate: Iterate = now
        self.monitors, self.losses = run.rows, run.losses
        self.stopped, self.diverged, self.folder = run.stopped, run.diverged is not None, folder
        self._measured = run.monitors

    def __repr__(self) -> str:
        chain = self.reference
        return (
            f"BridgeFit({chain.process!r} in {chain.steps} steps, after half-bridge {self.iterate.index}, "
            f"stopped={self.stopped!r})"
        )

    @property
    def floors(self) -> dict[str, float]:
        """What the marginal errors of `monitors` would be for a perfect bridge: see `Monitors.floors`."""
        return self._measured.floors()


def fit_bridge(
    forward_net: torch.nn.Module,
    backward_net: torch.nn.Module,
    start: End | Tensor | Dataset,
    end: End | Tensor | Dataset,
    reference: ReferenceChain,
    *,
    method: str = "dsb",
    iterations: int = 5,
    target: str | None = None,
    variance: str = "fixed",
    form: str | None = None,
    weighting: str = "kl",
    first: Field | str | os.PathLike[str] | None = None,
    coupling: str = "reference",
    coupling_size: int = 256,
    cache_paths: int = 1024,
    refresh: int | None = None,
    cache: str = "auto",
    cache_limit: int | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    covariance_paths: int = 16384,
    chunk: int | None = None,
    monitor_paths: int = 2048,
    stop: StopRule | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
    resume: Resume = False,
    plots: bool = False,
    progress: bool = False,
    callback: Callable[[BridgeState], Any] | None = None,
    **changes: Any,
) -> BridgeFit:
    """Join two laws by a diffusion Schrödinger bridge (De Bortoli et al. 2021): IPF with trained drifts.

    Each of `iterations` is two half-bridges: the backward network is trained on trajectories of the forward kernels from
    `start`, then the forward network on those of the backward kernels from `end`. The first half-bridge, against the reference
    itself, is a score-based model.

    forward_net, backward_net  net(x, t) -> like x, with t = reference.times[k] of the state x_k, (batch,): see
                `NetworkTransitions` for what they stand for. Trained in place; the fit has averaged copies. They may be
                trained already (a warm start)
    start, end  data (m, *shape), a `Dataset`, or a law with sample(n, seed, first): `Examples`, `Normal`, hb.reference.Gaussian.
                In the networks' dtype; data may lie on the CPU beside networks on a GPU, what is sampled of it goes over
    reference   `ReferenceChain`: the process, and its N steps
    method      "dsb", or "dsbm": iterative Markovian fitting by bridge matching (Shi et al. 2023) in place of IPF, on the same
                kernels, caches and monitors
    coupling    what "dsbm" begins from: "reference" (as DSB does), "independent" pairs of the ends, or, in minibatches of
                coupling_size, "ot" or "sinkhorn": see `Coupling`. coupling_size has a part in the last two alone
    target, variance, form, weighting, first, cache_paths, refresh, cache, cache_limit, cache_folder, covariance_paths, chunk
                see `NetworkRegressor`. `first` may be the folder of a run of `fit_score` too, whose averaged network it then is,
                or a file of `training.save`. A copy is kept in `out`, first.safetensors: that is what `load_bridge` reads, and
                first= takes it when resumed, should that folder have gone on. A cache on the disk is in `out`, where there is
                one, unless cache_folder is another. The targets "mean" and "drift" differ where
                weighting="plain" alone
    monitor_paths  paths that each iterate is measured on, see `Monitor`; stop: a `StopRule`
    settings, changes  `training.Settings`, whose fields are keywords here too. `steps` are the steps of each half-bridge, and the
                learning rate's schedule begins anew with each; class_dropout and sample_* have no part here. `precision` is of
                the means' training alone: networks of variances are trained in the networks' own, and not compiled, where the
                given ones are; caches, monitors and the bridge are simulated so
    plots       with `out`: monitors.png, and a picture of each chain's end in samples/
    progress    show steps and loss. callback: called with a `BridgeState` after each step, which has the iterate and networks to
                sample from; the run ends where it returns True, and is saved where it raises

    out, resume  as of `fit_score`: a folder that a killed run goes on from, to the same bits on a CPU with the same number of
                threads. `iterations` may be another then, as may `stop` and what settings leave free; the steps may not.

    Under `accelerate launch` the processes share each batch, as in `fit_score`, and the simulation of paths against learned
    kernels; each holds the whole cache. Process 0 measures and writes. What each gets is what one process would, to rounding.

    Divergence (a loss, a gradient, a variance or a chain that is not finite, or a chain that ends 100 times as far out as the
    laws) ends the run at the last good iterate, with a RuntimeWarning and the reason in `stopped`. The folder keeps both:
    resumed, the run returns that iterate again, and `load_bridge` reads it; begin another, in a new folder, with a lower lr or
    smaller steps. FloatingPointError where no iterate is good.
    Raises ValueError for end laws of different shapes, iterations = 0, networks of another dtype or device than the laws, or
    whose output is not like x (each is tried on one example), and for a run in `out` that another call began: with another
    reference, say.
    """
    whole_number("iterations", iterations, " (5, say; each is two half-bridges)")
    settings, nets = settings_of(settings, changes), {"forward_net": forward_net, "backward_net": backward_net}
    laws, workers = ends(start, end, nets), current()
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` is a {type(callback).__name__}; pass a function of a BridgeState")
    cache_folder = out if cache_folder is None else cache_folder
    field, score, first_run = _score(first, laws[0])
    check(nets, laws[0], reference, field, stop, settings, workers, plots)
    if out is None and (resume is not False or plots):
        what = f"resume = {resume!r}" if resume is not False else "plots = True"
        raise ValueError(f"{what} goes with a folder; pass it as out=")
    if out is not None:
        check_kept({f"`{name}`": net for name, net in nets.items()})
    check_coupling(coupling, coupling_size, ("reference", *COUPLINGS))
    begun = None if coupling == "reference" else Coupling(laws[0], laws[1], reference, coupling, coupling_size)
    regressor = NetworkRegressor(
        forward_net, backward_net, method=method, coupling=begun, target=target, variance=variance, form=form,
        weighting=weighting, settings=settings,
        cache_paths=cache_paths, refresh=refresh, cache=cache, cache_limit=cache_limit, cache_folder=cache_folder,
        covariance_paths=covariance_paths, chunk=chunk, first=field, workers=workers,
    )  # fmt: skip
    regressor.check(laws[0].sample(1, 0))
    monitors = Monitors(laws[0], laws[1], monitor_paths, settings.seed, regressor.chunk)
    run = BridgeRun(reference_iterate(laws[0], laws[1], reference), regressor, monitors)
    folder = None
    if out is not None:
        configs = {"start": _config(start), "end": _config(end)}
        config = describe_bridge(
            laws[0], laws[1], reference, regressor, monitor_paths=monitor_paths, iterations=iterations, data=configs,
            first_run=first_run,
        )  # fmt: skip
        folder = BridgeFolder(Path(out), config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if folder is not None:
            stack.callback(folder.close)
            at = open_in_all(folder, resume, workers)
            if at is not None:
                run.load(folder.read(at), at)
            if score is not None:
                workers.once(lambda: folder.keep_score(score))
        BridgeLoop(run, folder, plots, progress, callback).all(2 * iterations, stop or StopRule())
    return BridgeFit(run, None if folder is None else folder.path)


def _config(end: Any) -> dict[str, Any] | None:
    """What `data.load` makes the end from; None for what it did not make."""
    return dict(end.config) if isinstance(end, Dataset) and end.config is not None else None


def _score(first: Field | str | os.PathLike[str] | None, law: End) -> tuple[Field | None, Saved | None, str | None]:
    """The field, and what it was read from where it was, and its name. FileNotFoundError where there is nothing."""
    if not isinstance(first, str | os.PathLike):
        return first, None, None
    try:
        found = load(first)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`first` = {str(first)!r}: {error}") from error
    found.net.to(law.sample(1, 0).device)
    return found.field, found, str(Path(first).resolve())
