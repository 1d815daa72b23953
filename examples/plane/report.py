"""The report: README.md, written from what results.json holds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from written_by import command

from plane.laws import CHECKERBOARD, PRIOR
from plane.measures import FLOORS
from plane.settings import FULL, QUICK

PAGE = """# Diffusion Schrödinger bridges in the plane

```sh
{command}
```

writes this page, its pictures and [results.json](results.json), which has every number.

![Moons to 8 Gaussians](moons.png)

![Checkerboard to Gaussian](checkerboard.png)

![Swiss roll to Gaussian](swiss_roll.png)

All are pictures of the trained bridges, in steps of their own noise (that of the last step is left out). The Gaussian
is N(0, {prior:g}² I); the direction from the origin is the colour of its points.

![Trajectories](trajectories.png)

Lines go from a ring to a dot, each in the colour of its beginning.

## Both ends, iteration by iteration

{bridges}

- **sliced W2** of {monitor_paths} ends of chains to a sample of their law of the same size: after the first iteration
  of IPF, after the last, and the **floor**, two samples of the law itself, mean ± deviation over {floors} such pairs. An
  error is of one sample, so it has some such deviation too. The start's is reached by the backward chain, the end's by
  the forward one. **Energy distance** after the last iteration, its floor 0 (it is unbiased, and may be below).
- **KL**: of the last iterate of a direction to the one before it in that direction, two half-bridges earlier, ± its
  standard error. It measures how far IPF still moves, and the noise of training.

{bridges_seen}

![Monitors](monitors.png)

The loss is relative to a kernel's own variance, so that the noise of a step alone makes it near 1; bridge matching
(DSBM) regresses onto an expectation, which has less noise. Path energy is E Σ |M_k(x_k) - x_k|²/(4 γ_k).

## The coupling, against Sinkhorn's

The Schrödinger bridge's coupling of its ends is known without any network: entropic optimal transport under the
reference, here by `hb.reference.static_bridge` between {static_points} points of each law, for {static_samples} such
sets.

{couplings}

- **cost**: E|x_1 - x_0|² ± its standard error.
- **total variation** between two tables, of which moon goes with which of the 8 Gaussians (16 shares): to the mean of
  Sinkhorn's. Sinkhorn's own row is how far a single set's table is from their mean, so is what sampling alone makes.

{couplings_seen}

![DSBM](moons_dsbm.png)

The same by bridge matching, begun from pairs of minibatch optimal transport ({coupling_size} pairs a minibatch).

## Few steps, against score-based models

Samples of the checkerboard. Every row has the same network and {training} steps of training in all; a bridge's are
shared out to its two networks, so that the backward one, which samples, has had half of them.

![Distances against steps](few_steps.png)

{few}

- Sliced W2 and energy distance of {samples} points to as many fresh data, mean ± standard error over {seeds} samples;
  a network is trained once, so that the chance of training is not in the error. Fresh data: {floor_sliced} and
  {floor_energy}.
- **DSB**: {iterations} iterations on the reference in N steps, begun from the prior N(0, {prior:g}² I), with the
  fixed variance 2 γ.
- **SGM, first half-bridge**: the same code, chain and prior, and all the training for the first half-bridge alone.
  The reference's variance at its end is {noise:g}, added to the data's: p_T is not the prior.
- **SGM, short**: `fit_score` on that reference in continuous time, one network for all N, and `hb.Ancestral()` at the
  times of the chain. **Wide prior**: begun from the Gaussian of p_T's own variance, {wide}², the best that a
  score-based model can do about it without a longer way; it is not the law that the bridge was asked to join.
- **SGM, long**: `fit_score` on `hb.VP()`, which leaves {alpha_T} of the data at T: p_T is the prior;
  `hb.Ancestral()`, and `hb.DPMSolverPP()` on the same network, a solver of second order without noise, in steps equal
  in log(alpha/sigma).
- Chains from the prior leave out the noise of their last step; the long model's stop where the noise left is
  {sigma_min}.

{few_seen}

![Samples in few steps](few_samples.png)

## How it is made

The reference is Brownian, dX = √{noise:g} dW on [0, 1], in {steps} steps (in N for the comparison) whose sizes γ rise
from 1 to N, in ratio, in the middle and fall again (`gammas.symmetric`), De Bortoli et al.'s
chain (2021). `fit_bridge` trains {iterations} iterations of {half_bridge} steps a half-bridge, batches of
{batch_size} from a cache of {cache_paths} trajectories, with Adam, its rate falling from {lr:g} to 0 along a cosine
in each half-bridge; what is used is the average of the weights, of decay {ema_decay:g}. Networks are `nets.MLP(2,
hidden={hidden}, depth={depth})`, {parameters} parameters. Training sets have {points} points.

Seed {seed}; halfbridge {halfbridge}, torch {torch}, numpy {numpy}, Python {python}; {threads} of {cpus} processors. All of it
took {seconds} s, {cpu_seconds} s of processor time (other programs may have been running). With the same seed, versions and
number of threads the numbers are the same; other machines may differ in the last digits.
"""


def render(results: dict[str, Any]) -> str:
    s = results["settings"]
    floor = results["floor"]
    values = {
        **s,
        **results,
        **results["versions"],
        "command": command("plane_bridges.py", results, FULL, QUICK, "seed", "threads"),
        "bridges": bridges_table(results),
        "couplings": couplings_table(results),
        "few": few_table(results),
        "bridges_seen": "\n".join(_bridge_seen(name, one) for name, one in results["bridges"].items()),
        "couplings_seen": "\n".join(_coupling_seen(results, name) for name in _learned(results)),
        "few_seen": "\n".join([*(_few_seen(results, n) for n in results["few"]), _needed(results)]),
        "floor_sliced": _with_error(floor["sliced_w2"], floor["sliced_w2_se"], 4),
        "floor_energy": _with_error(1e3 * floor["energy"], 1e3 * floor["energy_se"], 2) + " · 10⁻³",
        "floors": FLOORS,
        "wide": f"{results['wide']:.3f}",
        "alpha_T": f"{results['long']['alpha_T']:.4f}",
        "sigma_min": f"{results['long']['sigma_min']:.3f}",
        "prior": PRIOR,
        "parameters": f"{results['bridges'][CHECKERBOARD.title]['parameters']:,}".replace(",", " "),
        "seconds": f"{results['seconds']:.0f}",
        "cpu_seconds": f"{results['cpu_seconds']:.0f}",
    }
    return PAGE.format(**values)


def bridges_table(results: dict[str, Any]) -> str:
    head = ("bridge", "start, sliced W2", "end, sliced W2", "start, energy, 1e-3", "end, energy, 1e-3", "KL, backward",
            "KL, forward", "processor, s")  # fmt: skip
    lines = []
    for name, one in results["bridges"].items():
        cells = [name]
        ways = [_of(one, way) for way in ("backward", "forward")]
        for rows, end in zip(ways, ("start", "end"), strict=True):
            key = f"{end}_sliced_w2"
            cells.append(f"{rows[0][key]:.3f} → {rows[-1][key]:.3f} ({_with_error(*one['law_floors'][end], 3)})")
        cells += [
            f"{1e3 * rows[-1][f'{e}_energy_distance']:.2f}" for rows, e in zip(ways, ("start", "end"), strict=True)
        ]
        cells += [_with_error(rows[-1]["kl"], rows[-1]["kl_error"], 3) for rows in ways]
        lines.append((*cells, f"{one['cpu_seconds']:.0f}"))
    return _markdown(head, lines)


def couplings_table(results: dict[str, Any]) -> str:
    names = {"static": "Sinkhorn"}
    return _markdown(
        ("coupling", "cost", "total variation"),
        [
            (names.get(name, name), _with_error(c["cost"], c["cost_se"], 3), f"{c['variation']:.3f}")
            for name, c in results["couplings"].items()
        ],
    )


def few_table(results: dict[str, Any]) -> str:
    few = results["few"]
    head = ["sampler", *(f"{what}, N = {n}" for n in few for what in ("sliced W2", "energy, 1e-3"))]
    lines = []
    for name in next(iter(few.values())):
        cells = [name]
        for rows in few.values():
            m = rows[name]
            cells.append(_with_error(m["sliced_w2"], m["sliced_w2_se"], 4))
            cells.append(_with_error(1e3 * m["energy"], 1e3 * m["energy_se"], 2))
        lines.append(cells)
    return _markdown(head, lines)


def _bridge_seen(name: str, one: dict[str, Any]) -> str:
    parts = []
    for way, end in (("backward", "start"), ("forward", "end")):
        rows, key = _of(one, way), f"{end}_sliced_w2"
        first, last, (floor, deviation) = rows[0][key], rows[-1][key], one["law_floors"][end]
        far = (last - floor) / deviation
        where = f"{far:.1f} deviations above the floor" if far > 2.0 else "within two deviations of the floor"
        if far < -2.0:
            where = f"{-far:.1f} deviations below the floor"
        best = min(rows, key=lambda row: row[key])
        parts.append(
            f"at the {end} the error goes from {first:.3f} to {last:.3f}, {where}"
            + ("" if last - best[key] < 2.0 * deviation else f" ({best[key]:.3f} after half-bridge {best['iterate']})")
        )
    ended = "" if one["stopped"] == "iterations" else f" It ended early: {one['stopped']}."
    return _item(f"**{name}**: {parts[0]}, {parts[1]}.{ended}")


def _coupling_seen(results: dict[str, Any], name: str) -> str:
    static, mine = results["couplings"]["static"], results["couplings"][name]
    gap = mine["cost"] - static["cost"]
    error = math.hypot(mine["cost_se"], static["cost_se"])
    return _item(
        f"**{name}**: the cost is {100 * abs(gap) / static['cost']:.1f} % {'above' if gap > 0 else 'below'} Sinkhorn's, "
        f"{abs(gap) / error:.1f} standard errors; the table of moons and Gaussians is {mine['variation']:.3f} away in total "
        f"variation, a single set of Sinkhorn's {static['variation']:.3f}."
    )


def _few_seen(results: dict[str, Any], n: str) -> str:
    rows = results["few"][n]
    dsb, half = rows["DSB"], rows["SGM, first half-bridge"]
    parts = []
    for name, m in rows.items():
        if name == "DSB":
            continue
        gap = (m["sliced_w2"] - dsb["sliced_w2"]) / max(math.hypot(m["sliced_w2_se"], dsb["sliced_w2_se"]), 1e-12)
        word = "more" if gap > 2 else "less" if gap < -2 else "no other within the error"
        parts.append((name, word))
    worse = [name for name, word in parts if word == "more"]
    better = [name for name, word in parts if word == "less"]
    best = min(rows, key=lambda name: float(rows[name]["sliced_w2"]))
    ratio = half["sliced_w2"] / dsb["sliced_w2"]
    beaten = f"{len(worse)} of the {len(parts)} score-based rows have a greater error by more than two standard errors"
    lost = f"smaller by as much: {', '.join(better)}" if better else "none a smaller one"
    return _item(
        f"**N = {n}**: DSB has sliced W2 {_with_error(dsb['sliced_w2'], dsb['sliced_w2_se'], 4)}, the first half-bridge "
        f"alone {ratio:.2f} times that. {beaten}; {lost}. The least is {best}'s, "
        f"{_with_error(rows[best]['sliced_w2'], rows[best]['sliced_w2_se'], 4)}."
    )


def _needed(results: dict[str, Any]) -> str:
    """The N at which each score-based row is as good as DSB in its fewest steps, within two standard errors."""
    few = results["few"]
    fewest = next(iter(few))
    dsb = few[fewest]["DSB"]
    parts = []
    for name in few[fewest]:
        if name == "DSB":
            continue
        enough = [
            n
            for n, rows in few.items()
            if rows[name]["sliced_w2"]
            <= dsb["sliced_w2"] + 2 * math.hypot(rows[name]["sliced_w2_se"], dsb["sliced_w2_se"])
        ]
        parts.append(f"{name}: {enough[0] if enough else f'more than {list(few)[-1]}'}")
    return _item(
        f"**Steps to be as good as DSB in {fewest}**, within two standard errors of sliced W2: {'; '.join(parts)}."
    )


def _learned(results: dict[str, Any]) -> list[str]:
    return [name for name in results["couplings"] if name != "static"]


def _of(one: dict[str, Any], way: str) -> list[dict[str, Any]]:
    return [row for row in one["monitors"] if row["direction"] == way]


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    if value is None or error is None:  # a first iterate has no KL
        return "–"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _item(text: str) -> str:
    return textwrap.fill(f"- {text}", 126, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [list(head), *(list(line) for line in lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    rows = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in table
    ]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([rows[0], rule, *rows[1:]])
