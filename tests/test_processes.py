"""Closed forms of the processes against mpmath at 50 digits, from t = 1e-8 to T."""

import math

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from halfbridge.solvers.processes import EDM, OU, VE, VP, Brownian, CosineVP, DiscreteVP, SubVP

mpmath.mp.dps = 50

BETAS = np.linspace(1e-4, 0.02, 1000)


def linear_clock(p):
    return lambda t: p.beta_min * t + (mpf(p.beta_max) - p.beta_min) * t**2 / 2


def vp(p):
    B = linear_clock(p)
    return lambda t: mpmath.exp(-B(t) / 2), lambda t: mpmath.sqrt(1 - mpmath.exp(-B(t)))


def sub_vp(p):
    B = linear_clock(p)
    return lambda t: mpmath.exp(-B(t) / 2), lambda t: 1 - mpmath.exp(-B(t))


def cosine(p):
    def alpha(t):
        return mpmath.cos(mpmath.pi / 2 * (t + p.s) / (1 + mpf(p.s))) / mpmath.cos(mpmath.pi / 2 * p.s / (1 + mpf(p.s)))

    return alpha, lambda t: mpmath.sqrt(1 - alpha(t) ** 2)


def ve(p):
    low, ratio = mpf(p.sigma_min), mpf(p.sigma_max) / p.sigma_min
    return lambda t: mpf(1), lambda t: low * mpmath.sqrt(ratio ** (2 * t) - 1)


def ou(p):
    theta, g = mpf(p.theta), mpf(p.g)
    return lambda t: mpmath.exp(-theta * t), lambda t: g * mpmath.sqrt((1 - mpmath.exp(-2 * theta * t)) / (2 * theta))


def discrete(p):
    log_alphas = [mpf(0)]
    for beta in p.betas:
        log_alphas.append(log_alphas[-1] + mpmath.log(1 - mpf(beta)) / 2)

    def log_alpha(t):
        k = max(int(mpmath.ceil(t)), 1)
        return log_alphas[k - 1] + (t - k + 1) * (log_alphas[k] - log_alphas[k - 1])

    return lambda t: mpmath.exp(log_alpha(t)), lambda t: mpmath.sqrt(1 - mpmath.exp(2 * log_alpha(t)))


CASES = [
    (VP(), vp),
    (VP(beta_min=2.0, beta_max=2.0), vp),
    (CosineVP(), cosine),
    (CosineVP(s=1e-4), cosine),
    (SubVP(), sub_vp),
    (VE(), ve),
    (VE(sigma_min=0.5, sigma_max=0.6), ve),
    (EDM(), lambda p: (lambda t: mpf(1), lambda t: t)),
    (OU(), ou),
    (OU(theta=3.0, g=0.1, T=20.0), ou),
    (Brownian(g=0.3, T=2.0), lambda p: (lambda t: mpf(1), lambda t: mpf(p.g) * mpmath.sqrt(t))),
    (DiscreteVP(BETAS), discrete),
    (DiscreteVP([0.3, 0.01, 0.999, 0.05]), discrete),
]
every_process = pytest.mark.parametrize(("p", "reference"), CASES, ids=[repr(p) for p, _ in CASES])


def times_of(p, n=40):
    """From 1e-8 to T, evenly and by powers, and the crossing of half_log_snr = 0."""
    times = [*np.geomspace(1e-8, p.T, n), *np.linspace(1e-8, p.T, n), p.time_at(0.0)]
    return [min(float(t), p.T) for t in times]


def on_float(f):
    return f


def on_tensor(f):
    return lambda t: f(torch.tensor([t], dtype=torch.float64)).item()


both = pytest.mark.parametrize("on", [on_float, on_tensor])


@both
@every_process
def test_alpha_sigma_and_nu_are_exact_to_1e_13(p, reference, on):
    alpha, sigma = reference(p)
    for t in times_of(p):
        a, s = alpha(mpf(t)), sigma(mpf(t))
        assert abs(on(p.alpha)(t) / a - 1) < 1e-13
        assert abs(on(p.sigma)(t) / s - 1) < 1e-13
        assert abs(on(p.nu)(t) / (s / a) - 1) < 1e-13


@both
@every_process
def test_half_log_snr_is_exact_to_1e_13(p, reference, on):
    alpha, sigma = reference(p)
    for t in times_of(p):
        exact = mpmath.log(alpha(mpf(t)) / sigma(mpf(t)))
        assert abs(on(p.half_log_snr)(t) - exact) < 1e-13 * max(1, abs(exact))


@both
@every_process
def test_time_at_inverts_half_log_snr_to_1e_12(p, reference, on):
    for t in times_of(p):
        assert abs(on(p.time_at)(on(p.half_log_snr)(t)) / t - 1) < 1e-12


@both
@every_process
def test_drift_rate_and_diffusion_are_exact_to_1e_13(p, reference, on):
    """a = (log alpha)' and g^2 = -2 sigma^2 lambda', at many digits, from below as the pieces of DiscreteVP are."""
    alpha, sigma = reference(p)

    def slope(f, t):
        with mpmath.workdps(90):
            return mpmath.diff(f, mpf(t), direction=-1)

    for t in times_of(p, 12):
        a = slope(lambda u: mpmath.log(alpha(u)), t)
        g = mpmath.sqrt(-2 * sigma(mpf(t)) ** 2 * slope(lambda u: mpmath.log(alpha(u) / sigma(u)), t))
        assert abs(on(p.drift_rate)(t) - a) <= 1e-13 * abs(a)
        assert abs(on(p.diffusion)(t) / g - 1) < 1e-13


@every_process
@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.3, 3.0])
def test_transition_keeps_its_digits_as_s_nears_t(p, reference, gap):
    alpha, sigma = reference(p)
    for s in times_of(p, 12):
        t = s * (1 + gap)
        if t > p.T:
            continue
        r = alpha(mpf(t)) / alpha(mpf(s))
        v = sigma(mpf(t)) ** 2 - r**2 * sigma(mpf(s)) ** 2
        got = p.transition(s, t)
        assert abs(got[0] / r - 1) < 1e-13
        assert abs(got[1] / v - 1) < 1e-13


@every_process
def test_transition_across_the_whole_range_and_from_the_data(p, reference):
    for t in times_of(p, 12):
        r, v = p.transition(0.0, t)
        assert r == pytest.approx(p.alpha(t), rel=1e-14)
        assert v == pytest.approx(p.sigma(t) ** 2, rel=1e-13)


def test_cosine_transition_keeps_its_digits_next_to_its_singular_end():
    p, s, t = CosineVP(), 0.99999, 0.999995
    alpha, sigma = cosine(p)
    r = alpha(mpf(t)) / alpha(mpf(s))
    assert abs(p.transition(s, t)[0] / r - 1) < 1e-13
    assert abs(p.transition(s, t)[1] / (sigma(mpf(t)) ** 2 - r**2 * sigma(mpf(s)) ** 2) - 1) < 1e-13


@every_process
def test_general_transition_formula_agrees_with_the_closed_form(p, reference):
    """The default of `Process`, which LinearProcess uses, away from where it loses digits."""
    from halfbridge.solvers.processes import Process

    for s, t in [(0.0, 0.5 * p.T), (0.2 * p.T, 0.7 * p.T)]:
        assert Process._transition(p, s, t) == pytest.approx(p.transition(s, t), rel=1e-12)


@both
@every_process
def test_data_end_has_its_limits(p, reference, on):
    assert on(p.alpha)(0.0) == 1.0
    assert on(p.sigma)(0.0) == 0.0
    assert on(p.nu)(0.0) == 0.0
    assert on(p.half_log_snr)(0.0) == math.inf
    assert on(p.time_at)(math.inf) == 0.0
    assert math.isfinite(on(p.drift_rate)(0.0))
    assert math.isfinite(on(p.diffusion)(0.0))


@every_process
def test_a_and_g_are_consistent_with_alpha_and_sigma(p, reference):
    """d alpha/dt = a alpha, d sigma^2/dt = 2 a sigma^2 + g^2, by autograd through the tensor path."""
    t = torch.linspace(1e-3 * p.T, 0.99 * p.T, 57, dtype=torch.float64, requires_grad=True)
    alpha, variance = p.alpha(t), p.sigma(t) ** 2
    (alpha_slope,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    (variance_slope,) = torch.autograd.grad(variance.sum(), t)
    a, g = p.drift_rate(t), p.diffusion(t)
    torch.testing.assert_close(alpha_slope, a * alpha, rtol=1e-11, atol=0)
    torch.testing.assert_close(variance_slope, 2 * a * variance + g**2, rtol=1e-11, atol=1e-13)


@every_process
def test_time_at_is_differentiable(p, reference):
    t = torch.linspace(0.1037 * p.T, 0.91 * p.T, 7, dtype=torch.float64, requires_grad=True)
    (round_trip,) = torch.autograd.grad(p.time_at(p.half_log_snr(t)).sum(), t)
    torch.testing.assert_close(round_trip, torch.ones_like(t), rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("p", "std"),
    [
        (VP(), 1.0),
        (CosineVP(), 1.0),
        (SubVP(), 1.0),
        (DiscreteVP(BETAS), 1.0),
        (VE(), math.sqrt(100.0**2 - 0.02**2)),
        (EDM(), 80.0),
        (OU(theta=2.0, g=3.0), 1.5),
        (Brownian(g=3.0, T=4.0), 6.0),
    ],
    ids=repr,
)
def test_prior_is_the_stationary_law_or_that_of_the_noise_at_T(p, std):
    assert p.prior_std == pytest.approx(std, rel=1e-15)


@pytest.mark.parametrize(
    ("p", "T", "t_min"),
    [
        (VP(), 1.0, 1e-3),
        (CosineVP(), 0.9946, 1e-3),
        (SubVP(), 1.0, 1e-3),
        (VE(), 1.0, 1e-5),
        (EDM(), 80.0, 0.002),
        (EDM(0.01, 10.0), 10.0, 0.01),
        (OU(), 5.0, 1e-3),
        (Brownian(), 1.0, 1e-3),
        (DiscreteVP(BETAS), 1000.0, 1.0),
    ],
    ids=repr,
)
def test_range_of_times_is_the_contracts(p, T, t_min):
    assert (p.T, p.t_min) == (T, t_min)


def test_discrete_chain_has_the_products_of_one_minus_beta_at_its_steps():
    betas = [0.1, 0.25, 0.5]
    p = DiscreteVP(betas)
    assert [p.alpha(k) ** 2 for k in (1, 2, 3)] == pytest.approx([0.9, 0.9 * 0.75, 0.9 * 0.75 * 0.5], rel=1e-15)
    assert p.alpha(1.5) ** 2 == pytest.approx(0.9 * math.sqrt(0.75), rel=1e-15)
    for k, piece in [(0.0, 0), (0.5, 0), (1.0, 0), (1.0 + 1e-12, 1), (2.0, 1), (3.0, 2)]:
        assert p.drift_rate(k) == pytest.approx(math.log(1 - betas[piece]) / 2, rel=1e-15)
    assert p.transition(1, 2) == pytest.approx((math.sqrt(0.75), 0.25), rel=1e-15)


@both
def test_discrete_chain_rounds_a_level_just_past_its_end_to_T_and_refuses_others(on):
    for p in (DiscreteVP([0.1, 0.25]), DiscreteVP([0.3, 0.999, 0.9999])):
        last = p.half_log_snr(p.T)
        assert on(p.time_at)(last - 1e-9) == p.T
        with pytest.raises(ValueError, match="below"):
            on(p.time_at)(last - 2e-6 * max(1, abs(last)))
