"""Lower bounds on the log-density of the reverse SDE's samples.

With eps = -sigma score, S = sqrt(alpha^2 + sigma^2), u = log nu and du = g^2/(2 sigma^2) dt, theorem 3 of Song et al. 2021b
for a point x at time s reads

    log p_s(x) >= E log prior(X_T) + d log(S_T/S_s) - int E[ |eps|^2 - 2 sigma div eps + d k^2 ] du,   k = sigma/S,

over X_t = r x + sqrt(v) z, the forward transition from s to t. Since E div eps = E eps.z/sqrt(v) (Stein), the second term is
also -2 sigma eps.z/sqrt(v): the denoising form, its two terms that diverge as t -> s combined. d k^2 is what a unit normal
law needs to make the integrand vanish, and that law's multiple of |z|^2 - d, of mean 0, is taken off the noise.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from halfbridge.kernels import normal
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.philox import check_first, check_seed, words
from halfbridge.solvers.density_flow import DensityFlow, log_spread
from halfbridge.solvers.divergence import Hutchinson, HutchPP, check_divergence, mean_and_error, summed
from halfbridge.solvers.draws import BOUND, TIMES
from halfbridge.solvers.field import Field
from halfbridge.solvers.likelihood import Likelihood, check_points, check_start
from halfbridge.solvers.prior import check_prior, normal_log_prob, prior_log_prob

__all__ = ["elbo"]

MAX_SAMPLES = 1 << 24


def elbo(
    field: Field,
    x0: torch.Tensor,
    prior: Any = None,
    *,
    divergence: Literal["exact"] | Hutchinson | HutchPP | None = None,
    samples: int = 128,
    seed: int = 0,
    first: int = 0,
    t_min: float | None = None,
    reconstruct: bool = False,
) -> Likelihood:
    """A lower bound on log p(x0), p the density of the reverse SDE of the field, run from `prior` at T down to t_min:

        log p(x0) >= E log prior(X_T) - int_{t_min}^T E[g^2 |score|^2/2 + g^2 div score - div f] dt,

    X the forward process from x0, f = a x. The estimate is unbiased, so it exceeds the bound, and log p(x0), by chance only:
    `std_error` says by how much. At t_min, with the exact field and prior, it is log p(x0) itself. Song et al. 2021b,
    theorem 3; Kingma et al. 2021 (times by log-SNR).

    x0          (batch, *shape). The field is evaluated in x0's dtype; sums are float64
    prior       a law with log_prob(x), called with float64 x; default N(0, prior_std^2 I)
    divergence  None: the denoising form, with the noise that made X_t in place of the divergence. "exact", hb.Hutchinson,
                hb.HutchPP: the score-matching form, with fresh probes at each evaluation. Same bound, similar noise, but
                skewed upwards: 3.7 % of estimates for a 2-D mixture under VE exceeded log p by 3 std_error, where a normal
                law has 0.13 %. The denoising form is skewed downwards: take it where a bound is meant
    samples     draws of (t, z), each evaluated at z and -z: nfe = 2 samples, and half as much again to reconstruct. The times
                are stratified, uniform in half log-SNR: density g^2/sigma^2, where both integrands, centred as here, are of
                one size over all scales of the data (g^2 for the score-matching form misses what is finer than 1). z
                depends on (seed, global index) only, the times on the seed: so a sample's bound is the same in any batch,
                but their error is common to it, and a mean over much data wants batches with seeds of their own
    seed, first the random numbers; first is the global index of x0[0]
    t_min       default the process's
    reconstruct False: x0 is a point at time t_min, where sampling stops, and X starts there: the counterpart of
                `log_likelihood`. True: x0 is data at time 0, X_t ~ N(alpha x0, sigma^2 I), and the model ends with a draw
                of N(D(X_{t_min}), (sigma/alpha)^2 I), D the data prediction: E log of that over the transition's density
                is added (Song et al. 2021b, appendix), and the bound is on the density of what it returns

    std_error is of the estimate, from differences of neighbouring strata. It comes from few draws with heavy tails: in one
    dimension at 128 samples, one error in 25 exceeded three of it. Gradients flow to x0 and the field's parameters where
    they are recorded, through all evaluations. Raises ValueError or TypeError naming the argument for bad ones.
    """
    check_points(field, x0)
    if divergence is not None:
        check_divergence(divergence, "divergence")
    if isinstance(samples, bool) or not isinstance(samples, int) or not 4 <= samples <= MAX_SAMPLES:
        raise ValueError(f"samples = {samples!r} must be an int from 4 to {MAX_SAMPLES}, one in each stratum of times")
    if not isinstance(reconstruct, bool):
        raise ValueError(f"reconstruct = {reconstruct!r} must be True (x0 is data) or False (x0 is a point at t_min)")
    bound = _Bound(
        field,
        x0,
        check_first(first, len(x0)),
        check_seed(seed),
        divergence,
        check_start(field.process, t_min),
        reconstruct,
    )
    check_prior(prior, field.process, field.process.T, x0)
    if len(x0) == 0:
        none = x0.new_zeros(0, dtype=torch.float64)
        return Likelihood(none, none, 0)
    integral, variance = bound.integral(samples)
    end, end_variance = bound.end(prior, samples)
    start, start_variance = bound.start(samples)
    linear = bound.flow.d * (log_spread(field.process, field.process.T) - log_spread(field.process, bound.t_min))
    std_error = (variance + end_variance + start_variance).sqrt()
    return Likelihood(end + linear - integral + start, std_error, bound.flow.nfe)


class _Bound:
    """The three parts of the bound, each with the variance of its estimate, (batch,) float64."""

    def __init__(
        self, field: Field, x0: torch.Tensor, first: int, seed: int, method: Any, t_min: float, from_data: bool
    ) -> None:
        self.process, self.x0, self.seed, self.first, self.method = field.process, x0, seed, first, method
        self.t_min, self.from_data, self.draws = t_min, from_data, 0
        self.flow = DensityFlow(field, x0, method, first)
        self.x = x0.double().reshape(len(x0), self.flow.d)

    def normal(self) -> torch.Tensor:
        """The next z, (batch, d) float64."""
        dtype = accumulation(self.x0.dtype)
        z = normal(self.x0.shape, self.seed, BOUND + self.draws, self.first, dtype=dtype, device=self.x0.device)
        self.draws += 1
        return z.double().reshape(self.x.shape)

    def transition(self, t: float) -> tuple[float, float]:
        """(r, v) of X_t given x0."""
        if self.from_data:
            return self.process.alpha(t), self.process.sigma(t) ** 2
        return self.process.transition(self.t_min, t)

    def integral(self, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """int E[...] du, by an antithetic pair in each of `samples` strata.

        Half the squared differences of neighbours stand for the variances of both, plus that of their means (Rice 1984).
        """
        p = self.process
        low, high = -p.half_log_snr(self.t_min), -p.half_log_snr(p.T)
        values = []
        for j, uniform in enumerate(self.uniforms(samples)):
            place = (j + uniform) / samples
            values.append(self.integrand((1.0 - place) * low + place * high, j))
        found, weight = torch.stack(values), (high - low) / samples
        half = (found[1:] - found[:-1]).detach() ** 2 / 2.0
        variance = summed(half.T) + (half[0] + half[-1]) / 2.0  # the ends have one neighbour each
        return weight * summed(found.T), weight**2 * variance

    def integrand(self, u: float, j: int) -> torch.Tensor:
        """What stands in the integral at u, the mean of z and -z, less its part that is a multiple of |z|^2 - d."""
        p, d = self.process, self.flow.d
        t = min(max(p.time_at(-u), math.nextafter(self.t_min, p.T)), p.T)
        r, v = self.transition(t)
        sigma, spread = p.sigma(t), math.hypot(p.alpha(t), p.sigma(t))
        k2, share = (sigma / spread) ** 2, v / spread**2
        z, total = self.normal(), torch.zeros_like(self.x[:, 0])
        for i, sign in enumerate((1.0, -1.0)):
            x = r * self.x + sign * math.sqrt(v) * z
            if self.method is None:
                eps = self.flow.noise(t, x)
                second = sign * sigma / math.sqrt(v) * summed(eps * z)
            else:
                eps, div = self.flow.noise_and_divergence(t, x, draw=2 * j + i)
                second = sigma * mean_and_error(div)[0]
            total = total + 0.5 * (summed(eps**2) - 2.0 * second)
        multiple = k2 * (share - 2.0) if self.method is None else k2 * share
        return total + d * k2 - multiple * (summed(z**2) - d)

    def end(self, prior: Any, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """E log prior(X_T): that of N(0, prior_std^2 I) in closed form, and the mean difference to it."""
        std = self.process.prior_std
        r, v = self.transition(self.process.T)
        exact = normal_log_prob(r * self.x, std) - 0.5 * self.flow.d * v / std**2
        if prior is None:
            return exact, torch.zeros_like(exact)

        def difference(x: torch.Tensor) -> torch.Tensor:
            return prior_log_prob(prior, self.process, x.view(self.x0.shape)) - normal_log_prob(x, std)

        mean, variance = self.antithetic(r, v, samples, lambda x, z: difference(x))
        return exact + mean, variance

    def start(self, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        """E log N(x0; D, (sigma/alpha)^2 I)/p(X_s | x0) = d log alpha + E[eps.z - |eps|^2/2] at s = t_min, or nothing."""
        if not self.from_data:
            return self.x.new_zeros(len(self.x)), self.x.new_zeros(len(self.x))
        p, t, d = self.process, self.t_min, self.flow.d
        k2 = p.sigma(t) ** 2 / (p.alpha(t) ** 2 + p.sigma(t) ** 2)

        def term(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            eps = self.flow.noise(t, x)
            return summed(eps * z) - 0.5 * summed(eps**2) - k2 * (1.0 - 0.5 * k2) * (summed(z**2) - d)

        mean, variance = self.antithetic(*self.transition(t), samples // 2, term)
        return d * math.log(p.alpha(t)) + mean, variance

    def antithetic(self, r: float, v: float, pairs: int, value: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of value(r x + sqrt(v) z, z) over `pairs` of z and -z."""
        found = []
        for _ in range(pairs):
            z = self.normal()
            step = math.sqrt(v) * z
            found.append(0.5 * (value(r * self.x + step, z) + value(r * self.x - step, -z)))
        mean, error = mean_and_error(torch.stack(found))
        assert error is not None  # at least two pairs
        return mean, error**2

    def uniforms(self, n: int) -> list[float]:
        """n numbers in (0, 1), from the words of one counter each."""
        block, zero = torch.arange(n, device="cpu"), torch.zeros((), dtype=torch.int64, device="cpu")
        return [(w + 0.5) / 2.0**32 for w in words(block, zero + TIMES, (zero, zero), self.seed)[0].tolist()]
