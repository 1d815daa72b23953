"""The bridges of digits in words: README.md from results.json, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from written_by import command

from bridged_digits.settings import FULL, QUICK

__all__ = ["render"]

NEAR = 0.25
"""A translation is one where this share of the untranslated digits' energy distance is left, and half is recognised."""


def render(r: Mapping[str, Any]) -> str:
    """The README of a run's results."""
    s = r["settings"]
    parts = [
        "# Digits: diffusion Schrödinger bridges",
        "",
        "```sh",
        f"OMP_NUM_THREADS={r['threads']} {command('digits_bridge.py', r, FULL, QUICK, 'seed')}",
        "```",
        "",
        f"Three experiments on scikit-learn's 1797 handwritten digits of 8x8 pixels, on {_threads(r)} of a CPU: "
        f"{sum(r['cpu_seconds'].values()):.0f} s. Between digits and a Gaussian the networks are U-Nets of "
        f"{_thousands(r['parameters'][0])} parameters, between digits and digits MLPs of {_thousands(r['parameters'][1])}. "
        "Every reference of a bridge is a Brownian motion in steps (`ReferenceChain.dsb`), and the last step of what makes "
        f"digits has no noise. {r['digits'][1]} digits are held out, and with them the judges of the "
        "[digits example](../digits/README.md) are made. *Recognised* is what an SVM takes for one of the ten digits that "
        "knows an eleventh class too, no digit: blends of two digits, digits under noise, and draws of the Gaussian with "
        "the digits' mean and covariance. (One that knows the ten classes alone has to take such for one of them.) "
        "*Energy distance* (unbiased, so it may be negative) and *sliced W2* are between pixels, which span 2.",
        "",
        *_hundred(r),
        *_translation(r),
        *_few_steps(r),
        "## Training",
        "",
        f"Adam, the learning rate falling by a cosine in each half-bridge after {s['warmup']} steps of warm-up. Each "
        "half-bridge begins from the averaged network of the one before in its direction. U-Nets: batches of "
        f"{s['batch_size']}, learning rate {s['lr']:g}, averages of decay {s['ema_decay']:g}, a cache of "
        f"{s['cache_paths']} paths; MLPs: {s['pair_batch']}, {s['pair_lr']:g}, {s['pair_decay']:g} and {s['pair_cache']}. "
        f"A cache is simulated anew every {s['refresh']} steps.",
        "",
        "| part | seconds of CPU |",
        "| --- | --- |",
        *(f"| {name} | {seconds:.0f} |" for name, seconds in r["cpu_seconds"].items()),
        f"| all | {sum(r['cpu_seconds'].values()):.0f} |",
        "",
        f"{', '.join(f'{k} {v}' for k, v in r['versions'].items())}. All numbers and the settings are in "
        "[results.json](results.json).",
        "",
    ]
    return "\n".join(parts)


def _hundred(r: Mapping[str, Any]) -> list[str]:
    s, (wide, narrow) = r["settings"], r["hundred"]
    lines = [
        "## A hundred digits and a Gaussian",
        "",
        f"{s['per_class']} of each digit, {s['iterations']} iterations of DSB, {s['chain']} steps, step noise "
        f"{s['step_noise']:g}; {s['hundred_steps']} steps of training a half-bridge. The noise can be read in two ways, and both "
        f"were run: as gamma, where a step has the variance 2 gamma and the deviation {wide['deviation']:.3f} (the papers' "
        f"letters, and what the pictures show unless they say otherwise), and as the deviation of a step. The Gaussian has the "
        f"mean image as its mean and the variance that the reference ends with, in the mean over pixels: deviations "
        f"{wide['prior_std']:.2f} and {narrow['prior_std']:.2f}.",
        "",
        "![digits generated after each iteration](hundred_generated.png)",
        "",
        "Generated digits, a row an iteration, from the same Gaussian noise in all rows.",
        "",
        "![noising after each iteration](hundred_noising.png)",
        "",
        "Two digits on their way to noise: by the reference, and by the forward model after each iteration, with the same noise.",
        "",
        "![from noise to digits](hundred_generating.png)",
        "",
        "Digits on their way from noise, after the last iteration.",
        "",
        "![monitors](hundred_monitors.png)",
        "",
        "Losses of both models and the monitors of each half-bridge.",
        "",
        "| deviation of a step | iteration | recognised | energy distance | sliced W2 | nearest of the hundred | energy "
        "distance at the Gaussian | KL to the iteration before |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in (wide, narrow):
        monitors = {row["iterate"]: row for row in run["monitors"]}
        for row in run["rows"]:
            forward, backward = monitors[2 * row["iteration"]], monitors[2 * row["iteration"] - 1]
            kl = "" if row["iteration"] == 1 else f"{backward['kl']:.2f}, {forward['kl']:.2f}"
            lines.append(
                f"| {run['deviation']:.3f} | {row['iteration']} | {row['recognised']:.1%} | {row['energy']:.3f} | "
                f"{row['sliced_w2']:.3f} | {row['nearest']:.2f} | {forward['end_energy_distance']:.4f} | {kl} |"
            )
    lines += [
        "",
        "*Energy distance* and *sliced W2* are to the hundred, *nearest* is the median Euclidean distance to the nearest "
        f"of them (from held-out digits {wide['nearest_real']:.2f}: what is far below that was learned by heart). Of the "
        f"hundred themselves {wide['recognised_real']:.1%} are recognised. Two samples of the Gaussian are at "
        f"{wide['floors']['end_energy_distance']:.4f} and {narrow['floors']['end_energy_distance']:.4f} of each other. KL "
        "is in nats, between paths, of the backward and the forward model.",
        "",
        *(f"- {_change(run, s['iterations'])}" for run in (wide, narrow)),
        "",
    ]
    return lines


def _change(run: Mapping[str, Any], iterations: int) -> str:
    first, last = run["rows"][0], run["rows"][-1]
    return (
        f"With steps of {run['deviation']:.3f} the energy distance of the generated digits goes from {first['energy']:.3f} (the "
        f"first half-bridge, an SGM on this chain) to {last['energy']:.3f} in {iterations} iterations, and the share recognised "
        f"from {first['recognised']:.1%} to {last['recognised']:.1%}."
    )


def _translation(r: Mapping[str, Any]) -> list[str]:
    s, t = r["settings"], r["translation"]
    a, b = s["source"], s["target"]
    lines = [
        f"## {a} to {b} and back, unpaired",
        "",
        f"DSB between {t['trained_on'][0]} digits {a} and {t['trained_on'][1]} digits {b}, and DSBM (bridge matching, "
        f"begun from minibatches paired by optimal transport) with the same networks and steps: {s['pair_iterations']} "
        f"iterations, {s['pair_steps']} steps of training a half-bridge, chains of {s['pair_chain']} steps that add the "
        f"variance {s['pair_noise']:g} in all, with small steps at both ends. The {t['digits'][0]} and {t['digits'][1]} "
        f"held-out digits of the two classes are translated, with {s['seeds']} seeds: ± is the deviation over these.",
        "",
        "![translations](translations.png)",
        "",
        "Held-out digits and their translations.",
        "",
        "![on the way](translating.png)",
        "",
        "Some of them on their way along the chain of DSB.",
        "",
        "| method | to | iteration | recognised as it | energy distance | sliced W2 | moved | paired at random | paired anew |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in t["rows"]:
        if row["iteration"] in (1, s["pair_iterations"]):
            lines.append(
                f"| {row['method']} | {row['to']} | {row['iteration']} | {_share(row['recognised'])} | {_pm(row['energy'])} | "
                f"{_pm(row['sliced_w2'])} | {_pm(row['moved'])} | {row['dealt'][0]:.3f} | {row['repaired'][0]:.3f} |"
            )
    last = [row for row in t["rows"] if row["iteration"] == s["pair_iterations"]]
    lines += [
        "",
        "*Moved* is the mean square of a pixel's change from a digit to its translation; beside it the same if the "
        "digits and their translations were paired at random, and at the least cost (exact optimal transport, POT). "
        f"Between the held-out {a}s and {b}s themselves it is {t['independent']:.3f} at random and {t['transport']:.3f} "
        "at the least cost. Real digits that the SVM has not seen are taken for their class in "
        f"{t['real'][str(a)]['recognised']:.1%} ({a}) and {t['real'][str(b)]['recognised']:.1%} ({b}) of all cases; two "
        f"parts of real digits, of the sizes compared here, are at {_pm(t['real'][str(a)]['energy'])} ({a}) and "
        f"{_pm(t['real'][str(b)]['energy'])} ({b}), with a sliced W2 of {_pm(t['real'][str(a)]['sliced_w2'])} and "
        f"{_pm(t['real'][str(b)]['sliced_w2'])}. The {a}s as they are, not translated, are at "
        f"{t['untranslated']['energy']:.3f} from the {b}s, with a sliced W2 of {t['untranslated']['sliced_w2']:.3f}.",
        "",
        *(_kept(row, t) for row in last),
        "",
    ]
    return lines


def _kept(row: Mapping[str, Any], t: Mapping[str, Any]) -> str:
    """What the coupling saves, where there is a coupling: digits left as they are save all of it."""
    mean, deviation = t["real"][str(row["to"])]["energy"]
    far = (row["energy"][0] - mean) / deviation
    told = (
        f"- {row['method']} to {row['to']}: the translations are {far:.1f} deviations of real digits' energy distance from "
        "real digits"
    )
    if row["recognised"][0] < 0.5 or row["energy"][0] > NEAR * t["untranslated"]["energy"]:
        return f"{told}, too far for what moving them cost to mean anything."
    share = (row["dealt"][0] - row["moved"][0]) / (row["dealt"][0] - row["repaired"][0])
    return f"{told}; of what the best pairing of these images saves against a random one, {share:.0%} is saved."


def _few_steps(r: Mapping[str, Any]) -> list[str]:
    s, t = r["settings"], r["few_steps"]
    total = 2 * s["few_iterations"] * s["few_steps"]
    rows = t["rows"]
    lines = [
        "## Against an SGM, in few steps",
        "",
        f"All {r['digits'][0]} digits to a Gaussian, {total} steps of training a model. *DSB*: {s['few_iterations']} "
        f"iterations on a chain of as many steps as are sampled, step sizes rising by a factor of {s['few_ratio']:g} from "
        f"the digits to the noise, variance {s['few_noise']:g} in all; its backward model sees half of the training. "
        "*SGM, same chain*: the first half-bridge of that chain, with all of the training. *SGM, VP*: `fit_score` under "
        "`hb.VP()`, one model for all numbers of steps, whose network predicts the velocity; ancestral sampling at "
        "the times of `hb.grids.quadratic`. Of all grids and predictions these are one choice, and at few steps the row "
        f"depends on it. {s['samples']} digits, {s['seeds']} sampling seeds: ± and bars are the deviation over these, and "
        "not over trainings, of which there is one for each row.",
        "",
        "![samples](few_steps.png)",
        "",
        "![scores](few_steps_scores.png)",
        "",
        "| steps | model | energy distance | sliced W2 | recognised | gap at the Gaussian |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        gap = "" if row["gap"] is None else f"{row['gap']:.4f}"
        lines.append(
            f"| {row['evaluations']} | {row['model']} | {_pm(row['energy'])} | {_pm(row['sliced_w2'])} | "
            f"{_share(row['recognised'])} | {gap} |"
        )
    real, law = t["real"], t["gaussian"]
    lines += [
        "",
        f"Two parts of real digits are at {_pm(real['energy'])} and {_pm(real['sliced_w2'])}, and "
        f"{real['recognised']:.1%} of those that the SVM has not seen are recognised; a Gaussian with the digits' mean "
        f"and covariance is at {_pm(law['energy'])} and {_pm(law['sliced_w2'])}, {_share(law['recognised'])} of it "
        "recognised. *Gap at the Gaussian*: energy distance of what the noising chain ends in from the law that sampling "
        "starts from; an SGM's is that of the reference itself.",
        "",
        _seen(rows, s["budgets"], s["seeds"]),
        "",
    ]
    return lines


def _seen(rows: Sequence[Mapping[str, Any]], budgets: Sequence[int], seeds: int) -> str:
    """Which model is nearest at each number of steps, and whether DSB needs fewer, by two standard errors of sampling."""
    energy = {(row["model"], row["evaluations"]): row["energy"] for row in rows}
    names = list(dict.fromkeys(row["model"] for row in rows))

    def nearer(a: tuple[str, int], b: tuple[str, int]) -> float:
        """By how many standard errors of the two means' difference a is nearer than b."""
        (mean_a, deviation_a), (mean_b, deviation_b) = energy[a], energy[b]
        return (mean_b - mean_a) / max(math.hypot(deviation_a, deviation_b) / math.sqrt(seeds), 1e-12)

    nearest = []
    for b in budgets:
        best = min(names, key=lambda m: energy[m, b][0])
        level = [m for m in names if m != best and nearer((best, b), (m, b)) <= 2.0]
        nearest.append(f"{best} at {b}" + (f" (no farther within the error: {', '.join(level)})" if level else ""))
    parts = [f"By energy distance the nearest is {'; '.join(nearest)} steps."]
    for name in (name for name in names if name != "DSB"):
        gaps = {b: nearer(("DSB", b), (name, b)) for b in budgets}
        wins, losses = [b for b in budgets if gaps[b] > 2.0], [b for b in budgets if gaps[b] < -2.0]
        pairs = [
            (few, many)
            for few in budgets
            for many in budgets
            if few < many and nearer(("DSB", few), (name, many)) >= -2.0
        ]
        parts.append(
            f"Against {name} DSB is nearer at {_list(wins)} steps, farther at {_list(losses)} steps"
            + (f", and with {pairs[0][0]} steps no farther than it with {max(m for f, m in pairs if f == pairs[0][0])}."
               if pairs else ", and with fewer steps always farther.")
        )  # fmt: skip
    parts += ["By the share recognised:", *(_recognised(rows, name, budgets, seeds) for name in names if name != "DSB")]
    return " ".join(
        [*parts, "Differences count from two standard errors of sampling; the chance of training is not in them."]
    )


def _recognised(rows: Sequence[Mapping[str, Any]], name: str, budgets: Sequence[int], seeds: int) -> str:
    """How often DSB's digits are recognised beside another model's."""
    at = {(row["model"], row["evaluations"]): row["recognised"] for row in rows}
    above, below = [], []
    for b in budgets:
        (x, dx), (y, dy) = at["DSB", b], at[name, b]
        error = 2.0 * math.sqrt((dx**2 + dy**2) / seeds)
        if x - y > error:
            above.append(b)
        elif y - x > error:
            below.append(b)
    return f"DSB's digits more often than those of {name} at {_list(above)} steps, less often at {_list(below)} steps."


def _list(values: Sequence[int]) -> str:
    if not values:
        return "no number of"
    return ", ".join(map(str, values[:-1])) + (" and " if len(values) > 1 else "") + str(values[-1])


def _pm(values: Sequence[float]) -> str:
    return f"{values[0]:.3f} ± {values[1]:.3f}"


def _share(values: Sequence[float]) -> str:
    return f"{values[0]:.1%} ± {values[1]:.1%}"


def _thousands(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _threads(r: Mapping[str, Any]) -> str:
    return "1 thread" if r["threads"] == 1 else f"{r['threads']} threads"
