"""Weightings: what each is as a weight on the error of the score, the data and the velocity."""

import pytest
import torch
from exact_moments import MEAN, PROCESSES, by_name, every_time, exact_net, exact_sample, quadrature, some_times

import halfbridge as hb
from halfbridge.training.losses import (
    EDMWeight,
    MinSNR,
    Sigmoid,
    correction,
    denoising_loss,
    draw_times,
    noise_weight,
    sample_times,
    to_noise_error,
)


def weight_on(predicts, weighting, process, t):
    """The weight of the squared error of what is predicted."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return noise_weight(weighting, process, t) * to_noise_error(predicts, alpha, sigma) ** 2


@pytest.mark.parametrize("gamma", [5.0, 0.7])
@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_min_snr_is_the_smaller_of_snr_and_gamma_on_the_error_of_the_data(process, gamma):
    t = sample_times(process, (torch.arange(50, dtype=torch.float64) + 0.5) / 50, "half_log_snr")
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    least = torch.minimum(snr, torch.full_like(snr, gamma))
    assert (snr > gamma).any()
    assert (snr < gamma).any()
    torch.testing.assert_close(weight_on("data", MinSNR(gamma), process, t), least, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(weight_on("noise", MinSNR(gamma), process, t), least / snr, rtol=1e-12, atol=0.0)
    if isinstance(process, hb.VP):  # where alpha^2 + sigma^2 = 1, Hang et al.'s weight of the velocity
        torch.testing.assert_close(
            weight_on("velocity", MinSNR(gamma), process, t), least / (snr + 1.0), rtol=1e-9, atol=0
        )
    if gamma == 5.0:
        assert torch.equal(noise_weight("min_snr", process, t), noise_weight(MinSNR(), process, t))


@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_data_and_velocity_weigh_their_own_errors_alike(process):
    t = some_times(process, 20)
    for name in ("data", "velocity"):
        torch.testing.assert_close(weight_on(name, name, process, t), torch.ones_like(t), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_truncated_snr_is_the_larger_of_snr_and_one_on_the_error_of_the_data(process):
    t = sample_times(process, (torch.arange(50, dtype=torch.float64) + 0.5) / 50, "half_log_snr")
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    assert (snr > 1.0).any()
    assert (snr < 1.0).any()
    got = weight_on("data", "truncated_snr", process, t)
    torch.testing.assert_close(got, snr.clamp(min=1.0), rtol=1e-12, atol=0.0)
    x0, z = exact_sample(50)  # Salimans and Ho 2022: the larger of the errors of the data and of the noise
    errors = [denoising_loss(lambda x, _: 0.3 * x, process, x0, t, z, weighting=w) for w in ("simple", "data")]
    loss = denoising_loss(lambda x, _: 0.3 * x, process, x0, t, z, weighting="truncated_snr")
    torch.testing.assert_close(loss, torch.maximum(*errors), rtol=1e-9, atol=0.0)


def test_default_weights_are_the_papers():
    assert MinSNR() == MinSNR(5.0)
    assert EDMWeight() == EDMWeight(0.5)
    assert Sigmoid() == Sigmoid(2.0)


@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_edm_weighs_the_error_of_the_data_by_one_over_c_out_squared(process):
    t, width = some_times(process, 20), 0.8
    nu = process.sigma(t) / process.alpha(t)
    expected = (nu**2 + width**2) / (nu * width) ** 2
    torch.testing.assert_close(weight_on("data", EDMWeight(width), process, t), expected, rtol=1e-12, atol=0.0)
    assert torch.equal(noise_weight("edm", process, t), noise_weight(EDMWeight(0.5), process, t))


def test_sigmoid_is_one_half_where_log_snr_is_its_bias_and_grows_with_the_noise():
    process = hb.VP()
    t = torch.tensor([process.time_at(1.3 / 2.0)], dtype=torch.float64)
    assert noise_weight(Sigmoid(1.3), process, t).item() == pytest.approx(0.5, rel=1e-12)
    rising = noise_weight("sigmoid", process, some_times(process, 30))
    assert (rising.diff() > 0).all()
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    torch.testing.assert_close(noise_weight("sigmoid", process, t), 1.0 / (1.0 + snr * torch.exp(torch.tensor(-2.0))))


@pytest.mark.parametrize("process", [hb.VP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.OU(g=1.4)], **by_name)
def test_half_the_integral_under_likelihood_weights_is_the_divergence_of_diffusing_laws(process):
    """Both laws diffuse alike: KL(q_s || p_s) - KL(q_T || p_T) = 1/2 int_s^T g^2 E|score_p - score_q|^2 dt, an integral and
    not a mean over t (Song et al. 2021b, theorem 1, is this with p_T in place of the prior)."""
    x0, z = exact_sample()
    other = hb.reference.Gaussian(MEAN + 0.4, torch.tensor([[0.6, -0.1], [-0.1, 1.1]]))
    u, weights = quadrature(60)
    t, inverse = draw_times(process, u, "likelihood")
    x, times, noise = every_time(t, x0, z)
    factor = (weights * correction(process, inverse, integral=True)).repeat_interleave(len(x0)) / len(x0)

    def total(**law):
        net = exact_net(process, **law)
        loss = denoising_loss(net, process, x, times, noise, weighting="likelihood", labels=lambda t: t)
        return (factor * loss).sum().item()

    q, p = hb.reference.Gaussian(MEAN, torch.cov(x0.T, correction=0)), other
    lost = q.at(process, process.t_min).kl(p.at(process, process.t_min)) - q.at(process, process.T).kl(
        p.at(process, process.T)
    )
    assert 2 / 2 * (total(law=p) - total()) == pytest.approx(lost, rel=1e-8)  # d/2, d = 2: the loss is a mean over d


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSNR(0.0), "gamma = 0.0 must be a positive"),
        (lambda: MinSNR(float("inf")), "gamma = inf"),
        (lambda: EDMWeight(-1.0), "sigma_data = -1.0"),
        (lambda: Sigmoid(float("nan")), "bias = nan"),
        (lambda: noise_weight("likelyhood", hb.VP(), torch.ones(1)), "'likelyhood'.*did you mean 'likelihood'"),
        (
            lambda: noise_weight("qqq", hb.VP(), torch.ones(1)),
            "'qqq' is no known name and not a function of t; there are 'simple'",
        ),
    ],
)
def test_bad_weightings_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
