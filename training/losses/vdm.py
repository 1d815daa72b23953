"""Variational diffusion models: the bound as an integral or a sum over log-SNR, on any process.

With z_t = alpha x0 + sigma z and s = t_min, where the chain ends,

    -log p(x0) <= KL(q(z_T | x0) || prior) + E -log p(x0 | z_s) + diffusion loss,

the first part is `losses.prior_kl`, the second `reconstruction`. gamma = -2 lambda = log(sigma^2/alpha^2). Kingma et al. 2021.
"""

from __future__ import annotations

import math

import torch

from halfbridge.kernels.arguments import accumulation
from halfbridge.nets.adapter import Labels, Network, network_labels
from halfbridge.solvers.processes import Process
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.losses.decoders import Discretised
from halfbridge.training.losses.denoising import check_prediction, denoising_loss, noised, target, to_noise_error
from halfbridge.training.losses.schedule import LearnedSchedule, slope

__all__ = ["INTERIORS", "learned_vdm_loss", "reconstruction", "step_times", "vdm_discrete_loss", "vdm_loss"]

INTERIORS = ("variance", "bound")


def vdm_loss(
    net: Network,
    process: Process,
    x0: torch.Tensor,
    t: torch.Tensor,
    z: torch.Tensor,
    *,
    predicts: str = "noise",
    labels: Labels | None = None,
) -> torch.Tensor:
    """gamma'(t)/2 |noise error|^2 at the times t (batch,): (batch,), nats per unit of t. Kingma et al. 2021, eq. 17.

    Its integral over [t_min, T] is the diffusion loss in infinitely many steps: a mean over uniform t is that divided by
    T - t_min. It depends on the schedule through gamma(t_min) and gamma(T) only. Gradients reach a learned schedule's
    parameters through gamma', z_t and the labels; gamma' is (g/sigma)^2, by autograd for a learned schedule.
    """
    d = math.prod(x0.shape[1:])
    return 0.5 * d * denoising_loss(net, process, x0, t, z, predicts=predicts, weighting="likelihood", labels=labels)


def step_times(process: Process, i: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, t) = (t_{i-1}, t_i) of the grid t_i = t_min + (T - t_min) i/steps, i = 1..steps, float64."""
    if not ((i >= 1) & (i <= steps) & (i == i.round())).all():
        bad = i[~((i >= 1) & (i <= steps) & (i == i.round()))].flatten()[0].item()
        raise ValueError(f"i holds {bad:g}, but the steps are the whole numbers 1 .. {steps}")
    i = i.double()
    place, before = i / steps, (i - 1.0) / steps
    low, high = process.t_min, process.T
    return low * (1.0 - before) + high * before, low * (1.0 - place) + high * place


def vdm_discrete_loss(
    net: Network,
    process: Process,
    x0: torch.Tensor,
    i: torch.Tensor,
    z: torch.Tensor,
    *,
    steps: int,
    predicts: str = "noise",
    labels: Labels | None = None,
) -> torch.Tensor:
    """(e^{gamma_t - gamma_s} - 1)/2 |noise error|^2 for the steps i (batch,) of `step_times`, at t = t_i: (batch,), nats.

    It is KL(q(z_s | z_t, x0) || q(z_s | z_t, x0 = D)), a term of DDPM's bound with the variance "posterior"; their sum
    over i = 1..steps is the diffusion loss. Kingma et al. 2021, eq. 14.
    """
    s, t = step_times(process, i.to(x0.device), steps)
    d = math.prod(x0.shape[1:])

    def weight(time: torch.Tensor) -> torch.Tensor:
        return 0.5 * d * torch.expm1(2.0 * (process.half_log_snr(s) - process.half_log_snr(time)))

    return denoising_loss(net, process, x0, t, z, predicts=predicts, weighting=weight, labels=labels)


def reconstruction(process: Process, x0: torch.Tensor, levels: Discretised | None = None) -> torch.Tensor:
    """The mean over z of -log p(x0 | z_s) at z_s = alpha x0 + sigma z, s = t_min: (batch,), nats, float64.

    levels None   p = N(x0; z_s/alpha, (sigma/alpha)^2 I); the mean is d/2 (log(2 pi) + 1 + gamma_s)
    levels        p(x0 | z_s) proportional to q(z_s | x0) over the levels of each element (Kingma et al. 2021, eq. 8)
    """
    d = math.prod(x0.shape[1:])
    start = torch.tensor(process.t_min, dtype=torch.float64, device=x0.device)
    gamma: torch.Tensor = -2.0 * process._half_log_snr(start)
    if levels is None:
        return 0.5 * d * (math.log(2.0 * math.pi) + 1.0 + gamma).expand(len(x0))
    return level_nll(gamma, levels)[levels.index(x0).long()].flatten(1).sum(dim=1)


def level_nll(gamma: torch.Tensor, levels: Discretised) -> torch.Tensor:
    """The mean over z of -log p(level k | its centre + e^{gamma/2} z), (levels,), float64, differentiable in gamma.

    With r = spacing e^{-gamma/2} the level k + j has e^{z j r - (j r)^2/2} times the probability of k, so that all levels take
    one running sum over j. The mean is the trapezium rule at 81 points, 1e-9 off at most: the logarithm is analytic within
    pi/r of the real line, and where r is large it leaves 0 in the tails of z only.
    """
    z = torch.linspace(-8.0, 8.0, 81, dtype=torch.float64, device=gamma.device)
    share = torch.softmax(-0.5 * z.square(), dim=0)
    j = torch.arange(1, levels.levels, dtype=torch.float64, device=gamma.device)[:, None]
    r = levels.spacing * torch.exp(-0.5 * gamma)
    nearer = torch.exp(z * j * r - 0.5 * (j * r).square()).cumsum(dim=0)  # row n - 1: of the n levels next above
    above = torch.cat([torch.zeros_like(z)[None], nearer])
    below = above.flip(1)  # -z
    return (share * torch.log1p(below + above.flip(0))).sum(dim=1)


def learned_vdm_loss(
    net: Network,
    schedule: LearnedSchedule,
    x0: torch.Tensor,
    t: torch.Tensor,
    z: torch.Tensor,
    *,
    predicts: str = "noise",
    labels: Labels | None = None,
    interior: str = "variance",
) -> torch.Tensor:
    """`vdm_loss` under `schedule.process()`, (batch,), nats per unit of t, with a choice of what trains the schedule.

    interior "bound": the gradient of the loss, whose mean over t is 0 for all of the schedule but its two ends.
    interior "variance": the schedule's shape between its ends gets the gradient of loss^2/d in place of the loss's, by the
        chain rule through gamma: it lowers the estimate's variance E loss^2 - (E loss)^2, whose second part does not depend
        on the shape. The ends and the network get the loss's own. Kingma et al. 2021, appendix I.2.
    labels: default lambda(t) = -gamma/2, through which gradients flow too.
    """
    check_choice("interior", interior, INTERIORS)
    shape, rate = (v.clone() for v in slope(schedule.shape, t.double()))
    span = schedule.log_span.double().exp()
    gamma = schedule.gamma_0.double() + span * shape

    work = accumulation(x0.dtype)
    wide = gamma.view(-1, *[1] * (x0.ndim - 1))
    alpha, sigma = torch.sigmoid(-wide).sqrt(), torch.sigmoid(wide).sqrt()
    x_t = noised(alpha.to(work), sigma.to(work), x0, z)
    out = net(x_t, network_labels((lambda _: -0.5 * gamma) if labels is None else labels, t, x0))
    check_prediction(out, x0)
    error = out - target(predicts, alpha.to(work), sigma.to(work), x0.to(work), z.to(work))
    weight = 0.5 * span * rate * to_noise_error(predicts, alpha, sigma).flatten() ** 2
    loss = weight.to(work) * error.flatten(1).square().sum(dim=1)

    if interior == "variance":
        factor = (2.0 / math.prod(x0.shape[1:]) * loss.detach()).double()
        for part in (shape, rate):
            if part.requires_grad:
                part.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return loss
