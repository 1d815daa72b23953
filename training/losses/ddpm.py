"""DDPM: the simple loss, the terms of the evidence lower bound, and the hybrid loss that learns variances.

The reverse chain is p(x_s | x_t) = N(mu, tau^2 I), s = t - 1, mu the mean of q(x_s | x_t, x0) with the network's data
prediction in the place of x0. With beta~ = beta sigma_s^2/sigma_t^2 the variance of q,

    KL(q || p) = beta^2/(2 tau^2 (1 - beta) sigma_t^2) |noise error|^2 + d/2 (beta~/tau^2 - 1 - log(beta~/tau^2)).

Some accounts print the KL without its 1/2 or the weight without 1 - beta; the form above is Ho et al. 2020, eq. 12, and
follows from the KL of two normal laws. At the step 1 the first part is |x0 - mu|^2/(2 tau^2), the exponent of p(x0 | x1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from halfbridge.kernels.arguments import accumulation
from halfbridge.nets.adapter import Labels, Network, default_labels, network_labels
from halfbridge.solvers.processes import DiscreteVP, Process
from halfbridge.training.losses.choice import check_choice
from halfbridge.training.losses.decoders import Decoder, gaussian_nll
from halfbridge.training.losses.denoising import denoising_loss, noised, target, to_noise_error

__all__ = [
    "VARIANCES",
    "VLB_WEIGHT",
    "Variance",
    "check_chain",
    "check_steps",
    "ddpm_elbo",
    "ddpm_loss",
    "hybrid_loss",
    "prior_kl",
]

Variance = str | torch.Tensor | Sequence[float]
"""tau^2 of the steps 1..N: "posterior", "transition", or N positive numbers."""

VARIANCES = ("posterior", "transition")

VLB_WEIGHT = 0.001
"""Of the bound in the hybrid loss, by default. Nichol and Dhariwal 2021, section 3.1."""


def ddpm_loss(
    net: Network,
    process: DiscreteVP,
    x0: torch.Tensor,
    i: torch.Tensor,
    z: torch.Tensor,
    *,
    predicts: str = "noise",
    labels: Labels | None = None,
) -> torch.Tensor:
    """|noise error|^2/d at the steps i (batch,) in 1..N: DDPM's simple loss, (batch,). Ho et al. 2020, eq. 14, a mean over
    the d dimensions as in their code. The rest as in `denoising_loss`. ValueError for steps that are not whole."""
    check_steps(process, i)
    return denoising_loss(net, process, x0, i, z, predicts=predicts, labels=labels)


def prior_kl(process: Process, x0: torch.Tensor) -> torch.Tensor:
    """L_N = KL(N(alpha x0, sigma^2 I) || N(0, prior_std^2 I)) at T, (batch,), nats, float64. Gradients
    reach the end of a learned schedule."""
    end = torch.tensor(process.T, dtype=torch.float64, device=x0.device)
    prior = process.prior_std
    alpha: torch.Tensor = process._alpha(end) / prior
    log_ratio: torch.Tensor = 2.0 * (process._sigma(end) / prior).log()
    square = x0.double().flatten(1).square().sum(dim=1)
    d = math.prod(x0.shape[1:])
    return 0.5 * (square * alpha**2 + d * (torch.expm1(log_ratio) - log_ratio))


def ddpm_elbo(
    net: Network,
    process: DiscreteVP,
    x0: torch.Tensor,
    i: torch.Tensor,
    z: torch.Tensor,
    *,
    predicts: str = "noise",
    variance: Variance = "posterior",
    learned: bool = False,
    decoder: Decoder = gaussian_nll,
    labels: Labels | None = None,
) -> torch.Tensor:
    """The term of step i of -ELBO(x0) at x_i = alpha x0 + sigma z, in nats, (batch,):

        i >= 2   L_{i-1} = KL(q(x_{i-1} | x_i, x0) || N(mu, tau_i^2 I))
        i = 1    L_0 = -log p(x0 | x_1), the decoder at the mean mu(x_1) = D and the variance tau_1^2

    -log p(x0) <= L_N + sum_i E L_{i-1}, with L_N = `prior_kl`. Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5.

    i: (batch,), whole steps in 1..N, float64. z: like x0, standard normal. variance: tau^2,
        "posterior"    beta~_i, exact for data that are a point; beta~_1 = 0 is replaced by beta~_2 (as in Ho et al.'s code)
        "transition"   beta_i, exact for N(0, I)
        N numbers      any, tau_1^2 .. tau_N^2
    learned: True if the network returns (batch, 2 C, ...), a prediction and then w for each element, with
        log tau^2 = v log beta_i + (1 - v) log beta~_i, v = (w + 1)/2 (Nichol and Dhariwal 2021, eq. 15, with their code's
        scale of w, which diffusers calls "learned_range"). `variance` is then not used.
    decoder: -log of the density or probability of x0 under N(mean, tau^2), summed over elements: `gaussian_nll`, or
        `losses.Discretised(...)` for data on levels.
    Sums are formed in x0's dtype (float32 for half states), coefficients in float64. ValueError for what does not fit.
    """
    chain = _Chain(process, x0, i, z, predicts)
    error, w = chain.call(net, labels, learned)
    return chain.term(error, chain.log_variance(variance, w), decoder)


def hybrid_loss(
    net: Network,
    process: DiscreteVP,
    x0: torch.Tensor,
    i: torch.Tensor,
    z: torch.Tensor,
    *,
    predicts: str = "noise",
    vlb_weight: float = VLB_WEIGHT,
    decoder: Decoder = gaussian_nll,
    labels: Labels | None = None,
) -> torch.Tensor:
    """L_simple + vlb_weight N L_{i-1}/d for a network that returns (batch, 2 C, ...), with `ddpm_elbo`'s learned variance:
    the mean of the second part over i uniform is vlb_weight times the bound's sum over steps, in nats a dimension. Its
    gradient goes to the variances only: it sees the prediction detached. Nichol and Dhariwal 2021, eq. 16 (their code has the
    bound in bits: 1.44 as much).
    """
    chain = _Chain(process, x0, i, z, predicts)
    error, w = chain.call(net, labels, True)
    bound = chain.term(error.detach(), chain.log_variance("posterior", w), decoder)
    return error.flatten(1).square().mean(dim=1) + vlb_weight * process.T / math.prod(x0.shape[1:]) * bound


class _Chain:
    """The steps i of one loss: coefficients in DDPM's letters, (batch, 1, ...), float64."""

    def __init__(self, process: DiscreteVP, x0: torch.Tensor, i: torch.Tensor, z: torch.Tensor, predicts: str) -> None:
        check_steps(process, i)
        if i.shape != x0.shape[:1]:
            raise ValueError(f"i has shape {tuple(i.shape)}; give one step for each of the {x0.shape[0]} samples of x0")
        self.process, self.x0, self.i, self.z, self.predicts = process, x0, i.double(), z, predicts
        self.work = accumulation(x0.dtype)
        steps = self.wide(self.i)  # known to be steps: the formulas need not look at them again
        self.first = steps == 1.0
        self.alpha, self.sigma, self.beta = process._alpha(steps), process._sigma(steps), self.beta_at(steps)
        # beta~_i = beta_i sigma_{i-1}^2/sigma_i^2, at the step 1 that of the step 2
        later = steps.clamp(min=2.0)
        ratio = process._sigma(later - 1.0).log() - process._sigma(later).log()
        self.log_posterior: torch.Tensor = self.beta_at(later).log() + 2.0 * ratio

    def wide(self, c: torch.Tensor) -> torch.Tensor:
        return c.view(-1, *[1] * (self.x0.ndim - 1))

    def beta_at(self, steps: torch.Tensor) -> torch.Tensor:
        return -torch.expm1(2.0 * self.process._drift_rate(steps))

    def call(self, net: Network, labels: Labels | None, learned: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's error of the noise, and its w or None."""
        alpha, sigma = (c.to(self.work) for c in (self.alpha, self.sigma))
        x, shape = noised(alpha, sigma, self.x0, self.z), tuple(self.x0.shape)
        out = net(x, network_labels(default_labels(self.process) if labels is None else labels, self.i, self.x0))
        wanted = (shape[0], 2 * shape[1], *shape[2:]) if learned else shape
        if tuple(out.shape) != wanted:
            raise ValueError(
                f"the network returned shape {tuple(out.shape)} for x of shape {shape}, but {wanted} is needed"
                + (": a prediction, then the variances, along dimension 1" if learned else "")
            )
        prediction, w = out.chunk(2, dim=1) if learned else (out, None)
        error = prediction - target(self.predicts, alpha, sigma, self.x0.to(self.work), self.z.to(self.work))
        sign = -1.0 if self.predicts in ("score", "data") else 1.0
        return (sign * to_noise_error(self.predicts, self.alpha, self.sigma)).to(self.work) * error, w

    def log_variance(self, variance: Variance, w: torch.Tensor | None) -> torch.Tensor:
        """log tau^2, broadcast to x0."""
        log_beta = self.beta.log()
        if w is not None:
            share = 0.5 * (w.double() + 1.0)
            return share * log_beta + (1.0 - share) * self.log_posterior
        values = check_variances(self.process, variance)
        if values is not None:
            return self.wide(values.to(self.i)[self.i.long() - 1]).log()
        return self.log_posterior if variance == "posterior" else log_beta

    def term(self, noise_error: torch.Tensor, log_variance: torch.Tensor, decoder: Decoder) -> torch.Tensor:
        """L_{i-1} of each sample."""
        weight = self.beta**2 / (1.0 - self.beta) / self.sigma**2
        log_ratio = self.log_posterior - log_variance
        constant = torch.expm1(log_ratio) - log_ratio
        kl = 0.5 * ((weight * torch.exp(-log_variance)).to(self.work) * noise_error.square() + constant.to(self.work))
        terms = kl.flatten(1).sum(dim=1)
        # L_0 in all rows, since looking for those of the step 1 waits for a GPU; in others it is that of a mean at x0
        x0 = self.x0.to(self.work)
        mean = x0 - torch.where(self.first, (self.sigma / self.alpha).to(self.work) * noise_error, 0.0)
        last: torch.Tensor = decoder(x0, mean, log_variance.to(self.work))
        return torch.where(self.first.flatten(), last, terms)


def check_chain(process: Process) -> None:
    """ValueError unless the process is a discrete one."""
    if not isinstance(process, DiscreteVP):
        raise ValueError(
            f"process = {process!r} has no steps; pass hb.DiscreteVP(betas), or take a loss in continuous time"
        )


def check_steps(process: Process, i: torch.Tensor) -> None:
    """ValueError unless the process is a discrete one and i whole steps of it."""
    check_chain(process)
    if i.numel() and not ((i >= 1) & (i <= process.T) & (i == i.round())).all():
        bad = i[~((i >= 1) & (i <= process.T) & (i == i.round()))].flatten()[0].item()
        raise ValueError(f"i holds {bad:g}, but the steps are the whole numbers 1 .. {process.T:g}")


def check_variances(process: DiscreteVP, variance: Variance) -> torch.Tensor | None:
    """None for a name, else N positive numbers, float64. ValueError."""
    if isinstance(variance, str):
        check_choice("variance", variance, VARIANCES, f"{process.T:g} positive numbers, one for each step")
        return None
    values = torch.as_tensor(variance, dtype=torch.float64)
    if values.shape != (int(process.T),) or not ((values > 0) & values.isfinite()).all():
        raise ValueError(
            f"variance = {variance!r} must be {process.T:g} positive finite numbers, one for each step, or one of "
            f"{', '.join(map(repr, VARIANCES))}"
        )
    return values
