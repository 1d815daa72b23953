"""Denoising score matching for the four parametrisations."""

from __future__ import annotations

import torch

from halfbridge.kernels.arguments import accumulation
from halfbridge.nets.adapter import Labels, Network, default_labels, network_labels
from halfbridge.solvers.field import PREDICTIONS
from halfbridge.solvers.processes import Process
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.losses.weighting import Weighting, noise_weight

__all__ = ["denoising_loss", "target", "to_noise_error"]


def to_noise_error(predicts: str, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """|noise error| per |prediction error| at equal x_t: 1, sigma, alpha / sigma or alpha / (alpha^2 + sigma^2)."""
    check_predicts(predicts)
    match predicts:
        case "noise":
            return torch.ones_like(sigma)
        case "score":
            return sigma
        case "data":
            return alpha / sigma
        case "velocity":
            return alpha / (alpha**2 + sigma**2)
    raise AssertionError(predicts)


def target(predicts: str, alpha: torch.Tensor, sigma: torch.Tensor, x0: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The unbiased target: z, -z / sigma, x0 or alpha z - sigma x0; its mean given x_t is what the field is."""
    check_predicts(predicts)
    match predicts:
        case "noise":
            return z
        case "score":
            return -z / sigma
        case "data":
            return x0
        case "velocity":
            return alpha * z - sigma * x0
    raise AssertionError(predicts)


def denoising_loss(
    net: Network,
    process: Process,
    x0: torch.Tensor,
    t: torch.Tensor,
    z: torch.Tensor,
    *,
    predicts: str = "noise",
    weighting: Weighting = "simple",
    labels: Labels | None = None,
) -> torch.Tensor:
    """w(t) |noise error|^2 / d for each sample: denoising score matching (Vincent 2011; Song et al. 2021, eq. 7).

    With x_t = alpha x0 + sigma z, the network's output is compared with its own target (z, the conditional score, x0 or
    the velocity), and the squared error is weighted so that the loss is the same number for all four ways of stating
    one prediction. Its minimiser is the conditional mean of the target, whatever the weight.

    net: net(x_t, labels(t)) -> like x_t. x0, z: (batch, *shape), z standard normal. t: (batch,) times, computed with in
    float64. labels: as in `nets.as_field`.
    weighting: "simple" (1 on the noise, sigma^2 on the score), "likelihood" (g^2 on the score: d/2 of its integral over t
    is the KL rate), "uniform" (1 on the score), "min_snr", another name of WEIGHTINGS, a `Weight`, or a function from the
    float64 times to the weight of the noise error. Returns (batch,), in x0's dtype (float32 for half states, whose errors
    are formed in it): take `.mean()`, or weight by 1 / p(t) for times drawn from another density (`draw_times`).
    """
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}; give one time for each of the {x0.shape[0]} samples of x0")
    t = t.double()
    alpha, sigma = process.alpha(t), process._sigma(t)  # the first looks at the times, for both
    scale = noise_weight(weighting, process, t) * to_noise_error(predicts, alpha, sigma) ** 2

    work = accumulation(x0.dtype)
    wide_alpha, wide_sigma = (c.to(work).view(-1, *[1] * (x0.ndim - 1)) for c in (alpha, sigma))
    x_t = noised(wide_alpha, wide_sigma, x0, z)
    out = net(x_t, network_labels(default_labels(process) if labels is None else labels, t, x0))
    check_prediction(out, x0)
    error = out - target(predicts, wide_alpha, wide_sigma, x0.to(work), z.to(work))
    return scale.to(work) * error.flatten(1).square().mean(dim=1)


def noised(alpha: torch.Tensor, sigma: torch.Tensor, x0: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """alpha x0 + sigma z in x0's dtype, formed in that of alpha and sigma: `Process.perturb` where these are known."""
    if z.shape != x0.shape:
        raise ValueError(f"`z` has shape {tuple(z.shape)} but `x0` has {tuple(x0.shape)}; draw z like x0")
    if not x0.is_floating_point():
        raise TypeError(f"`x0` has dtype {x0.dtype}; convert it to a floating dtype first")
    return (alpha * x0.to(alpha.dtype) + sigma * z.to(alpha.dtype)).to(x0.dtype)


def check_prediction(out: torch.Tensor, x0: torch.Tensor) -> None:
    """ValueError unless the network returned what has x0's shape."""
    if out.shape != x0.shape:
        raise ValueError(f"the network returned shape {tuple(out.shape)} for x of shape {tuple(x0.shape)}")


def check_predicts(predicts: str) -> None:
    """ValueError for what no network predicts."""
    check_choice("predicts", predicts, PREDICTIONS)
