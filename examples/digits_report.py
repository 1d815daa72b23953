"""The digits experiment in words: README.md from results.json, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["line", "render"]

COMMAND = "OMP_NUM_THREADS={threads} python examples/digits.py --seed {seed}"


def line(row: Mapping[str, Any]) -> str:
    """A run on one line."""
    accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.1%} recognised, "
    kind = "" if row["conditional"] else " without class"
    guidance = f" guidance {row['guidance']:g}" if row["guidance"] else ""
    return (
        f"{row['solver']}{kind}{guidance}, {row['evaluations']} evaluations: {accuracy}energy distance {row['energy']:.4f}, "
        f"sliced W2 {row['sliced_w2']:.4f}, {row['seconds']:.1f} s"
    )


def render(r: Mapping[str, Any]) -> str:
    """The README of a run's results."""
    s, real, training = r["settings"], r["real"], r["training"]
    plain = [row for row in r["runs"] if row["conditional"] and not row["guidance"]]
    parts = [
        "# Digits: a U-Net on a CPU",
        "",
        "```sh",
        COMMAND.format(**r),
        "```",
        "",
        f"trains a class-conditional U-Net of {_thousands(training['parameters'])} parameters on {training['examples']} of "
        f"scikit-learn's handwritten digits, samples it with four solvers, and judges samples and density by the "
        f"{_held_out(r)} digits that were held out. {_times(r)}",
        "",
        "![samples of each solver](samples.png)",
        "",
        "Rows are solvers, blocks are evaluations of the network, columns are the classes 0 to 9 that were asked for. All "
        "solvers start from the same noise.",
        "",
        "## Samples",
        "",
        f"{s['samples']} digits a run, {s['samples'] // 10} of each class. *Recognised*: an SVM trained on the held-out digits "
        f"finds the class asked for (standard error {_accuracy_error(plain):.1%}); of real digits that it has not seen it knows "
        f"{real['accuracy']:.1%}. *Energy distance* (unbiased, so it may be negative) and *sliced W2* are to the held-out "
        f"digits. Two parts of all real digits, drawn at random ({_sizes(real)}), are at {_pm(real['splits']['energy'])} and "
        f"{_pm(real['splits']['sliced_w2'])} (mean and standard deviation of {s['splits']} splits); in **bold** is what is "
        "within two of these deviations.",
        "",
        *_table(plain, real, s["budgets"]),
        "",
        "![scores against evaluations](scores.png)",
        "",
        "A step of Heun and of PC (an ancestral step, then a Langevin correction of signal-to-noise ratio 0.16) costs two "
        "evaluations, one of DPM-3 three; a budget buys as many whole steps as it pays for, and the rest is not spent. DPM-3 "
        "runs on times uniform in the log-SNR, the others on times uniform in the square root of t.",
        "",
        *_plainness(plain, real),
        *_others(r),
        "",
        "![real digits, samples, samples with guidance](classes.png)",
        "",
        "## Are they copies?",
        "",
        *_copies(plain, real),
        "",
        "## Bits per dimension",
        "",
        *_bits(r),
        "",
        "## Training",
        "",
        f"{s['steps']} steps of {s['batch_size']} digits ({training['passes']:.0f} passes over the data), Adam with the learning "
        f"rate falling from {s['lr']:g} by a cosine, dropout {s['dropout']:g}, the average of decay {s['ema_decay']:g} sampled; "
        f"the network predicts the {s['predicts']} under `hb.VP()`, weighting `{s['weighting']}`, times `{s['times']}`, and "
        f"loses the class of {s['class_dropout']:.0%} of the digits. Pixels have 17 levels; training digits are dequantised "
        f"{s['copies']} times, the held-out ones with noise that no training digit has. Samples keep that noise: divided by "
        "their bins they are levels again.",
        "",
        "![loss](loss.png)",
        "",
        "![states and data predictions](path.png)",
        "",
        f"An ancestral chain of {max(s['budgets'])} steps: its states, and the digits that the network sees in them.",
        "",
        "## Times",
        "",
        "| | seconds |",
        "| --- | --- |",
        *(f"| {name} | {seconds:.0f} |" for name, seconds in r["seconds"].items()),
        f"| all | {sum(r['seconds'].values()):.0f} |",
        "",
        f"{_threads(r)}; {', '.join(f'{k} {v}' for k, v in r['versions'].items())}. All numbers, the settings and the "
        "loss are in [results.json](results.json).",
        "",
    ]
    return "\n".join(parts)


def _held_out(r: Mapping[str, Any]) -> int:
    return 1797 - int(r["training"]["examples"])


def _sizes(real: Mapping[str, Any]) -> str:
    return f"{real['splits']['size']} against {1797 - real['digits']}"


def _thousands(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _times(r: Mapping[str, Any]) -> str:
    seconds = r["seconds"]
    return (
        f"Training took {seconds['training']:.0f} s on {_threads(r)} of a CPU, everything here "
        f"{sum(seconds.values()):.0f} s."
    )


def _threads(r: Mapping[str, Any]) -> str:
    return "1 thread" if r["threads"] == 1 else f"{r['threads']} threads"


def _accuracy_error(rows: Sequence[Mapping[str, Any]]) -> float:
    """The largest standard error of an accuracy in the table."""
    return float(max((row["accuracy"] * (1.0 - row["accuracy"]) / row["digits"]) ** 0.5 for row in rows))


def _pm(values: Sequence[float]) -> str:
    return f"{values[0]:.4f} ± {values[1]:.4f}"


def _near(value: float, splits: Sequence[float]) -> str:
    return f"**{value:.4f}**" if value <= splits[0] + 2.0 * splits[1] else f"{value:.4f}"


def _table(rows: Sequence[Mapping[str, Any]], real: Mapping[str, Any], budgets: Sequence[int]) -> list[str]:
    lines = [
        "| solver | budget | steps | evaluations | recognised | energy distance | sliced W2 | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['solver']} | {row['budget']} | {row['steps']} | {row['evaluations']} | {row['accuracy']:.1%} | "
            f"{_near(row['energy'], real['splits']['energy'])} | {_near(row['sliced_w2'], real['splits']['sliced_w2'])} | "
            f"{row['seconds']:.1f} |"
        )
    return lines


def _plainness(rows: Sequence[Mapping[str, Any]], real: Mapping[str, Any]) -> list[str]:
    """What to make of samples that are recognised more often than real digits, if there are any."""
    mean, std, _ = real["splits"]["energy"]
    found = [r for r in rows if r["accuracy"] > real["accuracy"] and r["energy"] > mean + 2.0 * std]
    if not found:
        return []
    names = ", ".join(f"{row['solver']} at {row['budget']}" for row in found)
    return [
        f"To be recognised more often than real digits is no merit where the distances are large ({names}): these samples "
        "vary too little, and odd digits, which the classifier gets wrong, are missing among them.",
        "",
    ]


def _others(r: Mapping[str, Any]) -> list[str]:
    real = r["real"]
    guided = next(row for row in r["runs"] if row["guidance"])
    same = next(row for row in r["runs"] if row["solver"] == guided["solver"] and row["budget"] == guided["budget"])
    free = [row for row in r["runs"] if not row["conditional"]]
    confident = ", ".join(f"{row['solver']} {row['confidence']:.1%} ({row['energy']:.4f})" for row in free)
    return [
        f"Guidance 1 makes the digits plainer and less varied: {guided['solver']} with {guided['budget']} evaluations goes from "
        f"{same['accuracy']:.1%} recognised to {guided['accuracy']:.1%}, from an energy distance of {same['energy']:.4f} to "
        f"{guided['energy']:.4f}.",
        "",
        f"Asked for no class, {free[0]['digits']} samples with {free[0]['budget']} evaluations: the classifier gives its first "
        f"choice a mean probability of {real['confidence']:.1%} on real digits, and on samples (energy distance in brackets) "
        f"{confident}.",
    ]


def _copies(rows: Sequence[Mapping[str, Any]], real: Mapping[str, Any]) -> list[str]:
    largest = max(row["budget"] for row in rows)
    text = ", ".join(
        f"{row['solver']} {row['nearest']:.2f} ({row['nearer']:.1%})" for row in rows if row["budget"] == largest
    )
    return [
        f"The nearest training digit is at a median distance of {real['nearest']:.2f} from held-out digits (pixels span 2, the "
        f"norm is Euclidean over 64 of them). From samples with {largest} evaluations: {text}. In brackets the share that is "
        "nearer to a training digit than 99 % of the held-out digits are: 1 % if samples were fresh digits, more where training "
        "digits are remembered.",
    ]


def _bits(r: Mapping[str, Any]) -> list[str]:
    bits, s = r["bits"], r["settings"]
    models, checks = bits["models"], bits["checks"]
    lines = ["| model | bits a pixel |", "| --- | --- |"]
    for name, value in models.items():
        error = f" ± {value['std_error']:.3f}" if value["std_error"] else ""
        extra = f" of width {value['width']:.2f}" if "width" in value else ""
        lines.append(f"| {name}{extra} | {value['mean']:.3f}{error} |")
    gap = models["flow, class given"]["mean"] - models["flow, class given, training digits"]["mean"]
    gap_error = math.hypot(
        models["flow, class given"]["std_error"], models["flow, class given, training digits"]["std_error"]
    )
    return [
        f"Of {bits['digits']} held-out digits, dequantised (17 levels), ± the standard error of the mean over digits and what "
        "else was drawn. *flow*: `hb.log_likelihood` of the probability flow without a class, Hutchinson's estimate, one probe, "
        f"DPM-Solver-3 with {s['flow_steps']} steps; *bound*: `hb.elbo`, {s['bound_samples']} times. These two are densities at "
        "t_min, of two models (the flow's and the reverse SDE's) that are one only for an exact score, so the bound need not "
        "lie above the flow's bits. *pixels by themselves*: the frequency of each level at each pixel; *Gaussian*: mean and "
        "covariance of the training digits; *kernels*: a Gaussian around each training digit, its width the best for leaving "
        "one out. The mixture of the ten conditional densities, a density without class, costs at most log2(10)/64 = 0.052 bits "
        "more than the class given.",
        "",
        *lines,
        "",
        f"On {checks['digits']} digits Hutchinson's estimate with {s['checked_probes']} probes differs from the exact divergence "
        f"by {checks['hutchinson']['mean']:+.3f} ± {checks['hutchinson']['std_error']:.3f} bits a pixel, and the fixed steps "
        f"from dopri5 with the same probes by {checks['solver']['mean']:+.3f} (of one digit at most "
        f"{checks['solver']['largest']:.3f}). Training digits with fresh noise are {gap:.3f} ± {gap_error:.3f} bits a pixel "
        "cheaper than held-out ones: so much is learned by heart.",
    ]
