"""Training a network on data: the loop, and what it is called with."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from halfbridge.nets.adapter import Labels
from halfbridge.solvers.field import Field
from halfbridge.solvers.processes import Process
from halfbridge.training import objectives
from halfbridge.training.arguments import check, check_kept
from halfbridge.training.data import Dataset
from halfbridge.training.folder import Resume, RunFolder, open_in_all
from halfbridge.training.interrupts import watch
from halfbridge.training.loop import TrainingState, run
from halfbridge.training.losses import Times, Weighting
from halfbridge.training.modes import training_mode
from halfbridge.training.objectives import Objective
from halfbridge.training.previews import rehearse
from halfbridge.training.runs import describe_run
from halfbridge.training.settings import Settings, settings_with
from halfbridge.training.trainer import Trainer
from halfbridge.training.workers import current

__all__ = ["ScoreFit", "TrainingState", "fit_score"]

Module = TypeVar("Module", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True)
class ScoreFit(Generic[Module]):
    """What `fit_score` returns."""

    net: Module
    """The averaged network (of the first decay), in eval mode and without gradients."""
    field: Field
    """`net` as a field under the process it was trained for."""
    losses: torch.Tensor = dataclasses.field(repr=False)
    """The mean loss of each step's batch, (steps,), float64."""
    nets: dict[float, Module] = dataclasses.field(repr=False)
    """The averaged network of each decay."""
    step: int
    """Steps done."""
    folder: Path | None
    """The run's folder."""


def fit_score(
    net: Module,
    data: torch.Tensor | Dataset,
    process: Process | None = None,
    *,
    objective: str | Objective = "denoising",
    predicts: str | None = None,
    weighting: Weighting | None = None,
    times: Times | None = None,
    labels: Labels | None = None,
    classes: torch.Tensor | None = None,
    settings: Settings | None = None,
    out: str | Path | None = None,
    resume: Resume = False,
    progress: bool = False,
    callback: Callable[[TrainingState[Module]], Any] | None = None,
    **changes: Any,
) -> ScoreFit[Module]:
    """Train `net` in place to predict `predicts` on `data` noised by `process`; return its averaged copy as a field.

    data: (n, *shape), in the network's dtype (not float16: Adam's epsilon is 0 in it; see `precision`), on its device or on
    the CPU, from where the rows of each batch go over; or a `Dataset`, whose pixels are dequantised anew for each example
    seen if it was loaded with dequantise=True, with noise counted as below. Each step takes the next `batch_size` examples
    of an endless sequence of shuffled passes over the data, and minimises the mean over them of an objective.
    process: may be left out where the objective has one of its own ("edm", "ncsn", a "vdm" that learns it, and objects).
    objective: a name of `objectives.NAMES` or an object of your own. "denoising" is `losses.denoising_loss` at stratified
    times; see there for `predicts` ("noise"), `weighting` ("simple") and `labels`, and `losses.sample_times` for `times`
    ("uniform"). An objective that is a module is trained and averaged with the network.
    classes: (n,) int64 for a network that takes net(x, label, classes), -1 for none; default: the Dataset's, if the network
    has classes. `class_dropout` withholds them at random, for classifier-free guidance.
    settings, changes: `training.settings.Settings`, whose fields are keywords here too (steps, batch_size, lr, clip, ...).
    progress: show steps, loss and speed.
    callback: called with a `TrainingState` after each step, for train mode to be restored after it. If it returns True (not
    1, or something true) training ends there, saved and returned as it is; on several processes after the next step, and one
    of them is enough.

    out: a folder for the run, new or empty: its config, checkpoints, log and pictures (see `training.folder`), made once the
    loss of an example could be evaluated. A run that
    was killed at any moment goes on with the same call and resume=True, or "auto", which begins where there is nothing yet;
    on a CPU with the same number of threads it ends in the same bits as one never interrupted. What is trained may not
    change then (of functions of your own the names are compared, no more); `steps` may (with a constant schedule), and what
    is written and shown: save_every, keep, log_every, tensorboard, sample_*, progress; and the number of processes, to
    rounding; other versions are warned of. SIGINT (Ctrl-C) and SIGTERM save after the step they come in and raise
    `Interrupted`, a KeyboardInterrupt; a second one acts at once. What a callback or a picture raises passes on once the
    state is saved. While it trains the folder is locked: a second run in it gets BlockingIOError.

    The state after a step depends on the arguments and the network's starting values only: batches, times and normals are
    counted from the seed and the step, and dropout sees a global generator seeded for each step. The global generator is
    left as it was, and each module's train or eval mode is restored. On a CPU with the same number of threads the same seed
    gives the same bits. Under `accelerate launch` the processes share each batch (`training.workers`): all call fit_score
    alike, process 0 writes, and what each gets is what one process would, to rounding. With dropout the masks follow the
    micro-batches: 2 processes are then like one with accumulate=2. BatchNorm normalises each micro-batch by itself, so that
    with it accumulate=2 is other training; its running statistics would differ between processes, which refuse it.

    Raises ValueError for data that is empty, constant, not finite or unlike the network, and FloatingPointError, naming
    the step, when the loss or the gradient stops being finite: with `out` the state before that step is saved, beside the
    checkpoints that there are.
    """
    settings, workers = settings_with(settings, changes), current()
    if predicts is None and objective == "denoising":
        predicts = getattr(net, "predicts", None)
    chosen = _objective(objective, process, predicts=predicts, weighting=weighting, times=times, labels=labels)
    chosen.field(net)  # refuses a network that says that it predicts something else
    examples = check(net, data, classes, settings, workers)
    if out is None and resume is not False:
        raise ValueError(f"resume = {resume!r} goes on with a run in a folder; pass its folder as out=")
    folder = None if out is None else RunFolder(Path(out), describe_run(net, chosen, data, examples, settings))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        trainer = Trainer(net, chosen, examples.values, examples.classes, settings, workers, examples.bins)
        if folder is not None:
            check_kept({"the network": net, "the objective": chosen})
            with training_mode(trainer.model, trainer.device):
                trainer.rehearse()
            if settings.sample_every:
                rehearse(trainer)
            stack.callback(folder.close)
            begun = open_in_all(folder, resume, workers)
            if begun is not None:
                folder.load(trainer, begun)
        with training_mode(trainer.model, trainer.device), watch(folder is not None) as heard:
            run(trainer, folder, heard, progress, callback)

    nets = [trainer.averaged(k)[0] for k in range(len(settings.decays))]
    best = trainer.averaged()[1]
    return ScoreFit(
        nets[0],
        best.field(nets[0]),
        trainer.losses[: trainer.step],
        dict(zip(settings.decays, nets, strict=True)),
        trainer.step,
        None if folder is None else folder.path,
    )


def _objective(objective: str | Objective, process: Process | None, **options: Any) -> Objective:
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(objective, str):
        return objectives.make(objective, process, **given)
    if given:
        raise ValueError(f"{', '.join(given)} belong to the objective; give them to {type(objective).__name__} itself")
    if process is not None and objective.process != process:
        raise ValueError(f"process = {process!r} is not the objective's, {objective.process!r}; leave it out")
    return objective
