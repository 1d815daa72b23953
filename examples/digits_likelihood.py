"""Bits per dimension of held-out digits: of the network by its flow and by its bound, and of simpler models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

import halfbridge as hb

if TYPE_CHECKING:
    from digits import Digits
    from digits_settings import Settings

    from halfbridge.training.objectives import Denoising

CHUNK, BOUND_CHUNK = 125, 20
LEVELS = 17
PIXELS = 64


def all_bits(
    net: torch.nn.Module, objective: Denoising, digits: Digits, s: Settings, seed: int, echo: Callable[[str], Any]
) -> dict[str, Any]:
    """name -> {"mean", "std_error"} in bits a pixel; std_error is of the mean over digits, with what else was drawn.

    Conditional is log p(x | class), the others log p(x).
    """
    x, classes = digits.fresh(digits.held_out)[: s.scored], digits.classes(digits.held_out)[: s.scored]
    train, train_classes = digits.fresh(digits.train)[: s.scored], digits.classes(digits.train)[: s.scored]
    grid = hb.grids.half_log_snr(objective.process, s.flow_steps)

    def flow(x: torch.Tensor, classes: torch.Tensor | None, divergence: Any = None, **how: Any) -> torch.Tensor:
        how = how or {"solver": hb.DPMSolver(order=3), "grid": grid}
        divergence = divergence or hb.Hutchinson(probes=1, seed=seed)
        parts = []
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            field = objective.field(net, classes=None if classes is None else classes[rows])
            parts.append(hb.log_likelihood(field, x[rows], divergence, first=start, **how).log_prob)
        return hb.bits_per_dim(torch.cat(parts), PIXELS, levels=LEVELS)

    def bound(x: torch.Tensor, classes: torch.Tensor | None) -> dict[str, float]:
        parts = []
        for k, start in enumerate(range(0, len(x), BOUND_CHUNK)):  # a seed each: the times of a batch are common to it
            rows = slice(start, start + BOUND_CHUNK)
            field = objective.field(net, classes=None if classes is None else classes[rows])
            log_prob = hb.elbo(field, x[rows], samples=s.bound_samples, seed=seed + k).log_prob
            parts.append(hb.bits_per_dim(log_prob, PIXELS, levels=LEVELS))
        means = torch.stack([part.mean() for part in parts])
        return summary(torch.cat(parts)) | {"std_error": float(means.std() / math.sqrt(len(means)))}

    found = {"uniform": {"mean": math.log2(LEVELS), "std_error": 0.0}, **baselines(digits, s)}
    models: dict[str, Callable[[], dict[str, float]]] = {
        "flow": lambda: summary(flow(x, None)),
        "bound": lambda: bound(x, None),
        "flow, class given": lambda: summary(flow(x, classes)),
        "bound, class given": lambda: bound(x, classes),
        "flow, class given, training digits": lambda: summary(flow(train, train_classes)),
    }
    with torch.no_grad():
        for name, value in models.items():
            found[name] = value()
            echo(f"{name}: {found[name]['mean']:.3f} +- {found[name]['std_error']:.3f} bits a pixel")
        few = x[: s.checked]
        plain = flow(few, None)
        gap = flow(few, None, hb.Hutchinson(probes=s.checked_probes, seed=seed)) - flow(few, None, "exact")
        fine = plain - flow(few, None, solver="dopri5", rtol=s.tolerance, atol=s.tolerance)
    checks = {
        "digits": len(few),
        "hutchinson": summary(gap),
        "solver": {"mean": float(fine.mean()), "largest": float(fine.abs().max())},
    }
    return {"digits": len(x), "models": found, "checks": checks}


def summary(bits: torch.Tensor) -> dict[str, float]:
    return {"mean": float(bits.mean()), "std_error": float(bits.std() / math.sqrt(len(bits)))}


def baselines(digits: Digits, s: Settings) -> dict[str, dict[str, Any]]:
    """Models without a network, fitted to the training digits, of the same held-out digits.

    Pixels by themselves: the frequency of each level at each pixel, one added to each count. A Gaussian of the mean and
    covariance of the dequantised digits. Kernels: N(digit, h^2 I) around each training digit, h the best for leaving
    each of them out in turn.
    """
    held_out, train = digits.held_out, digits.train
    assert held_out.pixels is not None
    assert train.pixels is not None
    levels, found = held_out.pixels[: s.scored].flatten(1).long(), {}
    counts = torch.stack([(train.pixels.flatten(1) == k).sum(dim=0) for k in range(LEVELS)]).double() + 1.0
    frequency = (counts / counts.sum(dim=0)).log2()
    found["pixels by themselves"] = summary(-frequency.gather(0, levels).mean(dim=1))

    x, points = digits.fresh(held_out)[: s.scored].flatten(1).double(), digits.fresh(train).flatten(1).double()
    gaussian = hb.reference.Gaussian(points.mean(dim=0), torch.cov(points.T))
    found["Gaussian"] = summary(hb.bits_per_dim(gaussian.log_prob(x), PIXELS, levels=LEVELS))

    square = torch.cdist(points, points).square().fill_diagonal_(math.inf)
    widths = torch.logspace(-1.2, -0.2, 21, base=10.0, dtype=torch.float64)
    h = max((float(w) for w in widths), key=lambda w: float(kernels(square, w, len(points) - 1).mean()))
    log_prob = kernels(torch.cdist(x, points).square(), h, len(points))
    found["kernels"] = summary(hb.bits_per_dim(log_prob, PIXELS, levels=LEVELS)) | {"width": h}
    return found


def kernels(square: torch.Tensor, h: float, count: int) -> torch.Tensor:
    """log of the mean of `count` Gaussians, from squared distances (n, ...) to their middles."""
    return (
        torch.logsumexp(-square / (2.0 * h * h), dim=1)
        - math.log(count)
        - 0.5 * PIXELS * math.log(2.0 * math.pi * h * h)
    )
