"""`halfbridge train sgm`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from halfbridge import config_file, listings, names
from halfbridge.commands.machine import device_of, quietly, use_threads
from halfbridge.commands.training_run import (
    RESUME,
    Pace,
    add_run,
    add_settings,
    kind,
    need,
    seeded,
    settings,
    shows_progress,
)
from halfbridge.parser import Commands, Parser, number, parts, switch, whole
from halfbridge.training import fit_score
from halfbridge.training.data import Dataset
from halfbridge.training.folder import check_free
from halfbridge.training.objectives import Hybrid, Objective
from halfbridge.training.workers import current

__all__ = ["add"]

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


def add(kinds: Commands) -> None:
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
    add_run(sgm.add_argument_group("run"))
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


def _run(options: argparse.Namespace) -> int:
    chosen = settings(options)
    with seeded(chosen.seed):
        objective = _objective(options)
    names.check_net(options.net, options.precondition)
    if config_file.write(options):
        return 0
    need(options, "data", "out")
    workers = current()
    say = quietly(options.quiet or not workers.first)
    use_threads(options.threads)
    check_free(Path(options.out), RESUME[options.resume])
    flags = {name: getattr(options, name) for name in ("size", "gray", "holdout")}
    data = names.data(options.data, **flags, dequantise=options.dequantise or None)
    if options.classes and not data.n_classes:
        raise ValueError(f"--classes: data {options.data!r} has no classes; leave it out")
    with seeded(chosen.seed):
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

    pace = Pace()
    fit = fit_score(
        net,
        data,
        objective=objective,
        settings=chosen,
        out=options.out,
        resume=RESUME[options.resume],
        progress=shows_progress(options),
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


def _introduce(
    say: Callable[[str], None], options: argparse.Namespace, net: Any, data: Dataset, objective: Objective
) -> None:
    shape = " x ".join(map(str, data.shape))
    levels = "" if data.levels is None else f", {data.levels} grey levels" + (", dequantised" * options.dequantise)
    classes = f", {data.n_classes} classes" if data.n_classes else ""
    told = " of which the network is told" if options.classes else ""
    say(f"data       {data.name}: {len(data)} examples of {shape}{levels}{classes}{told}")
    say(f"network    {options.net if options.net != 'auto' else kind(net)}: {net.parameter_count:,} parameters")
    say(f"objective  {options.objective}, predicts {objective.predicts}, under {type(objective.process).__name__}")
    say(f"folder     {Path(options.out)}")


def _size(text: str) -> int | tuple[int, int]:
    sides = tuple(map(whole, parts(text)))
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of pixels, or height,width")
    return sides[0], sides[1]
