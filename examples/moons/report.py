"""The report: README.md, written from what results.json holds."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from moons.measures import NOISE, STRAY
from moons.models import FULL

HEAD = ("sample", "sliced W2", "energy distance, 1e-3", "upper moon, %", "distance, 1e-3", "strays, %", "log density",
        "evaluations", "s")  # fmt: skip

PAGE = """# Half-moons by DDPM and by NCSN with annealed Langevin sampling

```sh
{command}
```

writes this page, its pictures and [results.json](results.json), which has every number.

![Fresh data, DDPM's samples and NCSN's](samples.png)

{table}

- **sliced W2**, **energy distance**: to {references} fresh samples of {samples} data points, mean ± standard deviation
  over them; for fresh data over all pairs of them, which is what a perfect model would show.
- **upper moon**: the share of points that are nearer to the upper moon, ± its standard error; 50 % in the law of the data.
- **distance**: the mean distance to the nearer moon. **strays**: points further than {stray} from both, four standard
  deviations of the data's noise (ringed in the picture).
- **log density**: the mean, in nats, under the law of the data, known by quadrature. Above fresh data's: the moons are too
  thin. Below: points are where data hardly come.
- **evaluations** of the network a sample; **s**: seconds for all samples.
- **exact score**: the same sampler, with the same noise, and the score of the data's law in the network's place. What it
  misses is the sampler's doing, or chance: turning the plane by half a turn swaps the moons and changes neither the law of
  the data nor the samplers', so that with the exact score the share of each moon is one half.

## What is seen

{seen}

![From noise to data](paths.png)

## How it is made

Training data are {examples} points of `data.load("moons")`: two half circles of radius 1, with noise of standard deviation
{noise}. Training is {epochs} epochs in batches of {batch_size}, {steps} steps of Adam, its learning rate falling from {lr} to 0
along a cosine. What is sampled is the exponential average of the weights, of decay {ema_decay}. Both networks are
`nets.MLP(2, hidden={hidden}, depth={depth}, time="steps")`, {parameters} parameters.

- **DDPM**: the simple loss on a chain of {chain} steps, beta from {beta_first} to {beta_last} (Ho et al. 2020), and
  `hb.Ancestral()` over all of them; the last returns the mean.
- **NCSN**: {levels} noise levels from {sigma_first} to {sigma_last}, and annealed Langevin sampling, {corrections} steps of size
  a = {langevin} (sigma/{sigma_last})^2 at each, x + a/2 score + sqrt(a) z: {theirs}. Not
  theirs: the network predicts the noise, minus sigma times the score, which has one size at all levels (their 2020 paper);
  sampling starts from N(0, sigma_1^2), not from a uniform law; at the end the noise that is left is taken off,
  x + sigma_L^2 score (Jolicoeur-Martineau et al. 2021).

![Training](training.png)

| | steps | loss on fresh data | least possible | training, s |
|---|---:|---:|---:|---:|
{training}

The losses on fresh data are the averaged network's, over all noise levels; the least possible is the exact score's.

Across a moon the data are nearly N(0, {noise}^2), and what a sampler makes of that Gaussian with the exact score is known:
by `hb.reference.law_of` its standard deviation is {thickness} times the right one. DDPM's
posterior variance is exact for data that are one point (Ho et al. 2020, section 3.2), and its last steps, which end at a
noise of {chain_last}, are coarse for moons this thin; **large variance** is their other choice, beta itself
(`hb.Ancestral(variance="transition")`). Of NCSN's two errors one is against the other: Langevin steps of size a keep, in a
direction of variance v, the variance v/(1 - a/(4 v)), {wider} % too much where v = sigma^2 and less where v is larger; and
returning the mean at the end, given a noise of {sigma_last}, makes moons {narrower} % thinner.

Seed {seed}; halfbridge {halfbridge}, torch {torch}, numpy {numpy}, Python {python}; {threads} of {cpus} processors. All of it
took {seconds} s, {cpu_seconds} s of processor time (other programs may have been running). With the same seed, versions and
number of threads the numbers are the same; other machines may differ in the last digits.
"""


def render(results: dict[str, Any]) -> str:
    s, trained = results["settings"], results["training"]
    ratio = s["langevin"] / s["sigma_last"] ** 2
    options = [
        f" --{name} {results[name]}" for name, default in (("seed", 0), ("threads", 1)) if results[name] != default
    ]
    theirs = all(
        s[name] == getattr(FULL, name) for name in ("levels", "sigma_first", "sigma_last", "corrections", "langevin")
    )
    values = {
        **s,
        **results,
        **results["versions"],
        "command": "python examples/half_moons.py" + "".join(options),
        "table": table(results),
        "seen": "\n".join(_seen(results, name) for name in trained),
        "noise": NOISE,
        "stray": f"{STRAY:g}",
        "parameters": " and ".join(sorted({f"{t['parameters']:,}".replace(",", " ") for t in trained.values()})),
        "beta_first": f"{0.1 / s['chain']:g}",
        "beta_last": f"{20.0 / s['chain']:g}",
        "chain_last": f"{math.sqrt(0.1 / s['chain']):.2g}",
        "theirs": "Song and Ermon 2019, their numbers for images"
        if theirs
        else "Song and Ermon 2019, with other numbers",
        "training": "\n".join(_row(name, t) for name, t in trained.items()),
        "thickness": ", ".join(f"{ratio:.3f} ({name})" for name, ratio in results["thickness"].items()),
        "narrower": f"{100 * (1 - NOISE / math.hypot(NOISE, s['sigma_last'])):.1f}",
        "wider": f"{100 * (1 / (1 - ratio / 4) - 1):.1f}",
        "seconds": f"{results['seconds']:.0f}",
        "cpu_seconds": f"{results['cpu_seconds']:.0f}",
    }
    return PAGE.format(**values)


def table(results: dict[str, Any]) -> str:
    """The measures of every sample, in markdown."""
    lines = [HEAD]
    for name, m in results["rows"].items():
        lines.append((
            name,
            f"{m['sliced_w2']:.4f} ± {m['sliced_w2_sd']:.4f}",
            f"{1e3 * m['energy']:.2f} ± {1e3 * m['energy_sd']:.2f}",
            f"{100 * m['upper']:.1f} ± {100 * m['upper_se']:.1f}",
            f"{1e3 * m['distance']:.1f} ± {1e3 * m['distance_se']:.1f}",
            f"{100 * m['strays']:.2f}",
            f"{m['log_density']:.3f} ± {m['log_density_se']:.3f}",
            str(m.get("evaluations", "")),
            f"{m['seconds']:.0f}" if "seconds" in m else "",
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    rows = []
    for name, *cells in lines:
        padded = [name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))]
        rows.append("| " + " | ".join(padded) + " |")
    return "\n".join([rows[0], rule, *rows[1:]])


def _seen(results: dict[str, Any], name: str) -> str:
    data, m, exact = (results["rows"][key] for key in ("fresh data", name, f"{name}, exact score"))
    away = (m["sliced_w2"] - data["sliced_w2"]) / data["sliced_w2_sd"]
    least = min(m["upper"], 1.0 - m["upper"])
    modes = "Both modes are covered" if least > 0.25 else "A mode is missing" if least < 0.01 else "A mode is thin"
    text = (
        f"- **{name}**: sliced W2 {m['sliced_w2']:.4f} is {m['sliced_w2'] / data['sliced_w2']:.2f} times fresh data's "
        f"{data['sliced_w2']:.4f}, {abs(away):.1f} standard deviations {'above' if away > 0 else 'below'} it. {modes}: "
        f"{100 * m['upper']:.1f} % on the upper moon and {100 - 100 * m['upper']:.1f} % on the lower, "
        f"{abs(m['upper'] - 0.5) / m['upper_se']:.1f} standard errors from one half, and {100 * m['strays']:.2f} % strays. "
        f"The mean distance from the moons is {_percent(m, data)} than data's; with the exact score {_percent(exact, data)}."
    )
    return textwrap.fill(text, 118, subsequent_indent="  ")


def _percent(m: dict[str, float], data: dict[str, float]) -> str:
    change = 100.0 * (m["distance"] / data["distance"] - 1.0)
    error = 100.0 * math.hypot(m["distance_se"], data["distance_se"]) / data["distance"]
    return f"{abs(change):.1f} ± {error:.1f} % {'greater' if change > 0 else 'smaller'}"


def _row(name: str, t: dict[str, Any]) -> str:
    return f"| {name} | {t['steps']} | {t['loss']:.4f} | {t['least_loss']:.4f} | {t['seconds']:.0f} |"
