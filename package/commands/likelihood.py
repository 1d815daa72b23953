"""`halfbridge likelihood`."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from halfbridge import config_file, listings, names
from halfbridge.commands.machine import add_machine, device_of, quietly, use_threads
from halfbridge.commands.trained import add_run, dtype_of, introduce, load, shape_of
from halfbridge.parser import Commands, count, number, switch, whole
from halfbridge.solvers import adaptive, grids
from halfbridge.solvers import names as solver_names
from halfbridge.solvers.dequantise import bits_per_dim
from halfbridge.solvers.divergence import Hutchinson
from halfbridge.solvers.elbo import elbo
from halfbridge.solvers.field import Field
from halfbridge.solvers.likelihood import Likelihood, log_likelihood
from halfbridge.training import data as data_sets
from halfbridge.training.data import Dataset
from halfbridge.training.data.loading import POINTS
from halfbridge.training.data.order import pick
from halfbridge.training.saved import Saved
from halfbridge.training.workers import current

__all__ = ["add"]

EXAMPLE = f"""\
examples:
  halfbridge likelihood runs/digits
  halfbridge likelihood runs/digits --method flow --divergence exact -n 64 --json
  halfbridge likelihood runs/moons --data 'moons(n=2000, seed=7)' -n 2000 --solver dopri5 --rtol 1e-6

flow is the log-density of the probability flow's samples at the process's t_min (in the mean over the probes of hutchinson), to
the solver's error: that of an adaptive solver is kept by --rtol and --atol; nothing keeps that of --steps, so compare with
twice as many, or with dopri5. elbo is a lower bound on that of the reverse SDE's samples, of --draws times and noises.
Images are dequantised: numbers are of the pixels' probabilities, and mean something for a network that was trained on
dequantised data (train sgm --dequantise). The error after +- is the standard error of the mean over the examples.
solvers: {", ".join(adaptive.METHODS)}, adaptive, of the extra engines; or, with their arguments and defaults:
{listings.solvers()}"""

EXACT = 16
"""Dimensions up to which the divergence is exact unless told: it costs that many backward passes."""


class Row(NamedTuple):
    """A line of the table: means over the examples, with their standard errors."""

    method: str
    log_prob: float
    log_prob_error: float
    bits_per_dim: float
    bits_per_dim_error: float
    evaluations: int
    """Of the network on an example, the most over the batches."""
    seconds: float


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
    parser.add_argument("--method", default="both", choices=["flow", "elbo", "both"], help="flow, elbo or both")
    parser.add_argument("--solver", default="dpm3", metavar="NAME", help="of the flow")
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
    solver: Any = options.solver if adaptive_one else solver_names.solver(options.solver)
    if config_file.write(options):
        return 0
    if current().count > 1:
        raise ValueError("likelihood runs in one process; start it without accelerate launch")
    use_threads(options.threads)
    device = device_of(options.device, current())
    found = load(options.folder, options.average, device)
    if found.classes and found.no_class is False and options.classes == "none":
        raise ValueError(
            "--classes none: the network was always told the class in training and knows nothing of none; leave it out, or train "
            "with --class-dropout 0.1"
        )
    data, what = _data(options, found)
    rows = pick(len(data), min(options.number, len(data)), options.seed)
    x0, told = _examples(options, found, data, rows, device)

    def field(part: slice) -> Field:
        return found.as_field() if told is None else found.as_field(classes=told[part])

    say = quietly(options.json)
    introduce(say, options.folder, found)
    say(f"data: {len(x0)} of {len(data)} examples of {data.name}, {what}" + (", dequantised" if data.levels else ""))
    if data.levels and not (found.data or {}).get("dequantise"):
        say("note: the network was trained on grey levels, not on dequantised data, whose density this is")
    methods = ["flow", "elbo"] if options.method == "both" else [options.method]
    run = {"flow": _flow(options, solver, found), "elbo": _bound(options)}
    table = [_measure(method, run[method], field, x0, options.batch, data) for method in methods]
    if options.json:
        facts = {"run": options.folder, "step": found.step, "average": found.average, "data": data.name, "part": what}
        found_rows = [{k: None if v != v else v for k, v in row._asdict().items()} for row in table]
        print(json.dumps({**facts, "examples": len(x0), "methods": found_rows}, indent=2))
    else:
        _print(table)
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


def _data(options: argparse.Namespace, found: Saved) -> tuple[Dataset, str]:
    """The data, and what they are to the network."""
    if options.data is not None:
        return names.data(options.data), "asked for"
    if found.data is None:
        raise ValueError(f"{options.folder} does not say what it was trained on; pass --data")
    config = found.data
    if "holdout" in config:
        return data_sets.load(**{**_whole(config), "split": "test"}), "held out of training"
    if config["name_or_path"] in POINTS:
        fresh = {"n": max(options.number, 2), "seed": (config["seed"] + 1 + options.seed) % 2**64}
        return data_sets.load(**{**config, **fresh}), "a fresh sample"
    if config.get("split") != "test":
        try:
            return data_sets.load(**{**_whole(config), "split": "test"}), "the test split"
        except ValueError:  # it comes in one piece
            pass
    return data_sets.load(**config), "the ones it was trained on"


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    """Without the choice of a subset, which was of the training data."""
    return {key: value for key, value in config.items() if key not in ("n", "n_per_class")}


Method = Callable[..., Likelihood]


def _flow(options: argparse.Namespace, solver: Any, found: Saved) -> Method:
    exact = options.divergence == "exact" or (options.divergence == "auto" and math.prod(shape_of(found)) <= EXACT)
    divergence: Any = "exact" if exact else Hutchinson(options.probes, seed=options.seed)
    if isinstance(solver, str):
        how: dict[str, Any] = {"solver": solver, "rtol": options.rtol, "atol": options.atol}
    else:
        steps = 40 if options.steps is None else options.steps
        how = {"solver": solver, "grid": grids.half_log_snr(found.process, steps)}

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


def _measure(
    name: str, method: Method, field: Callable[[slice], Field], x0: torch.Tensor, batch: int, data: Dataset
) -> Row:
    begun, parts = time.perf_counter(), []
    with torch.no_grad():
        for first in range(0, len(x0), batch):
            part = slice(first, min(first + batch, len(x0)))
            parts.append(method(field(part), x0[part], first))
    log_prob = torch.cat([part.log_prob for part in parts]).cpu()
    d = x0[0].numel()
    bits = -log_prob / (d * math.log(2.0))
    if data.levels and data.range:
        bits = bits_per_dim(log_prob, d, levels=data.levels, low=data.range[0], high=data.range[1])
    return Row(
        name,
        log_prob.mean().item(),
        _error(log_prob),
        bits.mean().item(),
        _error(bits),
        max(part.nfe for part in parts),
        time.perf_counter() - begun,
    )


def _error(values: torch.Tensor) -> float:
    """The standard error of the mean; NaN, null in JSON, for one value."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _print(table: list[Row]) -> None:
    print(f"{'':6}{'log p, nats an example':>28}{'bits per dimension':>26}{'evaluations':>13}{'seconds':>9}")
    for row in table:
        nats = f"{row.log_prob:.3f} +- {row.log_prob_error:.3f}"
        bits = f"{row.bits_per_dim:.4f} +- {row.bits_per_dim_error:.4f}"
        print(f"{row.method:6}{nats:>28}{bits:>26}{row.evaluations:>13}{row.seconds:>9.1f}")
