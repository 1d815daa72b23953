"""Diffusion Schrödinger bridges of handwritten digits: to a Gaussian, from one digit to another, and in few steps.

    python examples/digits_bridge.py                         # writes docs/results/digits_bridge, in minutes on one thread
    python examples/digits_bridge.py --quick --out out/x     # the same in seconds, with networks hardly trained

A third of the digits is held out, and judges what the bridges make of the others, as in examples/digits.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bridged_digits import few_steps, hundred, pictures, report, translation
from bridged_digits.judged import Judged, network, pair_network
from bridged_digits.settings import FULL, QUICK, Settings

from halfbridge.training import recipe
from halfbridge.training.bridge.bridge_plots import plot_monitors


def run(out: Path, settings: Settings = FULL, seed: int = 0, echo: Callable[[str], Any] = print) -> dict[str, Any]:
    """The three experiments: pictures, results.json and README.md in `out`. Returns the results."""
    s, clock = settings, Clock()
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        judged = Judged(s, seed)
        clock.lap("the judges")
        told = {
            "hundred": _hundred(s, judged, seed, out, echo, clock),
            "translation": _translation(s, judged, seed, out, echo, clock),
            "few_steps": _few_steps(s, judged, seed, out, echo, clock),
            "parameters": [network(s).parameter_count, pair_network(s).parameter_count],
        }
    told = {
        "settings": dataclasses.asdict(s),
        "seed": seed,
        "digits": [len(judged.digits.train), len(judged.digits.held_out)],
        "versions": recipe.versions(),
        "threads": torch.get_num_threads(),
        "cpu_seconds": clock.laps,
        **told,
    }
    results: dict[str, Any] = json.loads(json.dumps(told))  # tuples are lists from here on, as they are read again
    (out / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "README.md").write_text(report.render(results), encoding="utf-8")
    echo(f"{sum(clock.laps.values()):.0f} s of CPU; {out / 'README.md'}")
    return results


def _hundred(
    s: Settings, judged: Judged, seed: int, out: Path, echo: Callable[[str], Any], clock: Clock
) -> list[dict[str, Any]]:
    told, blocks, names = [], [], []
    for k, deviation in enumerate((s.wide, s.narrow)):
        echo(f"{s.per_class} of each digit to a Gaussian, steps of deviation {deviation:.3f}")
        with tempfile.TemporaryDirectory() as folder:
            found = hundred.join(s, deviation, seed, Path(folder) / "run")
        told.append(hundred.measured(s, judged, deviation, found, seed, echo))
        blocks.append(found.generated(12, seed + 2))
        names.append(f"steps of deviation {deviation:.3f}")
        if k == 0:
            shown = [round((k + 0.5) * len(found.centred) / 2) for k in range(2)]
            pictures.noising(found.noising(shown, seed + 3), out / "hundred_noising.png")
            pictures.generating(found.generating(12, seed + 2), out / "hundred_generating.png")
            fit = found.fits[-1]
            plot_monitors(fit.monitors, fit.losses, out / "hundred_monitors.png", fit.floors)
            real = (found.centred + found.mean)[:: max(1, len(found.centred) // 12)]
    pictures.generated(real, blocks, names, out / "hundred_generated.png")
    clock.lap("a hundred digits")
    return told


def _translation(
    s: Settings, judged: Judged, seed: int, out: Path, echo: Callable[[str], Any], clock: Clock
) -> dict[str, Any]:
    echo(f"{s.source} to {s.target} and back")
    pairs = {name: translation.translate(s, judged, name.lower(), seed, echo) for name in ("DSB", "DSBM")}
    told = translation.measured(s, judged, pairs, seed + 1)
    arrows = [f"{s.source} to {s.target}", f"{s.target} to {s.source}"]
    shown = {name: pair.shown(12, seed + 1) for name, pair in pairs.items()}
    pictures.translations(shown, arrows, out / "translations.png")
    pictures.ways(shown["DSB"], arrows, 8, out / "translating.png")
    clock.lap("translation")
    return told


def _few_steps(
    s: Settings, judged: Judged, seed: int, out: Path, echo: Callable[[str], Any], clock: Clock
) -> dict[str, Any]:
    echo("DSB and SGM in few steps")
    models = list(few_steps.models(s, judged, seed, echo))
    told = few_steps.measured(s, judged, models, seed)
    images = {(m.name, m.budget): m.sample(10, seed) for m in models}
    pictures.few_samples(judged.digits.of_each_class(1), images, s.budgets, out / "few_steps.png")
    pictures.few_scores(told, out / "few_steps_scores.png")
    clock.lap("few steps")
    return told


class Clock:
    """Seconds of the processor for each part of the run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        """What was spent since the lap before was `name`'s."""
        now = time.process_time()
        self.laps[name], self._last = now - self._last, now


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/digits_bridge"), help="folder of pictures and tables"
    )
    parser.add_argument("--quick", action="store_true", help="networks that are hardly trained, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    run(asked.out, QUICK if asked.quick else FULL, asked.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
