"""Half-moons by DDPM and by NCSN with annealed Langevin: trained, sampled, and measured against the exact law.

    python examples/half_moons.py                       # all of docs/results/half_moons, in some minutes on one core
    python examples/half_moons.py --quick --out out/x   # the same in seconds, with networks that are hardly trained

Each model is sampled twice, with its network and with the exact score of the half-moons in the network's place: what the
second misses is the sampler's doing, the rest is the network's.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from moons import measures, pictures, report
from moons.models import FULL, QUICK, Settings, models, sample, train

import halfbridge as hb
from halfbridge.training import data


def run(
    out: Path, settings: Settings = FULL, seed: int = 0, runs: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write results.json, README.md and the pictures to `out`; the run folders of training to `runs`, which are gone on from.

    seed     of the training data, the networks and their training, and the samples; fresh data have seed + 1000 and on
    Returns what results.json holds.
    """
    s, begin, cpu = settings, time.perf_counter(), time.process_time()
    examples = data.load("moons", n=s.examples, seed=seed)
    references = [measures.fresh(s.samples, seed + 1000 + k) for k in range(s.references)]

    def timed(what: str) -> None:
        say(f"[{time.perf_counter() - begin:6.1f} s] {what}")

    def row(x: torch.Tensor) -> dict[str, float]:
        return measures.measure(x, references, s.projections)._asdict()

    timed(f"{s.references} fresh data samples of {s.samples} against each other")
    rows: dict[str, dict[str, float]] = {"fresh data": measures.measure_data(references, s.projections)._asdict()}
    rows["training data"] = row(examples.examples)
    trained: dict[str, Any] = {}
    thickness: dict[str, float] = {}
    shown, ways, curves = [("fresh data", references[0], rows["fresh data"])], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for model in models(s, seed):
            timed(f"{model.name}: {s.steps} steps of training, {s.epochs} epochs")
            folder = (Path(scratch) if runs is None else runs) / model.name.lower()
            fit = train(model, examples, s, seed, folder)
            errors = measures.score_errors(fit.field, model.grid[:-1], seed + 2000)
            trained[model.name] = {
                "steps": fit.step,
                "parameters": fit.net.parameter_count,
                "seconds": _last_line(folder / "log.csv")["seconds"],
                "loss": float(np.mean([e.loss for e in errors])),
                "least_loss": float(np.mean([e.least for e in errors])),
                "score_error": dict(zip(("nu", "excess"), pictures.binned(errors), strict=True)),
            }
            exact = measures.law().field(model.objective.process)
            cases = {
                model.name: (fit.field, model.solver),
                **{f"{model.name}, {name}": (fit.field, solver) for name, solver in model.variants.items()},
                f"{model.name}, exact score": (exact, model.solver),
            }
            for name, (field, solver) in cases.items():
                timed(f"{name}: {s.samples} samples")
                clock = time.perf_counter()
                solution = sample(field, solver, model, s.samples, seed)
                seconds = time.perf_counter() - clock
                rows[name] = {**row(solution.x), "seconds": seconds, "evaluations": solution.nfe}
                if field is fit.field:
                    thickness[name] = measures.thickness(solver, model.objective.process, model.grid)
                if name == model.name:
                    shown.append((name, solution.x, rows[name]))
                    ways.append((name, solution.trajectory, list(model.shown.values())))
            curves.append(pictures.Trained(model.name, fit.losses, s.examples / s.batch_size, errors))
    timed("pictures")
    results = {
        "settings": {**dataclasses.asdict(s), "steps": s.steps},
        "seed": seed,
        "versions": {"halfbridge": hb.__version__, "torch": torch.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "training": trained,
        "rows": rows,
        "thickness": thickness,
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    pictures.samples(shown, out / "samples.png")
    pictures.paths(ways, out / "paths.png")
    pictures.training(curves, out / "training.png")
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(report.render(results), encoding="utf-8")
    say("\n" + report.table(results))
    timed(f"wrote {', '.join(sorted(p.name for p in out.iterdir()))} in {out}")
    return results


def _last_line(log: Path) -> dict[str, float]:
    with log.open(encoding="utf-8", newline="") as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Half-moons by DDPM and by NCSN with annealed Langevin sampling.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/half_moons"), help="default: %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="small networks, hardly trained, few samples: a test of the script"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (default: %(default)s; the numbers' last digits follow it)"
    )
    parser.add_argument(
        "--runs", type=Path, help="keep the run folders of training here, and go on with those that are there"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    run(options.out, QUICK if options.quick else FULL, options.seed, options.runs)


if __name__ == "__main__":
    main()
