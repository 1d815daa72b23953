"""Diffusion Schrödinger bridges in the plane: moons to 8 Gaussians, a checkerboard and a swiss roll to a Gaussian.

    python examples/plane_bridges.py                       # all of docs/results/plane_bridges, in minutes on one core
    python examples/plane_bridges.py --quick --out out/x   # the same in seconds, with networks that are hardly trained

Bridges are trained by DSB, one by DSBM too, and their couplings are held against Sinkhorn's. Then samples of the checkerboard in
few steps, by DSB and by score-based models of the same network and as many steps of training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plane import measures, models, pictures, report
from plane.laws import CASES, CHECKERBOARD, MOONS
from plane.settings import FULL, QUICK, Settings

import halfbridge as hb


def run(out: Path, settings: Settings = FULL, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write results.json, README.md and the pictures to `out`.

    seed     of the training data, the networks and their training; points that are measured have seeds from seed + 10 000 on
    Returns what results.json holds.
    """
    s, begin, cpu = settings, time.perf_counter(), time.process_time()

    def timed(what: str) -> None:
        say(f"[{time.perf_counter() - begin:6.1f} s, {time.process_time() - cpu:6.1f} of processor] {what}")

    trained: dict[str, models.Trained] = {}
    for case in CASES:
        timed(f"{case.title}: DSB, {s.steps} steps, {s.iterations} iterations")
        trained[case.title] = models.bridge(case, s, seed, s.steps)
    timed(f"{MOONS.title}: DSBM")
    trained[f"{MOONS.title}, DSBM"] = models.bridge(MOONS, s, seed, s.steps, "dsbm")
    bridges = {name: measures.described(one, s, seed) for name, one in trained.items()}

    timed("couplings")
    solved = measures.static(MOONS, s, seed, models.chain(s, s.steps).process)
    couplings: dict[str, Any] = {"static": solved}
    for name, method in ((MOONS.title, "DSB"), (f"{MOONS.title}, DSBM", "DSBM")):
        ways = measures.learned(trained[name].fit, MOONS, s, seed, solved["table"])
        couplings |= {f"{method}, {way}": values for way, values in ways.items()}

    timed(f"score-based models, {s.training} steps of training each")
    long = hb.VP()
    scores = {
        "short": models.score(CHECKERBOARD, s, seed, models.chain(s, s.steps).process),
        "long": models.score(CHECKERBOARD, s, seed, long),
    }
    few: dict[str, dict[str, dict[str, float]]] = {}
    samplers: dict[int, list[models.Row]] = {}
    for n in s.few:
        timed(f"{CHECKERBOARD.title} in {n} steps: DSB against score-based models")
        same = n == s.steps
        fit = (trained[CHECKERBOARD.title] if same else models.bridge(CHECKERBOARD, s, seed, n)).fit
        samplers[n] = models.compared(CHECKERBOARD, s, seed, n, fit, scores)
        few[str(n)] = {
            row.name: measures.against_data(row, CHECKERBOARD, s, seed) | {"evaluations": row.evaluations}
            for row in samplers[n]
        }

    results = {
        "settings": {**dataclasses.asdict(s), "few": list(s.few), "training": s.training},
        "seed": seed,
        "versions": {"halfbridge": hb.__version__, "torch": torch.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "bridges": bridges,
        "couplings": couplings,
        "few": few,
        "floor": measures.floor(CHECKERBOARD, s, seed),
        "wide": models.spread_at_T(CHECKERBOARD, s, seed),
        "long": {"alpha_T": long.alpha(long.T), "sigma_min": long.sigma(long.t_min)},
    }  # fmt: skip
    timed("pictures")
    out.mkdir(parents=True, exist_ok=True)
    for title, one in trained.items():
        ways = pictures.carried(one.fit, one.case, s, seed)
        name = one.case.name if title == one.case.title else f"{one.case.name}_dsbm"
        pictures.translations(title, ways, s, seed, out / f"{name}.png")
    pictures.trajectories([trained[case.title] for case in CASES], s, seed, out / "trajectories.png")
    pictures.monitors(bridges, out / "monitors.png")
    pictures.few_steps(few, results["floor"], out / "few_steps.png")
    pictures.few_samples(samplers, CHECKERBOARD, s, seed, out / "few_samples.png")
    results |= {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(report.render(results), encoding="utf-8")
    say("\n" + report.few_table(results))
    timed(f"wrote {', '.join(sorted(p.name for p in out.iterdir()))} in {out}")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Diffusion Schrödinger bridges between laws in the plane.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/plane_bridges"), help="default: %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="small networks, hardly trained, few samples: a test of the script"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (default: %(default)s; the numbers' last digits follow it)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    run(options.out, QUICK if options.quick else FULL, options.seed)


if __name__ == "__main__":
    main()
