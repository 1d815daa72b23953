"""`halfbridge translate`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from halfbridge import bridge_names, config_file, listings, sample_files
from halfbridge.commands.bridge_output import carry, target
from halfbridge.commands.bridge_route import add_route, check_solver, find_route
from halfbridge.commands.bridge_run import introduce, load
from halfbridge.commands.machine import add_showing, device_of, quietly, use_threads
from halfbridge.commands.training_run import need
from halfbridge.parser import Commands, check_range, count, number, path, whole
from halfbridge.solvers import names
from halfbridge.training.workers import current

__all__ = ["add"]

EXAMPLE = f"""\
examples:
  halfbridge translate runs/3-8 --input threes.npz --to end --out eights.npz
  halfbridge translate runs/3-8 --input 'digits(classes=[8], n=32)' --to start --times 0.75,0.5,0.25 --out paths.png
  halfbridge translate runs/moons --input points.npy --to end --solver heun --steps 30 --out flow.npz
  accelerate launch --multi_gpu --num_processes 2 -m halfbridge translate runs/3-8 --input photos/ --to end --out out.npz

A row of --input is an example as training takes them: of uint8 images the pixels are scaled to [-1, 1], floats are taken as
they are. Its path depends on --seed, on its place and on --batch only. .npz and .safetensors hold `samples`, the `origins`
that they came from and, with --times, `times` and the `trajectory` (times, rows, ...). A .png of images has the origins above.
--solver chain is the bridge's own chain; em and ancestral solve its SDE, deterministic ones its probability flow, 'ddim(eta=0.5)'
what is between, in any number of steps to time 0 or T. Grids are of the bridge, whose law at its end is taken to have variance 1:
{listings.solvers()}
{listings.grids()}"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "translate",
        help="carry your data along a bridge, to its other end",
        usage="%(prog)s RUN --input NAME|PATH --to END --out FILE [options]",
        description="Carry data of yours along a trained bridge to its other end: unpaired translation, either way.",
        epilog=EXAMPLE,
    )
    config_file.offer(parser)
    parser.add_argument("folder", type=path, metavar="RUN", help="the folder of a run of train bridge")
    parser.add_argument(
        "--input",
        metavar="NAME|PATH",
        help=".npz or .npy file, folder of images, or data by name, as in train (required, no default)",
    )
    parser.add_argument("--to", choices=["start", "end"], help="which end to go to (required, no default)")
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help=".png: images and what they came from, or a scatter beside the data; .npz, .npy, .safetensors: the numbers; a "
        "file that is there is replaced (required, no default)",
    )
    parser.add_argument("-n", "--number", type=count, metavar="N", help="rows, the first of them (default: all)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="of the noise")
    parser.add_argument("--solver", default="chain", metavar="NAME", help="e.g. em, heun, dpm3")
    parser.add_argument("--steps", type=count, metavar="N", help="steps of a solver (default: 20)")
    parser.add_argument("--grid", metavar="NAME", help="where the steps of a solver are (default: uniform)")
    parser.add_argument(
        "--t-end", type=number, metavar="T", help="time where a solver stops on its way to the start (default: 0)"
    )
    add_route(parser)
    parser.add_argument(
        "--batch", type=count, default=256, metavar="N", help="rows at a time; another number may round otherwise"
    )
    add_showing(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    check_solver(options.solver)
    if options.grid is not None:
        names.grid(options.grid)
    check_range(options.range)
    if config_file.write(options):
        return 0
    need(options, "input", "to", "out")
    sample_files.check(Path(options.out))
    workers = current()
    say = quietly(options.quiet or not workers.first)
    use_threads(options.threads)
    run = load(options.folder, device_of(options.device, workers))
    route = find_route(options, run.bridge, options.to)
    rows = bridge_names.rows(options.input)
    if tuple(rows.shape[1:]) != run.shape:
        raise ValueError(
            f"--input {options.input}: its rows are of {tuple(rows.shape[1:])}, and the bridge joins laws on {run.shape}"
        )
    n = len(rows) if options.number is None else options.number
    if n > len(rows):
        raise ValueError(f"--number {n}: --input {options.input} has {len(rows)} rows; pass as many at most")
    rows = rows[:n].to(run.dtype)
    introduce(say, run)

    def begin(start: int, stop: int) -> torch.Tensor:
        return rows[start:stop].to(run.device)

    carry(options, run, route, begin, n, workers, say, data=target(run, options, n, say), paths=True)
    return 0
