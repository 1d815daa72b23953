"""Bridges by networks, and the couplings that they give."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

import halfbridge as hb
from exact_bridges.affine import PROCESS, coupling_error, ends
from exact_bridges.settings import Training
from halfbridge.solvers.processes import Process
from halfbridge.training.bridge import Bridge, BridgeFit, End, ReferenceChain, fit_bridge

CHUNK = 50_000


class Coupled(NamedTuple):
    """The coupling of one direction against the closed form's."""

    to: str
    mean: float
    """The greatest error of the pairs' mean."""
    cov: float
    """|Cov - Cov*|/|Cov*|, Frobenius norms."""


def fit(laws: tuple[End, End], d: int, process: Process, form: str, s: Training, seed: int) -> tuple[BridgeFit, float]:
    """The bridge, and the seconds of processor time of its training. Data, networks and noise follow from `seed`."""
    torch.manual_seed(seed)
    nets = [hb.nets.MLP(d, hidden=s.hidden, depth=s.depth) for _ in range(2)]
    data = [law.sample(s.examples, 1000 * seed + k).float() for k, law in enumerate(laws, start=1)]
    begin = time.process_time()
    made = fit_bridge(
        *nets, *data, ReferenceChain(process, s.chain), variance="matched", form=form, iterations=s.iterations, steps=s.steps,
        batch_size=s.batch_size, lr=s.lr, schedule=s.schedule, ema_decay=s.ema_decay, cache_paths=s.cache_paths,
        covariance_paths=s.covariance_paths, monitor_paths=s.monitor_paths, seed=seed,
    )  # fmt: skip
    return made, time.process_time() - begin


def pairs(bridge: Bridge, laws: tuple[End, End], to: str, n: int, seed: int) -> Iterator[torch.Tensor]:
    """(x_0, x_T) side by side, (CHUNK, 2 d) at a time: fresh samples of one law, carried to the other end."""
    law = laws[0 if to == "end" else 1]
    for first in range(0, n, CHUNK):
        x = law.sample(min(CHUNK, n - first), seed, first).float()
        y = bridge.translate(x, seed + 1, to=to, first=first)
        yield torch.cat([x, y] if to == "end" else [y, x], 1).double()


def moments(parts: Iterator[torch.Tensor]) -> hb.reference.Gaussian:
    """The Gaussian with the mean and covariance of all rows."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for z in parts:
        count, total, square = count + len(z), total + z.sum(0), square + z.mT @ z
    mean = total / count
    return hb.reference.Gaussian(mean, (square - count * torch.outer(mean, mean)) / (count - 1))


def between_gaussians(d: int, s: Training, n: int, seed: int) -> tuple[BridgeFit, float, list[Coupled]]:
    """The bridge of `affine.ends(d)` by networks, and its coupling over n pairs each way."""
    laws = ends(d)
    made, seconds = fit(laws, d, PROCESS, "full", s, seed)
    star = hb.reference.GaussianBridge(*laws, PROCESS).coupling()
    rows = []
    for to in ("end", "start"):
        found = moments(pairs(made, laws, to, n, 10_000 + seed))
        rows.append(Coupled(to, float((found.mean - star.mean).abs().max()), coupling_error(found, star)))
    return made, seconds, rows


def sampling_error(d: int, s: Training, n: int) -> dict[str, float]:
    """Standard errors, of one mean (the largest) and of the covariance (root mean square, relative as `coupling_error`), that the
    training data have from their law, and n pairs from theirs."""
    star = hb.reference.GaussianBridge(*ends(d), PROCESS).coupling()
    root = float(star.cov.diagonal().max().sqrt())
    spread = float((star.cov.square().sum() + star.cov.trace() ** 2).sqrt() / star.cov.norm())
    return {"data_mean": root / s.examples**0.5, "data_cov": spread / s.examples**0.5,
            "pairs_mean": root / n**0.5, "pairs_cov": spread / n**0.5}  # fmt: skip
