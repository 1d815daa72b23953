"""The report: README.md, written from what results.json holds."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from written_by import command

from exact_bridges.settings import FULL, QUICK

MEAN, COV = 0.02, 0.03
"""What is asked of the networks."""
NOISE = 4.5
"""Standard errors: the greatest of some hundreds is above this once in a thousand times."""

PAGE = """# Schrödinger bridges against what is known exactly

```sh
{command}
```

writes this page, its pictures and [results.json](results.json), which has every number.

## Networks between Gaussians

{networks}

{verdict}

The ends are two Gaussians in {dim} dimensions with correlated coordinates, the reference dX = -X/2 dt + dW on [0, 1] in
{chain} steps. Errors are of the pairs (x at 0, x at T), over {pairs} of them each way, from fresh samples of one law carried to
the other: the greatest error of a mean, and |Cov - Cov*|/|Cov*| in Frobenius norms, Cov* that of `hb.reference.GaussianBridge`.
"To the end" runs the forward networks, "to the start" the backward ones.

**Budget**, of each of them: {iterations} iterations of two half-bridges of {steps} steps in batches of {batch_size}; {schedule}
learning rate {lr:g}; averages of decay {ema_decay}; {paths} trajectories a half-bridge, none seen twice. Networks
`hb.nets.MLP({dim}, hidden={hidden}, depth={depth})`; `variance="matched"`, `form="full"`, covariances from {covariance_paths}
paths; {examples} samples of each end.

{errors}

![Monitors](training.png)

## Affine kernels, regressed exactly

| dimensions | fixed against DSB's recursion | matched, full, against exact IPF | its limit against the closed form | iterations |
|---:|---:|---:|---:|---:|
{exact}

Greatest differences of means and covariances at all times and of the coupling, on {exact_chain} unequal steps
(`AffineRegressor` in `ipf`, against `hb.reference.gaussian_ipf` and `GaussianBridge`).

## What the kernels do to the coupling

![Errors of the coupling](departures.png)

Error of the coupling's covariance, in %, after IPF was begun at the bridge itself: a scheme that solves the problem stays there.

{departures}

{departing}

## An Ornstein-Uhlenbeck process and its bridge

![Trajectories and moments](ou.png)

| | T | mean, from and to | standard deviation, from and to | furthest mean, standard errors | furthest deviation |
|---|---:|---:|---:|---:|---:|
{ou}

{ou_seen}

## Between mixtures on the line, against Sinkhorn

![The coupling](coupling.png)

![Drifts](drifts.png)

{mixtures}

| drift | t | rms error | rms size |
|---|---:|---:|---:|
{drifts}

Errors are weighted with the bridge's law at t. The networks: {mix_iterations} iterations of two half-bridges of {mix_steps}
steps in batches of {mix_batch}, {mix_chain} steps of a Brownian reference, `variance="matched"`, `form="diagonal"` (a second
network for the variances); {mix_cpu:.0f} s of processor time.

Seeds from {seed} on; halfbridge {halfbridge}, torch {torch}, numpy {numpy}, Python {python}; {threads} of {cpus} processors.
All of it took {seconds:.0f} s, {cpu_seconds:.0f} s of processor time (other programs may have been running). With the same
seed, versions and number of threads the numbers are the same; other machines may differ in the last digits.
"""


def render(results: dict[str, Any]) -> str:
    s, mixed = results["settings"], results["mixtures"]
    networks, mixtures = s["networks"], s["mixtures"]
    values = {
        **s,
        **networks,
        **results,
        **results["versions"],
        "command": command("gaussian_bridge.py", results, FULL, QUICK, "seed", "seeds", "threads"),
        "networks": networks_table(results),
        "verdict": _verdict(results),
        "errors": _errors(results),
        "pairs": _count(s["pairs"]),
        "examples": _count(networks["examples"]),
        "paths": _count(networks["steps"] * networks["batch_size"] // networks["chain"]),
        "exact": "\n".join(
            f"| {e['d']} | {e['fixed']:.1e} | {e['matched']:.1e} | {e['limit']:.1e} | {e['iterations']} |"
            for e in results["exact"]
        ),
        "departures": _departures(results),
        "departing": _departing(results),
        "ou": "\n".join(
            f"| {w['name']} | {w['T']:g} | {w['mean'][0]:.3f}, {w['mean'][1]:.3f} | {w['std'][0]:.3f}, {w['std'][1]:.3f} | "
            f"{w['mean_z']:.1f} | {w['std_z']:.1f} |"
            for w in results["ou"]
        ),
        "ou_seen": _ou(results),
        "mixtures": _mixtures(results),
        "drifts": "\n".join(
            f"| {d['way']} | {d['t']:g} | {d['error']:.3f} | {d['size']:.2f} |" for d in mixed["drifts"]
        ),
        "mix_iterations": mixtures["iterations"],
        "mix_steps": mixtures["steps"],
        "mix_batch": mixtures["batch_size"],
        "mix_chain": mixtures["chain"],
        "mix_cpu": mixed["cpu_seconds"],
    }
    return PAGE.format(**values)


def networks_table(results: dict[str, Any]) -> str:
    """Both couplings' errors for each seed."""
    lines = ["| seed | to the end: mean | covariance | to the start: mean | covariance | training, s of processor time |",
             "|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in results["networks"]:
        cells = [f"{row[to]['mean']:.4f} | {100 * row[to]['cov']:.2f} %" for to in ("end", "start")]
        lines.append(f"| {row['seed']} | {cells[0]} | {cells[1]} | {row['cpu_seconds']:.0f} |")
    return "\n".join(lines)


def _verdict(results: dict[str, Any]) -> str:
    rows = [row[to] for row in results["networks"] for to in ("end", "start")]
    mean, cov = max(row["mean"] for row in rows), max(row["cov"] for row in rows)
    good = mean < MEAN and cov < COV
    return _filled(
        f"Asked for are means within {MEAN:g} and covariances within {100 * COV:g} %, in both directions. The worst of "
        f"{len(rows)} is a mean {mean:.4f} off and a covariance {100 * cov:.2f} % off: {'all' if good else 'not all'} are within."
    )


def _errors(results: dict[str, Any]) -> str:
    floor, (mean, cov), s = results["floor"], results["truncated"], results["settings"]["networks"]
    rows = [row[to]["cov"] for row in results["networks"] for to in ("end", "start")]
    known, mean_cov = math.hypot(cov, floor["data_cov"], floor["pairs_cov"]), sum(rows) / len(rows)
    return _filled(
        f"Where the errors come from. IPF itself, exactly solved, is still {mean:.4f} (means) and {100 * cov:.2f} % "
        f"(covariance) away after {s['iterations']} iterations. The training data miss their laws by "
        f"{floor['data_mean']:.4f} and {100 * floor['data_cov']:.2f} %, the pairs measured theirs by "
        f"{floor['pairs_mean']:.4f} and {100 * floor['pairs_cov']:.2f} % (one standard error). The chain adds nothing: with "
        "full matched covariances its fixed point between Gaussians is the closed form's coupling for any number of steps. "
        f"These known parts are {100 * known:.2f} % of the covariance in all, as a root of their squares' sum, and what is "
        f"measured is {100 * mean_cov:.2f} % in the mean of {len(rows)} couplings"
        + (": most of it is the training's." if mean_cov > 2.0 * known else ".")
    )


def _departures(results: dict[str, Any]) -> str:
    kinds = results["departures"]
    last = len(next(iter(next(iter(kinds.values())).values()))) - 1
    shown = [n for n in (1, 3, 10) if n < last] + [last]
    head = ["kernels", "N", *(f"{n} iteration{'s' if n > 1 else ''}" for n in shown)]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for kind, over in kinds.items():
        for steps, errors in over.items():
            lines.append(f"| {kind} | {steps} | " + " | ".join(_percent(errors[n]) for n in shown) + " |")
    return "\n".join(lines)


def _departing(results: dict[str, Any]) -> str:
    kinds, slopes = results["departures"], results["slopes"]
    full = kinds["matched, full"]
    still, finest = max(max(errors) for errors in full.values()), list(full)[-1]
    count = len(full[finest]) - 1
    last = {kind: over[finest][-1] for kind, over in kinds.items() if kind != "matched, full"}
    orders = ", ".join(f"{-slope:.2f} ({kind})" for kind, slope in slopes.items())
    ends = "; ".join(f"{kind}: {_percent(error)} %" for kind, error in last.items())
    text = [
        "**Fixed variances** 2γ, which DSB has, leave the bridge, and so do **matched ones that are scalar or diagonal**: one "
        f"iteration moves the coupling by O(γ), as N to the power {orders}, and those after it move it on. "
        f"**Full matched covariances stay**, within {still:.0e} at every N and iteration.",
        f"After {count} iterations at N = {finest}: {ends}. Scalar and diagonal covariances keep the means exact, and drop the "
        "correlations that the reverse kernels have between correlated ends.",
    ]
    return "\n\n".join(_filled(part) for part in text)


def _ou(results: dict[str, Any]) -> str:
    mean, std = results["first_half"]
    process, bridge = results["ou"][:2]
    furthest = max(max(w["mean_z"], w["std_z"]) for w in results["ou"])
    noise = "the simulation's noise" if furthest < NOISE else "more than the simulation's noise"
    return _filled(
        f"{results['settings']['ou_paths']} simulated paths beside the exact curves. dX = -X/2 dt + dW rests at N(0, 1) and "
        f"comes near it in T = {process['T']:g}: mean {process['mean'][1]:.3f}, standard deviation {process['std'][1]:.3f}. In "
        f"T = {bridge['T']:g} it does not get there, and the bridge of the same process does, exactly; and returns. A "
        "score-based model with the exact score, the first half-bridge (dotted), starts from N(0, 1) too and returns to mean "
        f"{mean:.3f} and deviation {std:.3f} in place of {bridge['mean'][0]:g} and {bridge['std'][0]:g}. Kernels are affine, "
        f"regressed exactly: differences of up to {furthest:.1f} standard errors are {noise}."
    )


def _mixtures(results: dict[str, Any]) -> str:
    m = results["mixtures"]
    return _filled(
        f"Two bumps to three. Sinkhorn's algorithm on a grid took {m['sinkhorn']['iterations']} iterations, to marginals within "
        f"{m['sinkhorn']['error']:.0e}. Over the bins of the picture the networks' pairs are {m['variation']['end']:.4f} "
        f"(forward) and {m['variation']['start']:.4f} (backward) away in total variation; as many pairs drawn from Sinkhorn's "
        f"bins, {m['floor']:.4f}. E[x at T | x at 0], of size {m['mean_size']:.2f}, is off by {m['mean_error']:.3f} (both root "
        "mean squares)."
    )


def _percent(error: float) -> str:
    return "0" if error < 1e-12 else f"{100 * error:.2f}" if error > 5e-5 else f"{100 * error:.1e}"


def _count(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def _filled(text: str) -> str:
    return textwrap.fill(text, 128)
