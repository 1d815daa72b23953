"""`halfbridge sample`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from halfbridge import config_file, listings, sample_files
from halfbridge.commands import bridge_run
from halfbridge.commands.bridge_output import carry, target
from halfbridge.commands.bridge_route import CHAIN, add_route, check_solver, find_route
from halfbridge.commands.bridge_run import BridgeRun, is_bridge, refuse
from halfbridge.commands.bridge_run import introduce as introduce_bridge
from halfbridge.commands.machine import add_showing, bar, device_of, quietly, use_threads
from halfbridge.commands.trained import (
    add_run,
    classes_of,
    dtype_of,
    evaluations,
    introduce,
    load,
    make_grid,
    shape_of,
)
from halfbridge.commands.training_run import shows_progress
from halfbridge.parser import Commands, check_range, count, number, path, whole
from halfbridge.solvers import names
from halfbridge.solvers.field import Field
from halfbridge.training import data as data_sets
from halfbridge.training.data.order import pick
from halfbridge.training.sampling import sample_rows
from halfbridge.training.saved import Saved
from halfbridge.training.workers import Workers, current

__all__ = ["add"]

EXAMPLE = f"""\
examples:
  halfbridge sample runs/digits --solver dpm3 --steps 10 -n 64 --out grid.png
  halfbridge sample runs/digits --solver 'Ancestral' --grid uniform --evaluations 50 -n 100 --classes 0-9 --out digits.png
  halfbridge sample runs/moons --solver heun -n 10000 --seed 1 --out samples.npz
  accelerate launch --multi_gpu --num_processes 2 -m halfbridge sample runs/digits -n 10000 --out samples.safetensors
  halfbridge sample runs/3-8 --to end --times 0.25,0.5,0.75 -n 16 --out paths.png

Of a run of train bridge, samples of one end are carried to the other, --to: by its own chain, by em or ancestral along its SDE,
by a deterministic solver along its probability flow, or by 'ddim(eta=0.5)' between. They set out from draws of a normal end; of a
data end, from fresh points where the data are a law's, else from examples that were held out of training, and where none were
from those that it was trained on: the command says which. (For data of yours: halfbridge translate.) Files hold the
`origins` that `samples` came from too and, with --times, `times` and the `trajectory` (times, n, ...).
Sample number i depends on --seed, i and --batch only: several processes of as many threads (--threads) give the bits of one,
and -n 64 --first 64 are the next 64.
names, here with their arguments and defaults; a solver may be module:Class of your own too, and a grid levels,
where an ncsn was trained:
{listings.solvers()}
{listings.grids()}"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "sample",
        help="draw samples of a trained network, to a picture or a file",
        usage="%(prog)s RUN --out FILE [options]",
        description="Draw samples of a trained network with a solver of your choice.",
        epilog=EXAMPLE,
    )
    config_file.offer(parser, ("steps", "evaluations"))
    add_run(parser)
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help=".png: a grid of images, or a scatter beside the data; .npz, .npy, .safetensors: the "
        "numbers; a file that is there is replaced (required, no default)",
    )
    parser.add_argument("-n", "--number", type=count, default=64, metavar="N", help="samples")
    parser.add_argument("--first", type=whole, default=0, metavar="N", help="number of the first sample")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the starts and the noise")
    parser.add_argument(
        "--solver", metavar="NAME", help="e.g. heun, pc, 'DDIM(eta=0.5)' (default: dpm3; of a bridge chain, its own)"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="steps of the solver (default: 10; of a bridge 20)")
    parser.add_argument(
        "--evaluations",
        type=count,
        metavar="N",
        help="in place of --steps: as many steps as N evaluations of the network allow (default: by --steps)",
    )
    parser.add_argument(
        "--grid", metavar="NAME", help="where the steps are (default: half_log_snr; of a bridge uniform)"
    )
    parser.add_argument(
        "--t-end",
        type=number,
        metavar="T",
        help="time to stop at, in the process's units (default: its t_min; of a bridge 0)",
    )
    parser.add_argument(
        "--to",
        choices=["start", "end"],
        help="of a bridge: which end to go to (default: start, or end where the start is a normal law)",
    )
    add_route(parser)
    parser.add_argument(
        "--classes",
        metavar="LIST",
        help="classes in turn, such as 3, 0-9 or 1,4,7; none: no class (default: all that the network knows)",
    )
    parser.add_argument(
        "--guidance",
        type=number,
        default=0.0,
        metavar="W",
        help="(1 + W) times the prediction for the class less W times that "
        "for none; needs a network trained with --class-dropout",
    )
    parser.add_argument(
        "--batch",
        type=count,
        default=256,
        metavar="N",
        help="samples made at a time; another number may round otherwise",
    )
    add_showing(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    check_solver(options.solver)
    if options.grid not in (None, "levels"):
        names.grid(options.grid)
    check_range(options.range)
    if config_file.write(options):
        return 0
    if options.out is None:
        raise ValueError("--out is missing: pass a file such as samples.png or samples.npz")
    out = Path(options.out)
    sample_files.check(out)
    workers = current()
    say = quietly(options.quiet or not workers.first)
    use_threads(options.threads)
    device = device_of(options.device, workers)
    if is_bridge(options.folder):
        return _of_bridge(options, bridge_run.load(options.folder, device), workers, say)
    refuse(options, "no run of train bridge", "to", "times", "last_noise")
    if options.solver == CHAIN:
        raise ValueError(f"--solver chain: {options.folder} is no run of train bridge; pass dpm3, say")
    solver = names.load_solver(options.solver or "dpm3")
    found = load(options.folder, options.average, device)
    grid = make_grid(found, solver, options.grid or "half_log_snr", options.steps, options.evaluations, options.t_end)
    classes = _classes(options, found)
    introduce(say, options.folder, found)

    def field(start: int, stop: int) -> Field:
        if classes is None:
            return found.as_field()
        rows = classes[start - options.first : stop - options.first].to(device)
        return found.as_field(classes=rows, guidance=options.guidance)

    progress = bar(options.number, workers.first and shows_progress(options))
    begun = time.perf_counter()
    samples = sample_rows(
        field,
        solver,
        grid=grid,
        n=options.number,
        shape=shape_of(found),
        seed=options.seed,
        first=options.first,
        chunk=options.batch,
        workers=workers,
        dtype=dtype_of(found),
        device=device,
        progress=progress.update,
    )
    seconds = time.perf_counter() - begun
    progress.close()
    nfe = evaluations(found, solver, grid)
    facts = {
        "run": options.folder,
        "step": found.step,
        "average": found.average,
        "solver": repr(solver),
        "times": [float(t) for t in grid],
        "seed": options.seed,
        "first": options.first,
        "evaluations": nfe,
        "guidance": options.guidance,
    }
    data = _data(found, options, say) if out.suffix == ".png" and samples.ndim != 4 and workers.first else None
    turn = len(set(classes.tolist())) if classes is not None else 0
    picture: dict[str, Any] = {"data": data, "range": options.range, "columns": turn if 1 < turn <= 20 else None}
    workers.once(lambda: sample_files.write(out, samples, classes, facts, **picture))
    twice = ", of two rows each for the guidance" if options.guidance else ""
    say(
        f"{options.number} samples by {solver!r}: {len(grid) - 1} steps, {nfe} evaluations{twice}; {seconds:.2f} s, "
        f"{options.number / seconds:.3g} samples/s"
    )
    say(f"wrote {out}")
    return 0


def _of_bridge(options: argparse.Namespace, run: BridgeRun, workers: Workers, say: Callable[[str], None]) -> int:
    """Samples of one end, carried to the other."""
    refuse(options, "a bridge, whose networks know no classes", "classes", "guidance")
    refuse(options, "a bridge, which keeps its first average", "average")
    refuse(options, "a bridge, whose steps are not of one cost; pass --steps", "evaluations")
    if options.to is None:
        options.to = "end" if run.config["start"]["type"] == "Normal" else "start"
    route = find_route(options, run.bridge, options.to)
    origin = "start" if options.to == "end" else "end"
    law, what = run.law(origin, options.seed)
    introduce_bridge(say, run)
    say(f"from the {origin}: {what}")

    def begin(start: int, stop: int) -> torch.Tensor:
        return law.sample(stop - start, options.seed, start)

    data = target(run, options, options.number, say)
    carry(options, run, route, begin, options.number, workers, say, first=options.first, data=data)
    return 0


def _classes(options: argparse.Namespace, found: Saved) -> torch.Tensor | None:
    """The class of each sample, -1 for none; None for a network without classes."""
    known = found.classes
    if known and found.no_class is False and (options.guidance or options.classes == "none"):
        asked = f"--guidance {options.guidance}" if options.guidance else "--classes none"
        raise ValueError(
            f"{asked}: the network was always told the class in training and knows nothing of none; leave it out, or train with "
            "--class-dropout 0.1"
        )
    if not known and options.classes is None:
        if options.guidance:
            raise ValueError(f"--guidance {options.guidance}: the network was trained without classes; leave it out")
        return None
    wanted = classes_of(f"0-{known - 1}" if options.classes is None else options.classes, known)
    if not wanted:
        if options.guidance:
            raise ValueError(f"--guidance {options.guidance} is towards a class; pass --classes")
        return torch.full((options.number,), -1) if known else None
    rows = torch.arange(options.first, options.first + options.number) % len(wanted)
    return torch.tensor(wanted)[rows]


def _data(found: Saved, options: argparse.Namespace, say: Any) -> torch.Tensor | None:
    """As many of the run's examples, to be drawn beside the samples; None where they cannot be read."""
    if found.data is None:
        return None
    try:
        examples = data_sets.load(**found.data).examples
    except (ValueError, OSError, ImportError) as error:
        say(f"the data are not drawn: {error}")
        return None
    return examples[pick(len(examples), min(len(examples), options.number), options.seed)]
