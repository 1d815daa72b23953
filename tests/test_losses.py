"""Losses against their closed-form minimisers."""

import pytest
import torch
from exact_moments import (
    COV,
    MEAN,
    PREDICTS,
    PROBE,
    PROCESSES,
    STEPS,
    by_name,
    converted,
    crooked,
    exact_sample,
    minimiser,
    some_times,
)

import halfbridge as hb
from halfbridge.training.losses import WEIGHTINGS, denoising_loss


@pytest.mark.parametrize("weighting", ["simple", "likelihood", "uniform"])
@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_one_belief_has_one_loss_however_it_is_stated(process, weighting):
    x0, z = exact_sample()
    t = some_times(process, len(x0))

    def loss(predicts):
        net = converted(crooked, process, predicts)
        return denoising_loss(net, process, x0, t, z, predicts=predicts, weighting=weighting, labels=lambda t: t)

    for predicts in PREDICTS[1:]:
        torch.testing.assert_close(loss(predicts), loss("noise"), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_the_weights_are_sigma2_g2_and_one_on_the_error_of_the_score(process):
    x0, z = exact_sample()
    t = some_times(process, len(x0))
    alpha, sigma, g = process.alpha(t), process.sigma(t), process.diffusion(t)
    x = alpha[:, None] * x0 + sigma[:, None] * z
    score_error = (converted(crooked, process, "score")(x, t) + z / sigma[:, None]).square().mean(dim=1)
    for weighting, weight in (("simple", sigma**2), ("likelihood", g**2), ("uniform", torch.ones_like(t))):
        got = denoising_loss(crooked, process, x0, t, z, weighting=weighting)
        torch.testing.assert_close(got, weight * score_error, rtol=1e-9, atol=0.0)
    named = denoising_loss(crooked, process, x0, t, z, weighting=lambda t: 1.0 / (1.0 + t))
    torch.testing.assert_close(named, sigma**2 * score_error / (1.0 + t), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_the_affine_minimiser_on_gaussian_data_is_the_exact_field(process, predicts):
    """On Gaussian data the field is affine in x at each t, so it is what least squares on the loss finds.

    The sample has exactly the moments of the law, and the loss is quadratic in (A, b): one Newton step from anywhere
    is the minimiser of the loss over the law itself, to rounding.
    """
    x0, z = exact_sample()
    exact = hb.reference.Gaussian(MEAN, COV).field(process)
    for t in some_times(process, 3).tolist():

        def loss(net, t=t):
            times = torch.full((len(x0),), t, dtype=torch.float64)
            return denoising_loss(net, process, x0, times, z, predicts=predicts, weighting="likelihood").mean()

        found = minimiser(loss)
        torch.testing.assert_close(found, getattr(exact(t, PROBE), predicts), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", PROCESSES, **by_name)
def test_the_minimiser_does_not_depend_on_the_weighting(process, weighting):
    x0, z = exact_sample()
    t = some_times(process, 3)[1]
    exact = hb.reference.Gaussian(MEAN, COV).field(process)
    found = minimiser(lambda net: denoising_loss(net, process, x0, t.expand(len(x0)), z, weighting=weighting).mean())
    torch.testing.assert_close(found, exact.noise(t, PROBE), rtol=1e-7, atol=1e-7)


def test_at_the_minimiser_the_loss_is_the_conditional_variance_of_the_noise():
    """E|eps - E[eps | x]|^2 / d = tr(I - sigma^2 S^-1) / d, with S = alpha^2 COV + sigma^2 I."""
    process, t = hb.VP(), 0.3
    x0, z = exact_sample()
    exact = hb.reference.Gaussian(MEAN, COV).field(process)
    times = torch.full((len(x0),), t, dtype=torch.float64)
    loss = denoising_loss(lambda x, _: exact.noise(t, x), process, x0, times, z).mean().item()
    total = process.alpha(t) ** 2 * COV + process.sigma(t) ** 2 * torch.eye(2, dtype=torch.float64)
    residual = (torch.eye(2, dtype=torch.float64) - process.sigma(t) ** 2 * torch.linalg.inv(total)).trace().item() / 2
    assert loss == pytest.approx(residual, rel=1e-10)


def test_the_loss_gives_the_network_the_same_labels_as_a_field_does():
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    x0, z = exact_sample(8)
    t = torch.arange(1.0, 9.0, dtype=torch.float64)
    denoising_loss(net, STEPS, x0, t, z)
    denoising_loss(net, STEPS, x0, t, z, labels=STEPS.half_log_snr)
    assert torch.equal(seen[0], t - 1.0)
    assert torch.equal(seen[1], STEPS.half_log_snr(t))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(3, 2)}, r"z. has shape \(3, 2\)"),
        ({"t": torch.tensor(0.5)}, r"t has shape \(\)"),
        ({"predicts": "nois"}, "'nois'"),
        ({"weighting": "snr"}, "'snr' is no known name.*did you mean 'min_snr'"),
        ({"net": lambda x, t: x[:, :1]}, r"\(4, 1\) for x of shape \(4, 2\)"),
    ],
)
def test_the_loss_refuses_what_does_not_fit(change, message):
    arguments = {"net": crooked, "process": hb.VP(), "x0": torch.zeros(4, 2), "t": torch.full((4,), 0.5)}
    with pytest.raises(ValueError, match=message):
        denoising_loss(**{**arguments, "z": torch.zeros(4, 2), **change})


def test_losses_of_half_states_are_formed_in_float32():
    x0, z = (v.bfloat16() for v in exact_sample())
    t, process = some_times(hb.VP(), len(x0)), hb.VP()
    given = []

    def net(x, label):
        given.append(x)
        return torch.zeros_like(x)

    for predicts in PREDICTS:
        loss = denoising_loss(net, process, x0, t, z, predicts=predicts)
        assert given[-1].dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        exact = denoising_loss(
            lambda x, label: torch.zeros_like(x), process, x0.double(), t, z.double(), predicts=predicts
        )
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-7)
