"""Handwritten digits: a class-conditional U-Net, trained and sampled on a CPU, judged by what never saw it.

    python examples/digits.py                         # writes docs/results/digits; the trained network is in out/digits
    python examples/digits.py --quick --out out/x --run out/x/run    # the same in seconds, with a network hardly trained

A third of the digits is held out. The network is trained on the others; a classifier is trained on the third and says
whether the samples are the digits that were asked for. Distances between samples and the third stand beside those of
real digits, and bits per dimension of the third beside those of simpler models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import digits_likelihood as likelihood
import digits_pictures as pictures
import digits_report as report
import torch
from digits_judges import Judges
from digits_settings import FULL, METHODS, QUICK, Method, Settings

import halfbridge as hb
from halfbridge.training import ScoreFit, TrainingState, data, fit_score, log, objectives, recipe, sample_rows
from halfbridge.training.noise import StepNoise

CLASSES = 10
CHUNK = 125
"""Digits at once, in sampling and likelihoods: a whole number of chunks in 1000."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """The two parts of the data, as training and likelihoods see them: level k spread over its bin of width 2/17."""

    train: data.Dataset
    held_out: data.Dataset
    seed: int

    @classmethod
    def load(cls, settings: Settings, seed: int) -> Digits:
        train, held_out = (
            data.load("digits", holdout=settings.holdout, split=split, seed=seed) for split in ("train", "test")
        )
        return cls(train, held_out, seed)

    def examples(self, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training digits and classes, each `copies` times with noise of its own."""
        images = torch.cat([self.train.dequantised(self.seed + 1 + k) for k in range(copies)])
        return images, self.classes(self.train).repeat(copies)

    def fresh(self, part: data.Dataset) -> torch.Tensor:
        """A part with noise that no training example has, nor the other part."""
        return part.dequantised(self.seed + (1_000_000 if part is self.held_out else 2_000_000))

    def of_each_class(self, count: int) -> torch.Tensor:
        """The first `count` held-out digits of each class, (10 count, 1, 8, 8): a row of classes after another."""
        classes = self.classes(self.held_out)
        rows = torch.stack([torch.nonzero(classes == k)[:count, 0] for k in range(CLASSES)], dim=1)
        return self.held_out.examples[rows.flatten()]

    @staticmethod
    def classes(part: data.Dataset) -> torch.Tensor:
        assert part.classes is not None
        return part.classes


class HeldOutLoss:
    """Called after each step: now and then the averaged network's loss on all held-out digits, with the same noise."""

    def __init__(
        self, objective: objectives.Objective, x: torch.Tensor, classes: torch.Tensor, every: int, path: Path
    ) -> None:
        self.objective, self.x, self.classes, self.every, self.path = objective, x, classes, every, path

    def __call__(self, state: TrainingState[Any]) -> None:
        if state.step % self.every:
            return
        with torch.no_grad():
            noise = StepNoise(0, 0, len(self.x), self.x)
            loss = self.objective(lambda x, label: state.average(x, label, self.classes), self.x, noise).mean()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{state.step},{float(loss)!r}\n")

    def read(self) -> list[tuple[int, float]]:
        """(step, loss); a resumed run wrote some steps again, to the same value."""
        lines = self.path.read_text(encoding="utf-8").split() if self.path.exists() else []
        return sorted({int(step): float(loss) for step, loss in (line.split(",") for line in lines)}.items())


def train(
    digits: Digits, s: Settings, seed: int, run: Path
) -> tuple[ScoreFit[Any], objectives.Denoising, dict[str, Any]]:
    """The trained network, its objective, and how training went. A run that is there already is gone on from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = hb.nets.UNet(digits.train.shape, width=s.width, multipliers=s.multipliers, blocks=s.blocks,
                           dropout=s.dropout, classes=CLASSES)  # fmt: skip
    objective = objectives.Denoising(hb.VP(), predicts=s.predicts, weighting=s.weighting, times=s.times)
    x, classes = digits.examples(s.copies)
    folder = run / "training"
    held_out = HeldOutLoss(
        objective, digits.fresh(digits.held_out), digits.classes(digits.held_out), s.check_every, run / "held_out.csv"
    )
    run.mkdir(parents=True, exist_ok=True)
    fit = fit_score(net, x, objective.process, objective=objective, classes=classes, steps=s.steps, batch_size=s.batch_size,
                    lr=s.lr, warmup=s.warmup, schedule="cosine", ema_decay=s.ema_decay, class_dropout=s.class_dropout, seed=seed,
                    save_every=500, log_every=30,
                    out=folder, resume="auto", progress=sys.stderr.isatty(), callback=held_out)  # fmt: skip
    rows = log.read(folder / "log.csv")
    told = {
        "parameters": net.parameter_count,
        "examples": len(digits.train),
        "passes": s.steps * s.batch_size / len(digits.train),
        "seconds": rows[-1].seconds,
        "loss": [[row.step, row.smoothed] for row in rows],
        "held_out_loss": held_out.read(),
    }
    return fit, objective, told


def sample(
    fit: ScoreFit[Any],
    objective: objectives.Denoising,
    method: Method,
    budget: int,
    classes: torch.Tensor,
    seed: int,
    guidance: float = 0.0,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A digit of each of `classes` (-1: of any), and what it took."""
    grid = method.times(objective.process, budget)
    started = time.perf_counter()
    x = sample_rows(
        lambda start, stop: objective.field(fit.net, classes=classes[start:stop], guidance=guidance),
        method.solver,
        grid=grid,
        n=len(classes),
        shape=(1, 8, 8),
        seed=seed,
        chunk=CHUNK,
    )
    seconds = time.perf_counter() - started
    nfe = hb.plan(method.solver, objective.process, grid, objective.predicts).nfe
    told = {"solver": method.name, "budget": budget, "steps": len(grid) - 1, "evaluations": nfe, "guidance": guidance}
    return x, told | {"seconds": seconds}


def chain(
    fit: ScoreFit[Any], objective: objectives.Denoising, budget: int, classes: torch.Tensor, seed: int
) -> pictures.Chain:
    """States of an ancestral chain and the digits that the network sees in them, at eight of its times."""
    method = METHODS[0]
    grid = method.times(objective.process, budget)
    field = objective.field(fit.net, classes=classes)
    start = objective.process.prior_std * hb.kernels.normal((len(classes), 1, 8, 8), seed)
    shown = [float(grid[round(k * (len(grid) - 1) / 7)]) for k in range(8)]
    with torch.no_grad():
        found = hb.solve(field, method.solver, start, grid=grid, seed=seed, save=shown)
        seen = torch.stack([field.data(t, x) for t, x in zip(shown, found.trajectory, strict=True)])
    return pictures.Chain(shown, found.trajectory, seen)


def run(
    out: Path, folder: Path, settings: Settings = FULL, seed: int = 0, echo: Callable[[str], Any] = print
) -> dict[str, Any]:
    """The whole experiment: pictures, results.json and README.md in `out`, training in `folder`. Returns the results."""
    s, clock = settings, Clock()
    if s.samples % CLASSES or s.samples < 6 * CLASSES:
        raise ValueError(
            f"samples = {s.samples} must be a multiple of {CLASSES}, at least 60: six of each class are shown"
        )
    out.mkdir(parents=True, exist_ok=True)
    digits = Digits.load(s, seed)
    judges = Judges(digits, s, seed)
    real = judges.real()
    echo(f"classifier: {real['accuracy']:.1%} of {real['digits']} real digits it has not seen")
    clock.lap("the judges")

    fit, objective, training = train(digits, s, seed, folder)
    echo(f"training: {training['parameters']} parameters, {s.steps} steps, {training['seconds']:.0f} s")
    clock.lap("training", training["seconds"])

    def judged(method: Method, budget: int, classes: torch.Tensor, guidance: float = 0.0) -> torch.Tensor:
        x, told = sample(fit, objective, method, budget, classes, seed, guidance)
        rows.append(told | judges.score(x, classes))
        echo(report.line(rows[-1]))
        return x

    asked, none = torch.arange(s.samples) % CLASSES, torch.full((s.unconditional,), -1)
    largest, rows = max(s.budgets), list[dict[str, Any]]()
    found = {(m.name, budget): judged(m, budget, asked) for m in METHODS for budget in s.budgets}
    guided = judged(METHODS[-1], largest, asked, guidance=1.0)
    for method in METHODS:
        judged(method, largest, none)
    clock.lap("sampling and judging")

    bits = likelihood.all_bits(fit.net, objective, digits, s, seed, echo)
    clock.lap("likelihoods")

    pictures.samples(found, [m.name for m in METHODS], s.budgets, digits.of_each_class(1), out / "samples.png")
    pictures.classes(
        [digits.of_each_class(6), found[METHODS[-1].name, largest], guided],
        ["real, held out", "guidance 0", "guidance 1"],
        out / "classes.png",
    )
    pictures.path(chain(fit, objective, largest, asked[:CLASSES], seed), out / "path.png")
    pictures.loss(training, out / "loss.png")
    pictures.scores(rows[: len(found)], real, out / "scores.png")
    clock.lap("pictures")

    told = {
        "settings": dataclasses.asdict(s),
        "seed": seed,
        "versions": recipe.versions(),
        "threads": torch.get_num_threads(),
        "seconds": clock.laps,
        "training": training,
        "real": real,
        "runs": rows,
        "bits": bits,
    }
    results: dict[str, Any] = json.loads(json.dumps(told))  # tuples are lists from here on, as they are read again
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(report.render(results), encoding="utf-8")
    echo(f"{sum(clock.laps.values()):.0f} s in all; {out / 'README.md'}")
    return results


class Clock:
    """Seconds of each part of the run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, seconds: float | None = None) -> None:
        """The time since the lap before was `name`'s, or `seconds`, which a run that was resumed knows better."""
        now = time.perf_counter()
        self.laps[name] = now - self._last if seconds is None else seconds
        self._last = now


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/digits"), help="folder of pictures and tables")
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("out/digits"),
        help="folder of the training, which is gone on from if it is there",
    )
    parser.add_argument("--quick", action="store_true", help="a network that is hardly trained, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    run(asked.out, asked.run, QUICK if asked.quick else FULL, asked.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
