"""Laws of training times: their densities, and what losses at them estimate."""

import math

import pytest
import torch
from exact_moments import PROCESSES, STEPS, by_name, every_time, exact_net, exact_sample, quadrature

import halfbridge as hb
from halfbridge.training.losses import (
    IDDPMLevels,
    Importance,
    LogNormal,
    LogUniform,
    VPLevels,
    correction,
    denoising_loss,
    draw_times,
    sample_times,
    time_span,
)

CONTINUOUS = PROCESSES[:-1]


def power(process, exponent=3.0):
    """A law of times with p proportional to (distance from the end)^..., by hand: t = low + span u^exponent."""
    low, span = process.t_min, process.T - process.t_min

    def density(t):
        return ((t - low) / span) ** (1.0 / exponent - 1.0) / (exponent * span)

    return Importance(lambda u: low + span * u**exponent, density)


def expected_loss(process, t, weighting="likelihood"):
    """E of the loss over data and noise at each time, for the exact field."""
    x0, z = exact_sample()
    x, times, noise = every_time(t, x0, z)
    loss = denoising_loss(exact_net(process), process, x, times, noise, weighting=weighting, labels=lambda t: t)
    return loss.view(len(t), -1).mean(dim=1)


def estimate(process, times, n, **options):
    """(mean, second moment) over u of what a trainer sums."""
    u, weights = quadrature(n)
    t, inverse = draw_times(process, u, times)
    values = expected_loss(process, t) * correction(process, inverse, **options)
    return (weights * values).sum().item(), (weights * values**2).sum().item()


@pytest.mark.parametrize("process", CONTINUOUS, **by_name)
@pytest.mark.parametrize("times", ["uniform", "likelihood"])
def test_the_inverse_density_is_the_slope_of_the_inverse_cdf(process, times):
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64).requires_grad_()
    t, inverse = draw_times(process, u, times)
    (slope,) = torch.autograd.grad(t.sum(), u)
    torch.testing.assert_close(slope.abs(), inverse.detach(), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("process", CONTINUOUS, **by_name)
def test_importance_sampling_estimates_the_integral_that_uniform_times_do_with_less_variance(process):
    for options in ({}, {"integral": True}):
        mean, square = estimate(process, "likelihood", 120, **options)
        # in t the integrand is as rough as 1/t near t_min: substitute t by a power of u
        plain = estimate(process, power(process, 6.0), 400, **options)
        assert mean == pytest.approx(plain[0], rel=1e-6)
    # E over uniform t of loss^2 = int loss^2 dt/span, again by substitution
    u, weights = quadrature(400)
    law = power(process, 6.0)
    t, inverse = law(u)
    uniform_square = (weights * expected_loss(process, t) ** 2 * inverse).sum().item() * time_span(process)
    assert square - mean**2 < 0.3 * (uniform_square - mean**2)


def test_importance_sampling_of_steps_estimates_the_sum_over_steps():
    n = int(STEPS.T)
    cells = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    steps, inverse = draw_times(STEPS, cells, "likelihood")
    k = torch.arange(1.0, n + 1.0, dtype=torch.float64)
    rate = (STEPS.diffusion(k) / STEPS.sigma(k)) ** 2
    share = torch.bincount(steps.long(), minlength=n + 1)[1:].double() / float(len(cells))
    torch.testing.assert_close(share, rate / rate.sum(), rtol=0.0, atol=1e-5)
    loss = expected_loss(STEPS, k)
    p = torch.stack([1.0 / inverse[steps == i][0] for i in k])
    total = (p * loss * correction(STEPS, 1.0 / p, integral=True)).sum().item()
    assert p.sum().item() == pytest.approx(1.0, rel=1e-12)
    assert total == pytest.approx(loss.sum().item(), rel=1e-12)
    mean = (p * loss * correction(STEPS, 1.0 / p)).sum().item()
    assert mean == pytest.approx(loss.mean().item(), rel=1e-12)
    assert time_span(STEPS) == n


def test_a_mean_over_uniform_times_is_uncorrected_and_an_integral_is_span_times_it():
    process = hb.EDM(0.1, 3.0)
    u = torch.tensor([0.2, 0.9], dtype=torch.float64)
    t, inverse = draw_times(process, u)
    assert torch.equal(t, 0.1 + u * (3.0 - 0.1))
    assert torch.equal(correction(process, inverse), torch.ones_like(u))
    assert torch.equal(correction(process, inverse, integral=True), torch.full_like(u, 3.0 - 0.1))
    assert draw_times(process, u, "half_log_snr").inverse_density is None
    assert correction(process, None) == 1.0


@pytest.mark.parametrize("process", CONTINUOUS, **by_name)
def test_half_log_snr_times_are_evenly_spaced_in_lambda_from_end_to_end(process):
    u = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    for times in ("half_log_snr", "likelihood"):
        t = sample_times(process, u, times)
        steps = process.half_log_snr(t).diff()
        torch.testing.assert_close(steps, steps.mean().expand(10), rtol=1e-6, atol=0.0)
        assert t[0].item() == pytest.approx(process.T, rel=1e-9)
        assert t[-1].item() == pytest.approx(process.t_min, rel=1e-9)


@pytest.mark.parametrize("process", [hb.VP(), hb.EDM(), hb.VE()], **by_name)
def test_the_laws_of_edms_table_have_their_quantiles(process):
    u = torch.tensor([0.5, 0.5 * (1.0 + math.erf(1.0 / math.sqrt(2.0))), 0.1], dtype=torch.float64)
    log_nu = -process.half_log_snr(sample_times(process, u, LogNormal(-0.7, 0.9)))
    expected = torch.tensor([-0.7, 0.2, -0.7 - 0.9 * 1.2815515655446004], dtype=torch.float64)
    torch.testing.assert_close(log_nu, expected, rtol=1e-9, atol=1e-9)
    log_nu = -process.half_log_snr(sample_times(process, u, LogUniform(0.05, 20.0)))
    torch.testing.assert_close(log_nu.exp(), 0.05 * 400.0**u, rtol=1e-9, atol=0.0)
    s = 1e-5 + (1.0 - 1e-5) * u
    nu = (torch.expm1(0.5 * 19.9 * s**2 + 0.1 * s)).sqrt()
    torch.testing.assert_close(
        (-process.half_log_snr(sample_times(process, u, VPLevels()))).exp(), nu, rtol=1e-9, atol=0
    )


def test_default_laws_are_the_papers():
    assert LogNormal() == LogNormal(-1.2, 1.2)
    assert LogUniform() == LogUniform(0.02, 100.0)
    assert VPLevels() == VPLevels(0.1, 20.0, 1e-5)
    assert IDDPMLevels() == IDDPMLevels(1000, 0.001, 0.008)


def test_iddpm_levels_are_those_of_the_cosine_chain():
    """u_j^2 = 1/alphabar - 1 where no step is capped, and u_8 is EDM's sigma_max = 80 (their table 1, j_0 = 8)."""
    u = IDDPMLevels().levels()
    assert u.shape == (1000,)
    assert (u.diff() < 0).all()
    assert u[8].item() == pytest.approx(80.0, rel=0.02)
    j = torch.arange(1000, dtype=torch.float64)
    angle = 0.5 * math.pi / (1000 * 1.008)
    sine_top = math.sin(1000 * angle) ** 2  # a_M: the recursion starts at u_M = 0 there
    exact = (sine_top / torch.sin(j * angle) ** 2 - 1.0).sqrt()
    torch.testing.assert_close(u[1:], exact[1:], rtol=1e-9, atol=0.0)
    ratio = (u[1] ** 2 + 1.0) / 0.001 - 1.0  # the first step alone meets the cap: a_0 = 0
    assert u[0].item() == pytest.approx(ratio.sqrt().item(), rel=1e-12)
    process = hb.EDM()
    times = sample_times(process, (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000, IDDPMLevels())
    torch.testing.assert_close(times, u, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda u: draw_times(hb.VP(), u, "unifrom"), "'unifrom'.*did you mean 'uniform'"),
        (lambda u: draw_times(hb.VP(), u, lambda u: u[:1]), r"shapes \(1,\) for u of shape \(4,\)"),
        (lambda u: correction(hb.VP(), None, integral=True), "integral = True.*'likelihood'"),
        (lambda u: LogNormal(0.0, 0.0), "std = 0.0"),
        (lambda u: LogUniform(2.0, 1.0), "low = 2.0"),
        (lambda u: VPLevels(epsilon=0.0), "epsilon = 0.0"),
        (lambda u: IDDPMLevels(steps=0), "steps = 0"),
    ],
)
def test_bad_times_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.full((4,), 0.5, dtype=torch.float64))
