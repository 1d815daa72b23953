"""`halfbridge demo`: every core solver on 8x8 digits, at a few budgets of evaluations, against exact answers.

Two fields: the exact one of the digits' Gaussian kernel mixture, and a small network trained on the spot. A solver of
the probability flow is judged by its distance from the exact flow of the same start; a stochastic one by how far the
law of its samples is from the exact law. Writes tables, pictures and every measured number to one folder.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

from halfbridge.demo.methods import METHODS
from halfbridge.demo.settings import FULL, QUICK, Settings
from halfbridge.demo.table import render, write_csv
from halfbridge.demo.targets import exact_target, network_target
from halfbridge.demo.threads import one_thread
from halfbridge.demo.trial import Trial, measure

__all__ = ["FULL", "QUICK", "Settings", "Trial", "run"]


def run(
    out: str | Path = "out/demo", *, settings: Settings = FULL, seed: int = 0, echo: Callable[[str], None] = print
) -> list[Trial]:
    """Run the demo and write table.md, table.csv, samples.png, work_precision.png and trajectories.png to `out`.

    Returns the trials, one for each field. Raises ImportError, naming the extra, without matplotlib or scikit-learn.
    """
    missing = [name for name in ("matplotlib", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the demo needs {' and '.join(missing)}: pip install 'halfbridge[demo]'")
    from halfbridge.demo import pictures, trajectories

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()

    def say(text: str) -> None:
        echo(f"[{time.perf_counter() - begin:5.1f} s] {text}")

    exact = exact_target(settings, seed)
    say(f"{len(METHODS)} solvers on {exact.name}")
    trials = [measure(exact, settings, seed)]
    with one_thread():
        say(f"training a network for {settings.training_steps} steps")
        network = network_target(settings, seed)
        say(f"{len(METHODS)} solvers on {network.name}")
        trials.append(measure(network, settings, seed))
    say("pictures")
    report = render(trials, settings)
    (folder / "table.md").write_text(report + "\n", encoding="utf-8")
    write_csv(trials, folder / "table.csv")
    pictures.samples(trials, settings, folder / "samples.png")
    pictures.work_precision(trials, folder / "work_precision.png")
    trajectories.draw(folder / "trajectories.png", seed)
    echo("\n" + report + "\n")
    say(f"wrote {', '.join(sorted(p.name for p in folder.iterdir()))} in {folder}")
    return trials
