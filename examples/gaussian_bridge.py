"""Schrödinger bridges against what is known exactly: between Gaussians, from an Ornstein-Uhlenbeck process, between mixtures.

    python examples/gaussian_bridge.py                       # all of docs/results/gaussian_bridge, in minutes on one core
    python examples/gaussian_bridge.py --quick --out out/x   # the same in seconds, with networks that are hardly trained

The proof by networks, in 5 dimensions: means of the coupling within 0.02 and its covariance within 3 % of the closed form, both
ways. The budget (`exact_bridges.settings.FULL`): 9 iterations of 2 x 1000 steps in batches of 2048, a chain of 4 steps, learning
rate 0.002, one to two minutes of processor time a seed. The page says for each seed what came of it.
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
from exact_bridges import affine, mixtures, pictures, relaxation, report, trained
from exact_bridges.settings import FULL, QUICK, Settings

import halfbridge as hb


def run(out: Path, settings: Settings = FULL, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write results.json, README.md and the pictures to `out`; return what results.json holds. All follows from `seed`."""
    s, begin, cpu = settings, time.perf_counter(), time.process_time()

    def timed(what: str) -> None:
        say(f"[{time.perf_counter() - begin:6.1f} s] {what}")

    out.mkdir(parents=True, exist_ok=True)
    timed("affine regressions against the recursions and the closed form")
    exact = [affine.exactness(d, s.exact_chain, s.exact_iterations) for d in s.exact_dims]

    timed("what each kind of kernel does to the coupling")
    middle = s.drift_chains[len(s.drift_chains) // 2 - 1]
    progress = {kind: affine.progress(kind, s.dim, middle, s.drift_iterations) for kind in affine.KERNELS}
    over = {n: affine.departures(s.dim, n, s.drift_iterations) for n in s.drift_chains}
    away = {kind: {n: errors[kind] for n, errors in over.items()} for kind in affine.KERNELS}
    moves = {kind: {n: errors[1] for n, errors in each.items()} for kind, each in away.items()}
    pictures.departures(progress, middle, away["fixed, mean matching"], moves, out / "departures.png")

    timed("the Ornstein-Uhlenbeck process and its bridge")
    ways = relaxation.ways(s.ou_chain, s.ou_paths, seed)
    pictures.relaxation(ways, out / "ou.png")

    timed("networks between mixtures on the line")
    mixed = mixtures.compare(s.mixtures, s.mixture_pairs, seed)
    pictures.coupling(mixed, out / "coupling.png")
    pictures.drifts(mixed, out / "drifts.png")

    networks = []
    for k in range(s.seeds):
        timed(f"networks between Gaussians in {s.dim} dimensions, seed {seed + k}")
        made, seconds, rows = trained.between_gaussians(s.dim, s.networks, s.pairs, seed + k)
        networks.append({"seed": seed + k, "cpu_seconds": seconds, "stopped": made.stopped, "kl": made.monitors[-1].kl,
                         **{row.to: {"mean": row.mean, "cov": row.cov} for row in rows}})  # fmt: skip
        worst = [f"mean {row.mean:.4f} and covariance {100 * row.cov:.2f} % off" for row in rows]
        timed(f"to the end {worst[0]}, to the start {worst[1]}")
        if k == 0:
            pictures.training(made.monitors, made.losses, made.floors, out / "training.png")
    results: dict[str, Any] = {
        "settings": dataclasses.asdict(s),
        "seed": seed,
        "versions": {"halfbridge": hb.__version__, "torch": torch.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "networks": networks,
        "floor": trained.sampling_error(s.dim, s.networks, s.pairs),
        "truncated": affine.truncated(s.dim, s.networks.iterations),
        "exact": [row._asdict() for row in exact],
        "progress": {"steps": middle, **progress},
        "departures": {kind: {str(n): errors for n, errors in each.items()} for kind, each in away.items()},
        "slopes": {kind: affine.slope(list(moves[kind]), list(moves[kind].values())) for kind in affine.KERNELS
                   if kind != "matched, full"},
        "ou": [{"name": w.name, "T": float(w.times[-1]), "mean": [float(w.mean[0]), float(w.mean[-1])],
                "std": [float(w.std[0]), float(w.std[-1])], "mean_z": float(np.abs(w.mean_z).max()),
                "std_z": float(np.abs(w.std_z).max())} for w in ways],
        "first_half": [float(ways[-1].first_half[k][0]) for k in (0, 1)] if ways[-1].first_half is not None else None,
        "mixtures": {
            "cpu_seconds": mixed.seconds, "variation": {to: mixed.variation(to) for to in ("end", "start")},
            "floor": mixed.floor, "mean_error": mixed.mean_error, "mean_size": mixed.mean_size,
            "sinkhorn": {"iterations": mixed.sinkhorn[0], "error": mixed.sinkhorn[1]},
            "drifts": [{"way": d.way, "t": d.t, "error": d.error, "size": d.size} for d in mixed.drifts],
        },
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }  # fmt: skip
    text = json.dumps(results, indent=1)
    results = json.loads(text)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "README.md").write_text(report.render(results), encoding="utf-8")
    say("\n" + report.networks_table(results))
    timed(f"wrote {', '.join(sorted(p.name for p in out.iterdir()))} in {out}")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Schrödinger bridges against closed forms and Sinkhorn's algorithm.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gaussian_bridge"), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small networks, hardly trained: a test of the script")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="how many networks are trained between Gaussians, a seed each")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (default: %(default)s; the numbers' last digits follow it)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = QUICK if options.quick else FULL
    run(
        options.out,
        settings if options.seeds is None else dataclasses.replace(settings, seeds=options.seeds),
        options.seed,
    )


if __name__ == "__main__":
    main()
