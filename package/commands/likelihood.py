"""`halfbridge likelihood`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from halfbridge import config_file, listings, names
from halfbridge.commands import bridge_run
from halfbridge.commands.bridge_run import BridgeRun, is_bridge, refuse
from halfbridge.commands.bridge_run import introduce as introduce_bridge
from halfbridge.commands.likelihood_table import Method, as_json, as_text, measure
from halfbridge.commands.machine import add_machine, bar, device_of, quietly, use_threads
from halfbridge.commands.trained import add_run, dtype_of, introduce, load, shape_of
from halfbridge.commands.training_run import shows_progress
from halfbridge.commands.unseen import unseen
from halfbridge.parser import Commands, count, number, switch, whole
from halfbridge.solvers import adaptive, grids
from halfbridge.solvers import names as solver_names
from halfbridge.solvers.divergence import Hutchinson
from halfbridge.solvers.elbo import elbo
from halfbridge.solvers.field import Field
from halfbridge.solvers.heun import Heun
from halfbridge.solvers.likelihood import Likelihood, log_likelihood
from halfbridge.solvers.processes import Process
from halfbridge.training.data import Dataset
from halfbridge.training.data.order import pick
from halfbridge.training.saved import Saved
from halfbridge.training.workers import current

__all__ = ["add"]

EXAMPLE = f"""\
examples:
  halfbridge likelihood runs/digits
  halfbridge likelihood runs/digits --method flow --divergence exact -n 64 --json
  halfbridge likelihood runs/moons --data 'moons(n=2000, seed=7)' -n 2000 --solver dopri5 --rtol 1e-6

Of a run of train bridge --end normal it is the log-density of its probability flow's samples at time 0, from that at the end.
flow is the log-density of the probability flow's samples at the process's t_min (in the mean over the probes of hutchinson), to
the solver's error: that of an adaptive solver is kept by --rtol and --atol; nothing keeps that of --steps, so compare with
twice as many, or with dopri5. elbo is a lower bound on that of the reverse SDE's samples, of --draws times and noises.
Images are dequantised: numbers are of the pixels' probabilities, and mean something for a network that was trained on
dequantised data (train sgm --dequantise). The error after +- is the standard error of the mean over the examples.
solvers: {", ".join(adaptive.METHODS)}, adaptive, of the extra engines; or, with their arguments and defaults:
{listings.solvers()}"""

EXACT = 16
"""Dimensions up to which the divergence is exact unless told: it costs that many backward passes."""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "likelihood",
        help="log-likelihood of data under a trained network, by flow and bound",
        usage="%(prog)s RUN [options]",
        description="Log-likelihood of data under a trained network: nats and bits per dimension.",
        epilog=EXAMPLE,
    )
    config_file.offer(parser)
    add_run(parser)
    parser.add_argument(
        "--data",
        metavar="NAME|PATH",
        help="of what, written as in train (default: the part of the run's data that it held out, "
        "fresh points of a law, or else what it was trained on)",
    )
    parser.add_argument(
        "-n", "--number", type=count, default=256, metavar="N", help="examples, at random; fewer if there are"
    )
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="of their choice, grey levels, probes and draws"
    )
    parser.add_argument(
        "--method", choices=["flow", "elbo", "both"], help="flow, elbo or both (default: both; of a bridge flow alone)"
    )
    parser.add_argument("--solver", metavar="NAME", help="of the flow (default: dpm3; of a bridge heun)")
    parser.add_argument(
        "--rtol", type=number, default=1e-5, metavar="X", help="relative tolerance of an adaptive solver"
    )
    parser.add_argument(
        "--atol", type=number, default=1e-5, metavar="X", help="absolute tolerance of an adaptive solver"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="steps of a solver that is not adaptive (default: 40)")
    parser.add_argument(
        "--divergence",
        default="auto",
        choices=["auto", "exact", "hutchinson"],
        help=f"of the flow's drift; auto: exact up to {EXACT} dimensions",
    )
    parser.add_argument("--probes", type=count, default=1, metavar="N", help="of hutchinson, an example")
    parser.add_argument(
        "--draws", type=_draws, default=128, metavar="N", help="of times and noises for elbo, an example, from 4"
    )
    switch(
        parser,
        "--reconstruct",
        "elbo: bound the density of data, with a last denoising step from t_min, in place of that of points at t_min",
    )
    parser.add_argument(
        "--classes",
        default="data",
        choices=["data", "none"],
        help="what a network with classes is told: each example's class, or none",
    )
    parser.add_argument("--batch", type=count, default=64, metavar="N", help="examples at a time")
    add_machine(parser)
    switch(parser, "--progress", "show a bar of examples (default: on a terminal)", None)
    switch(parser, "--json", "print JSON in place of the table")
    parser.set_defaults(run=_run)


def _draws(text: str) -> int:
    found = whole(text)
    if found < 4:
        raise argparse.ArgumentTypeError(f"{text} must be at least 4")
    return found


def _run(options: argparse.Namespace) -> int:
    adaptive_one = options.solver in adaptive.METHODS
    if adaptive_one and options.steps is not None:
        raise ValueError(
            f"--steps {options.steps}: {options.solver} chooses its steps; leave it out, or pass --solver dpm3"
        )
    given: Any = options.solver if adaptive_one else solver_names.solver(options.solver or "dpm3")
    if config_file.write(options):
        return 0
    if current().count > 1:
        raise ValueError("likelihood runs in one process; start it without accelerate launch")
    use_threads(options.threads)
    device = device_of(options.device, current())
    say = quietly(options.json)
    if is_bridge(options.folder):
        return _of_bridge(options, bridge_run.load(options.folder, device), given if options.solver else Heun(), say)
    found = load(options.folder, options.average, device)
    if found.classes and found.no_class is False and options.classes == "none":
        raise ValueError(
            "--classes none: the network was always told the class in training and knows nothing of none; leave it out, or train "
            "with --class-dropout 0.1"
        )
    data, what = _data(options, found.data)
    rows = pick(len(data), min(options.number, len(data)), options.seed)
    x0, told = _examples(options, found, data, rows, device)

    def field(part: slice) -> Field:
        return found.as_field() if told is None else found.as_field(classes=told[part])

    introduce(say, options.folder, found)
    told_of = {"step": found.step, "average": found.average}
    methods = {
        "flow": _flow(options, given, found.process, grids.half_log_snr, shape_of(found)),
        "elbo": _bound(options),
    }
    if options.method not in (None, "both"):
        methods = {options.method: methods[options.method]}
    return _tell(options, say, field, methods, x0, data, what, found.data, told_of)


def _of_bridge(options: argparse.Namespace, run: BridgeRun, solver: Any, say: Callable[[str], None]) -> int:
    """By the probability flow, from the density of the end."""
    refuse(options, "a bridge, which keeps its first average", "average")
    refuse(options, "a bridge, whose networks know no classes", "classes")
    if options.reconstruct or options.method not in (None, "flow"):
        asked = "--reconstruct" if options.reconstruct else f"--method {options.method}"
        raise ValueError(f"{asked}: {options.folder} is a bridge, whose likelihood is that of its flow; leave it out")
    prior, _ = run.law("end", options.seed)
    if not callable(getattr(prior, "log_prob", None)):
        raise ValueError(
            f"{options.folder} ends in data, which have no density for its flow to begin from; train a bridge with --end normal"
        )
    data, what = _data(options, (run.config.get("data") or {}).get("start"))
    if data.shape != run.shape:
        raise ValueError(f"data {data.name!r} has examples of {data.shape}, and the bridge joins laws on {run.shape}")
    x0 = data.dequantised(options.seed, dtype=run.dtype) if data.levels else data.examples.to(run.dtype)
    x0 = x0[pick(len(data), min(options.number, len(data)), options.seed)].to(run.device)
    introduce_bridge(say, run)
    field = run.bridge.flow_field()
    flow = _flow(options, solver, field.process, grids.uniform, run.shape, prior=prior)
    start = (run.config.get("data") or {}).get("start")
    return _tell(options, say, lambda part: field, {"flow": flow}, x0, data, what, start, {"step": run.step})


def _tell(
    options: argparse.Namespace,
    say: Callable[[str], None],
    field: Callable[[slice], Field],
    methods: Mapping[str, Method],
    x0: torch.Tensor,
    data: Dataset,
    what: str,
    trained_on: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
) -> int:
    say(f"data: {len(x0)} of {len(data)} examples of {data.name}, {what}" + (", dequantised" if data.levels else ""))
    if data.levels and not (trained_on or {}).get("dequantise"):
        say("note: the network was trained on grey levels, not on dequantised data, whose density this is")
    with bar(len(methods) * len(x0), shows_progress(options), "likelihood", "example") as progress:
        table = [
            measure(name, method, field, x0, options.batch, data, progress.update) for name, method in methods.items()
        ]
    if options.json:
        known = {"run": options.folder, **facts, "data": data.name, "part": what, "examples": len(x0)}
        print(as_json(table, known))
    else:
        print(as_text(table))
    return 0


def _examples(
    options: argparse.Namespace, found: Saved, data: Dataset, rows: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Those rows of the data as the network takes them, and their classes if it is told them."""
    if data.shape != shape_of(found):
        raise ValueError(f"data {data.name!r} has examples of {data.shape}, and the network is for {shape_of(found)}")
    dtype = dtype_of(found)
    x0 = data.dequantised(options.seed, dtype=dtype) if data.levels else data.examples.to(dtype)
    if not found.classes or options.classes == "none":
        return x0[rows].to(device), None
    if data.classes is None:
        raise ValueError(f"data {data.name!r} has no classes to tell the network; pass --classes none")
    return x0[rows].to(device), data.classes[rows].to(device)


def _data(options: argparse.Namespace, config: Mapping[str, Any] | None) -> tuple[Dataset, str]:
    """The data, and what they are to the network."""
    if options.data is not None:
        return names.data(options.data), "asked for"
    if config is None:
        raise ValueError(f"{options.folder} does not say what it was trained on; pass --data")
    return unseen(config, options.seed, max(options.number, 2))


def _flow(
    options: argparse.Namespace,
    solver: Any,
    process: Process,
    grid: Callable[..., Any],
    shape: tuple[int, ...],
    prior: Any = None,
) -> Method:
    """By the solver, which is the name of an adaptive one or takes options.steps on the grid of that kind."""
    exact = options.divergence == "exact" or (options.divergence == "auto" and math.prod(shape) <= EXACT)
    divergence: Any = "exact" if exact else Hutchinson(options.probes, seed=options.seed)
    how: dict[str, Any] = {"solver": solver, "prior": prior}
    if isinstance(solver, str):
        how |= {"rtol": options.rtol, "atol": options.atol}
    else:
        how["grid"] = grid(process, 40 if options.steps is None else options.steps)

    def flow(field: Field, x0: torch.Tensor, first: int) -> Likelihood:
        try:
            return log_likelihood(field, x0, divergence, first=first, **how)
        except RuntimeError as error:  # an adaptive run that gave up
            raise ValueError(f"the flow of examples {first} to {first + len(x0) - 1}: {error}") from error

    return flow


def _bound(options: argparse.Namespace) -> Method:
    def bound(field: Field, x0: torch.Tensor, first: int) -> Likelihood:
        # the times are common to a batch, so that each batch has a seed of its own
        seed = (options.seed + first) % 2**64
        return elbo(field, x0, samples=options.draws, seed=seed, first=first, reconstruct=options.reconstruct)

    return bound
