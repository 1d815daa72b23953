"""`halfbridge train`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch

from halfbridge import config_file, listings, names
from halfbridge.commands.machine import add_machine, device_of, quietly, use_threads
from halfbridge.parser import Commands, Parser, number, numbers, one_or_several, parts, path, switch, whole
from halfbridge.training import fit_score
from halfbridge.training.data import Dataset
from halfbridge.training.folder import Resume, check_free
from halfbridge.training.objectives import Hybrid, Objective
from halfbridge.training.settings import Settings
from halfbridge.training.workers import current

__all__ = ["add", "add_settings", "settings"]

EXAMPLE = """\
examples:
  halfbridge train sgm --data digits --out runs/digits
  halfbridge train sgm --data 'moons(n=20000)' --process edm --objective edm --precondition edm --out runs/moons
  halfbridge train sgm --data photos/ --size 32 --net 'unet(width=128, attention=[16])' --classes --class-dropout 0.1 \\
      --out runs/photos --resume auto
  halfbridge train sgm --data digits --lr 5e-4 --save-config run.toml
  halfbridge train sgm --config run.toml --steps 5000 --out runs/longer
  accelerate launch --multi_gpu --num_processes 4 -m halfbridge train sgm --data digits --out runs/digits

names, here with their arguments and defaults, in quotes for the shell: 'mlp(hidden=128, time=log_snr)', 'VP(beta_max=15)',
'denoising(weighting=min_snr(gamma=3))', 'vdm(schedule=learned)', 'vdm(levels=17)', 'photos/(n=1000)':
{names}"""

KINDS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (whole, "N"),
    float: (number, "X"),
    str: (str, "NAME"),
    tuple[float, float]: (numbers, "X,X"),
    float | tuple[float, ...]: (one_or_several, "X[,X...]"),
}


RESUME: dict[str, Resume] = {"yes": True, "no": False, "auto": "auto"}


def add(commands: Commands) -> None:
    train = commands.add_parser("train", help="train a network on data, resumable, on one process or several")
    kinds = train.add_subparsers(required=True, metavar="what", parser_class=Parser)
    sgm = kinds.add_parser(
        "sgm",
        help="a score-based generative model",
        description="Train a network to denoise data: a score-based generative model, to be sampled by `halfbridge sample`.",
        usage="%(prog)s --data NAME|PATH --out FOLDER [options]",
        epilog=EXAMPLE.format(names=f"{listings.trainable()}\n{listings.processes()}"),
    )
    config_file.offer(sgm)
    _add_data(sgm)
    _add_model(sgm)
    add_settings(sgm)
    _add_run(sgm)
    sgm.set_defaults(run=_run)


def _add_data(parser: Parser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="NAME|PATH", help="what to learn, see names below (required, no default)")
    group.add_argument(
        "--size",
        type=_size,
        metavar="N[,N]",
        help="resize images to so many pixels, a square or height,width (default: as they are)",
    )
    switch(group, "--gray", "make a folder's images gray, or colour (default: RGB unless all are gray)", None)
    group.add_argument(
        "--holdout",
        type=number,
        metavar="X",
        help="fraction kept from training, for `halfbridge likelihood` (default: none)",
    )
    switch(group, "--dequantise", "spread an image's grey levels over their bins: for densities in bits per dimension")
    switch(group, "--classes", "tell the network the data's classes; with --class-dropout 0.1 for guidance")


def _add_model(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--process",
        default="auto",
        metavar="NAME",
        help="the noising process (default: auto: the objective's own for edm and "
        "ncsn, ddpm for ddpm, ddpm_elbo and hybrid, else VP; see names below)",
    )
    group.add_argument("--net", default="auto", metavar="NAME", help="the network: unet for images, mlp for points")
    group.add_argument(
        "--precondition",
        default="none",
        metavar="NAME",
        help="wrap it as a column of EDM's table 1: edm, vp, ve, iddpm; it then predicts data",
    )
    group.add_argument("--objective", "--loss", default="denoising", metavar="NAME", help="what is minimised")
    group.add_argument(
        "--predicts",
        metavar="WHAT",
        help="what the network returns: noise, score, data or velocity (default: the objective's; "
        "data with --precondition)",
    )
    group.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of weights and data")


def add_settings(parser: Parser) -> None:
    """A flag for each field of Settings."""
    group, hints = parser.add_argument_group("training"), get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        flag, text = f"--{field.name.replace('_', '-')}", str(field.metadata["help"]).replace("%", "%%")
        if hints[field.name] is bool:
            switch(group, flag, text, bool(field.default))
        else:
            kind, metavar = KINDS[hints[field.name]]
            group.add_argument(flag, type=kind, default=_written(field.default), metavar=metavar, help=text)


def settings(options: argparse.Namespace) -> Settings:
    """The Settings of the flags."""
    return Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})


def _add_run(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", type=path, metavar="FOLDER", help="folder of the run, new or empty (required, no default)"
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        default="no",
        choices=["yes", "auto", "no"],
        help="go on with the run in --out; auto: begin it where there is none",
    )
    add_machine(group)
    switch(group, "--progress", "show a bar with loss and speed (default: on a terminal)", None)
    switch(group, "--quiet", "print errors only, and no bar")


def _run(options: argparse.Namespace) -> int:
    chosen = settings(options)
    with _seeded(chosen.seed):
        objective = _objective(options)
    names.check_net(options.net, options.precondition)
    if config_file.write(options):
        return 0
    for name in ("data", "out"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing; see {options.parser.prog} --help")
    workers = current()
    say = quietly(options.quiet or not workers.first)
    use_threads(options.threads)
    check_free(Path(options.out), RESUME[options.resume])
    flags = {name: getattr(options, name) for name in ("size", "gray", "holdout")}
    data = names.data(options.data, **flags, dequantise=options.dequantise or None)
    if options.classes and not data.n_classes:
        raise ValueError(f"--classes: data {options.data!r} has no classes; leave it out")
    with _seeded(chosen.seed):
        net = names.net(
            options.net,
            data.shape,
            objective.process,
            classes=data.n_classes if options.classes else 0,
            precondition=options.precondition,
            variances=_learns_variances(objective),
        )
    device = device_of(options.device, workers)
    net = net.to(device, getattr(torch, options.dtype))
    learned: object = objective
    if isinstance(learned, torch.nn.Module):
        learned.to(device)
    _introduce(say, options, net, data, objective)

    pace = _Pace()
    fit = fit_score(
        net,
        data,
        objective=objective,
        settings=chosen,
        out=options.out,
        resume=RESUME[options.resume],
        progress=not options.quiet and (sys.stderr.isatty() if options.progress is None else options.progress),
        callback=pace,
    )
    say(f"step {fit.step}: {pace.summary(fit.losses)}")
    example = "samples.png" if len(data.shape) == 3 or data.shape == (2,) else "samples.npz"
    say(f"halfbridge sample {options.out} --solver dpm3 --steps 10 -n 64 --out {example}")
    say(f"halfbridge likelihood {options.out}")
    return 0


def _objective(options: argparse.Namespace) -> Objective:
    predicts = options.predicts
    if options.precondition != "none":
        if predicts is not None and predicts.lower() != "data":
            raise ValueError(f"--predicts {predicts}: a preconditioned network predicts data; leave it out")
        predicts = "data"
    return names.objective(options.objective, options.process, predicts)


def _learns_variances(objective: Objective) -> bool:
    """Whether the network is to return variances beside its prediction."""
    return isinstance(objective, Hybrid) or bool(getattr(objective, "learned", False))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Starting values follow from the seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _introduce(
    say: Callable[[str], None], options: argparse.Namespace, net: Any, data: Dataset, objective: Objective
) -> None:
    shape = " x ".join(map(str, data.shape))
    levels = "" if data.levels is None else f", {data.levels} grey levels" + (", dequantised" * options.dequantise)
    classes = f", {data.n_classes} classes" if data.n_classes else ""
    told = " of which the network is told" if options.classes else ""
    say(f"data       {data.name}: {len(data)} examples of {shape}{levels}{classes}{told}")
    say(f"network    {options.net if options.net != 'auto' else _kind(net)}: {net.parameter_count:,} parameters")
    say(f"objective  {options.objective}, predicts {objective.predicts}, under {type(objective.process).__name__}")
    say(f"folder     {Path(options.out)}")


def _kind(net: Any) -> str:
    return str(type(getattr(net, "net", net)).__name__)


class _Pace:
    """The last state that training told of, and how fast it got there."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.first = self.last = self.examples = 0

    def __call__(self, state: Any) -> None:
        self.first = self.first or state.step
        self.last, self.examples = state.step, state.examples

    def summary(self, losses: torch.Tensor) -> str:
        if not self.last:
            return "nothing was left to do"
        seconds, steps = time.perf_counter() - self.begun, self.last - self.first + 1
        speed = self.examples / self.last * steps / seconds
        recent = losses[-min(100, len(losses)) :]
        return (
            f"loss {recent.mean().item():.4g} (of the last {len(recent)} steps), {steps} steps in {seconds:.1f} s, "
            f"{speed:.3g} examples/s"
        )


def _written(value: Any) -> str:
    """A default as a flag would have it."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return "inf" if value == math.inf else str(value)


def _size(text: str) -> int | tuple[int, int]:
    sides = tuple(map(whole, parts(text)))
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of pixels, or height,width")
    return sides[0], sides[1]
