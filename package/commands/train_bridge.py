"""`halfbridge train bridge`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from halfbridge import bridge_names, config_file, listings, names
from halfbridge.commands.bridge_flags import add_method, add_paths, add_problem
from halfbridge.commands.bridge_run import is_bridge
from halfbridge.commands.bridge_table import MonitorTable, one_line_warnings
from halfbridge.commands.machine import device_of, quietly, use_threads
from halfbridge.commands.training_run import (
    RESUME,
    add_run,
    add_settings,
    kind,
    need,
    seeded,
    settings,
    shows_progress,
    told_by_flags,
)
from halfbridge.parser import Commands, fail, switch
from halfbridge.training import saved
from halfbridge.training.bridge import NetworkRegressor, Normal, ReferenceChain, StopRule, fit_bridge
from halfbridge.training.bridge.bridge_plots import check_plots
from halfbridge.training.data import Dataset
from halfbridge.training.folder import check_free
from halfbridge.training.saved import Saved
from halfbridge.training.workers import current

__all__ = ["WITHOUT", "add"]

EXAMPLE = """\
examples:
  halfbridge train bridge --start moons --end 8gaussians --out runs/moons
  halfbridge train bridge --start checkerboard --end normal --process 'ou(theta=1, T=2)' --steps-of-chain 30 --out runs/board
  halfbridge train bridge --start 'digits(classes=[3])' --end 'digits(classes=[8])' --process 'dsb(rate=0)' \\
      --gammas 'symmetric(least=0.01, most=0.1)' --net 'unet(width=32)' --steps 5000 --out runs/3-8 --resume auto
  halfbridge train bridge --start digits --end normal --first runs/digits --iterations 3 --out runs/from-sgm
  halfbridge train bridge --start moons --end swiss_roll --method dsbm --coupling ot --save-config bridge.toml
  halfbridge train bridge --config bridge.toml --iterations 20 --stop-kl 0.01 --stop-error 0.02 --out runs/longer
  accelerate launch --multi_gpu --num_processes 4 -m halfbridge train bridge --start moons --end normal --out runs/board

An iteration is two half-bridges: the backward network is trained on paths of the forward kernels, then the forward network
on those of the backward kernels, --steps optimiser steps each. A line is printed for each half-bridge: the distance of its
chain's end from the law that it should have (energy distance and sliced W2), the KL to the iterate two before, the path
energy. A run that diverges ends with status 1, at the last good iterate. Then: halfbridge sample, translate, likelihood RUN.
names, here with their arguments and defaults, in quotes for the shell:
{names}"""

WITHOUT = ("class_dropout", "sample_every", "sample_count", "sample_solver", "sample_grid", "sample_steps")
"""Settings that have no part in bridges."""
REGRESSION = ("method", "target", "variance", "form", "weighting", "cache_paths", "refresh", "cache", "cache_limit",
              "cache_folder", "covariance_paths", "chunk")  # fmt: skip
"""Options that `fit_bridge` passes on to `NetworkRegressor`, by their names there."""


def add(kinds: Commands) -> None:
    parser = kinds.add_parser(
        "bridge",
        help="a diffusion Schrödinger bridge between two data sets, or data and noise",
        description="Train a diffusion Schrödinger bridge: two networks that carry each of two laws to the other.",
        usage="%(prog)s --start NAME|PATH --end NAME|PATH --out FOLDER [options]",
        epilog=EXAMPLE.format(names=listings.bridges()),
    )
    config_file.offer(parser, ("steps_of_chain", "times"), ("gammas", "times"))
    add_problem(parser)
    add_method(parser)
    add_paths(parser)
    add_settings(parser, "training, of each half-bridge", WITHOUT)
    group = parser.add_argument_group("run")
    add_run(group)
    switch(
        group,
        "--plots",
        "draw monitors.png, and the ends of each chain in samples/ (default: where matplotlib and pillow are installed)",
        None,
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with told_by_flags(options, kl="stop_kl", error="stop_error", patience="stop_patience"):
        return _train(options)


def _train(options: argparse.Namespace) -> int:
    chosen, stop = settings(options), StopRule(options.stop_kl, options.stop_error, options.stop_patience)
    regression = {name: getattr(options, name) for name in REGRESSION}
    # refuses what does not go together
    regressor = NetworkRegressor(torch.nn.Identity(), torch.nn.Identity(), **regression)
    bridge_names.check_net(options.net)
    for text in filter(None, (options.start, options.end)):
        bridge_names.check_end(text)
    reference = None if options.process == "auto" and options.first else _reference(options, None)
    if config_file.write(options):
        return 0
    need(options, "start", "end", "out")
    workers = current()
    say = quietly(options.quiet or not workers.first)
    use_threads(options.threads)
    check_free(Path(options.out), RESUME[options.resume])
    first = None if options.first is None else _first(options)
    reference = reference or _reference(options, first)
    device, dtype = device_of(options.device, workers), getattr(torch, options.dtype)
    start, end = bridge_names.ends(options.start, options.end, dtype, device)
    if start.shape != end.shape:
        raise ValueError(
            f"--end has samples of shape {tuple(end.shape)}, but --start has {tuple(start.shape)}; a bridge joins laws on one "
            "space: convert one"
        )
    regressor.check(torch.empty(1, *start.shape))
    _check_first(options, first, start)
    with seeded(chosen.seed):
        forward, backward = (names.net(options.net, start.shape, reference.process).to(device, dtype) for _ in range(2))
    _introduce(say, options, forward, start, end, reference)

    table = MonitorTable(say)
    plots = _drawable(start.shape) if options.plots is None else options.plots
    try:
        with one_line_warnings(silent=r".*diverged: "):
            fit = fit_bridge(
                forward,
                backward,
                start,
                end,
                reference,
                iterations=options.iterations,
                **regression,
                first=options.first,
                coupling=options.coupling,
                coupling_size=options.coupling_size,
                monitor_paths=options.monitor_paths,
                stop=stop,
                settings=chosen,
                out=options.out,
                resume=RESUME[options.resume],
                plots=plots,
                progress=shows_progress(options),
                callback=table,
            )
    except FloatingPointError as error:
        return fail(str(error), 1)
    table.rest(fit.monitors, {} if options.quiet or not workers.first else fit.floors)
    if fit.diverged:
        good = f"the last good iterate, of half-bridge {fit.iterate.index}"
        return fail(f"{fit.stopped}; {options.out} holds {good}, for sample and translate", 1)
    say(f"stopped after half-bridge {fit.iterate.index}: {_reason(fit.stopped)}")
    example = "samples.png" if len(start.shape) == 3 or start.shape == (2,) else "samples.npz"
    say(f"halfbridge sample {options.out} --to start -n 64 --out {example}")
    say(f"halfbridge translate {options.out} --input FILE --to end --out translated.npz")
    return 0


def _reference(options: argparse.Namespace, first: Saved | None) -> ReferenceChain:
    process: Any = options.process
    if process == "auto":
        process = "Brownian" if first is None else first.process
    for name in ("steps_of_chain", "gammas"):
        if options.times is not None and getattr(options, name) is not None:
            raise ValueError(f"--times and --{name.replace('_', '-')} exclude each other; pass one")
    steps = 20 if options.steps_of_chain is None else options.steps_of_chain
    return bridge_names.reference(process, steps, options.gammas, options.transitions, options.times)


def _first(options: argparse.Namespace) -> Saved:
    if is_bridge(options.first):
        raise ValueError(f"--first {options.first} is a run of train bridge; pass one of train sgm")
    return saved.load(options.first)


def _check_first(options: argparse.Namespace, first: Saved | None, law: Dataset | Normal) -> None:
    if first is None:
        return
    net: Any = first.net
    shape, dtype = tuple(getattr(net, "net", net).shape), str(next(first.net.parameters()).dtype)[6:]
    if shape != tuple(law.shape):
        raise ValueError(f"--first {options.first}: its network is for {shape}, and the ends are of {tuple(law.shape)}")
    if dtype != options.dtype:
        raise ValueError(f"--first {options.first}: its network is of {dtype}; pass --dtype {dtype}")


def _drawable(shape: tuple[int, ...]) -> bool:
    try:
        check_plots()
    except ImportError:
        return False
    return True


def _introduce(
    say: Callable[[str], None],
    options: argparse.Namespace,
    net: Any,
    start: Dataset | Normal,
    end: Dataset | Normal,
    reference: ReferenceChain,
) -> None:
    for name, law in (("start", start), ("end", end)):
        shape = " x ".join(map(str, law.shape))
        size = f"{law.name}: {len(law)} examples" if isinstance(law, Dataset) else f"N({law.mean:g}, {law.std:g}^2)"
        say(f"{name:10} {size} of {shape}")
    low, high = min(reference.gammas), max(reference.gammas)
    sizes = f"{low:.4g}" if high - low <= 1e-6 * high else f"{low:.4g} to {high:.4g}"
    say(f"reference  {reference.process!r} in {reference.steps} steps, {reference.transitions}, gamma {sizes}")
    text = options.net if options.net != "auto" else kind(net)
    say(f"networks   {text}, twice: {net.parameter_count:,} parameters each")
    say(f"method     {options.method}, {options.iterations} iterations of 2 x {options.steps} steps")
    say(f"folder     {Path(options.out)}")


def _reason(stopped: str | None) -> str:
    return "all iterations are done" if stopped == "iterations" else str(stopped)
