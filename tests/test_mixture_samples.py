"""Gaussian mixtures: moments, sampling, and every refusal of bad input."""

import math

import numpy as np
import pytest
import torch
from gaussians import F64, MEANS, MIXTURES, WEIGHTS, by_mixture, covariances, random, tensor

from halfbridge.kernels.philox import sample_words, words
from halfbridge.solvers.processes import EDM, VP, SubVP
from halfbridge.solvers.reference.mixture import GaussianMixture


@by_mixture
def test_moments_of_the_mixture_and_of_its_diffusion(mixture):
    second = sum(
        w * (c.cov + torch.outer(c.mean, c.mean)) for w, c in zip(mixture.weights, mixture.components, strict=True)
    )
    torch.testing.assert_close(mixture.mean, mixture.weights @ mixture.means, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(mixture.cov, second - torch.outer(mixture.mean, mixture.mean), rtol=1e-13, atol=1e-13)
    process, t = SubVP(), 0.3
    diffused, alpha = mixture.at(process, t), process.alpha(t)
    torch.testing.assert_close(diffused.mean, alpha * mixture.mean, rtol=1e-14, atol=1e-15)
    cov = alpha**2 * mixture.cov + process.sigma(t) ** 2 * torch.eye(2, dtype=F64)
    torch.testing.assert_close(diffused.cov, cov, rtol=1e-13, atol=1e-14)
    assert len(mixture) == len(mixture.components) == 3
    assert "3 components, dim=2" in repr(mixture)


@by_mixture
def test_sample_moments_lie_within_five_and_a_half_standard_errors(mixture):
    n = 60_000
    x = mixture.sample(n, seed=0) - mixture.mean
    assert bool((x.mean(0).abs() < 5.5 * (mixture.cov.diagonal() / n).sqrt()).all())
    products = x[:, :, None] * x[:, None, :]
    error = products.std(0) / math.sqrt(n)
    assert bool(((products.mean(0) - mixture.cov).abs() < 5.5 * error).all())


def test_component_is_chosen_by_the_first_word_of_the_last_draw():
    n, seed = 5000, 2**40 + 9
    weights = tensor([0.2, 0.0, 0.5, 0.3])
    mixture = GaussianMixture(weights, torch.arange(4.0)[:, None], 0.0)
    last = torch.full((1,), 2**32 - 1)
    w0 = words(torch.zeros(1, dtype=torch.int64), last, sample_words(2**33, torch.arange(n)), seed)[0]
    u = (w0.double() + 0.5) / 2**32
    expected = torch.where(u < 0.2, 0, torch.where(u < 0.7, 2, 3)).double()
    got = mixture.sample(n, seed=seed, first=2**33)[:, 0]
    assert torch.equal(got, expected)
    counts = torch.bincount(got.long(), minlength=4).double()
    assert bool(((counts - n * weights).abs() <= 5.5 * (n * weights * (1 - weights)).sqrt()).all())


@by_mixture
def test_sample_has_the_same_bits_whatever_the_batch(mixture):
    whole = mixture.sample(1100, seed=11)
    for first, n in ((0, 1), (3, 1), (1, 7), (1020, 20), (1099, 1)):
        assert torch.equal(mixture.sample(n, seed=11, first=first), whole[first : first + n])


def test_samples_follow_the_log_density():
    """E_p[q / p] = 1 for samples of p and a law q near it: a wrong weight, root or normalisation would break it."""
    p = MIXTURES["full"]
    q = GaussianMixture([0.3, 0.4, 0.3], MEANS, 0.9 * p._covs)
    x = p.sample(40_000, seed=2)
    ratio = (q.log_prob(x) - p.log_prob(x)).exp()
    assert abs(float(ratio.mean()) - 1) < 5.5 * float(ratio.std()) / math.sqrt(len(x))


def test_what_inference_mode_made_can_enter_a_graph():
    with torch.inference_mode():
        mixture = GaussianMixture(WEIGHTS, MEANS.clone(), covariances(3, 2)).at(VP(), 0.1)
        field = mixture.field(VP())
        field.evaluate(0.5, random(2, 2))
    x = random(2, 2).requires_grad_()
    (field.evaluate(0.5, x).sum() + mixture.log_prob(x).sum()).backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("weights", "means", "covs", "message"),
    [
        ([0.5, 0.4], [[0], [1]], 1.0, r"`weights` must sum to 1, but they sum to 0\.9"),
        ([0.5, 0.5 + 1e-9], [[0], [1]], 1.0, r"`weights` must sum to 1, but they sum to 1\.000000001"),
        ([1.5, -0.5], [[0], [1]], 1.0, r"weights\[1\] = -0\.5"),
        ([[1.0]], [[0]], 1.0, r"`weights` must have shape \(k,\)"),
        ([], [[0]], 1.0, r"`weights` must have shape \(k,\)"),
        ([0.5, math.nan], [[0], [1]], 1.0, r"`weights` must be finite"),
        ([0.5, 0.5], [[0, 1]], 1.0, r"`means` must have shape \(2, d\).*got \(1, 2\)"),
        ([0.5, 0.5], [0, 1], 1.0, r"`means` must have shape \(2, d\).*got \(2,\)"),
        ([0.5, 0.5], [[0], [1]], -1.0, r"variances >= 0, but covs\[0\] = -1"),
        ([0.5, 0.5], [[0], [1]], [1, -2], r"covs\[1\] = -2"),
        ([0.5, 0.5], [[0], [1]], [1, 2, 3], r"`covs` must be a number, or.*\(2,\) or \(2, 1, 1\).*got \(3,\)"),
        ([0.5, 0.5], [[0], [1]], [[1.0]], r"C\.expand\(2, 1, 1\)"),
        ([1.0], [[0, 0]], [[[1, 0.5], [0.4, 1]]], r"`covs\[0\]` must be symmetric.*largest asymmetry 0\.1"),
        ([0.5, 0.5], [[0, 0]] * 2, [np.eye(2), [[1, 2], [2, 1]]], r"`covs\[1\]` must be positive semidef.* is -1"),
        ([1.0], [[0, 0]], math.inf, r"`covs` must be finite"),
    ],
)
def test_bad_input_is_named(weights, means, covs, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(weights, means, covs)


def test_weights_may_be_off_by_their_rounding():
    k = 1797
    single = torch.full((k,), 1 / k)
    mixture = GaussianMixture(single, random(k, 2), 0.1)
    assert float(mixture.weights.sum()) == pytest.approx(1, abs=1e-14)


def test_tiny_variances_of_a_diagonal_matrix_are_not_taken_for_rounding():
    mixture = GaussianMixture([1.0], [[0, 0]], [[[1.0, 0], [0, 1e-30]]])
    expected = -math.log(2 * math.pi) + 15 * math.log(10)
    assert float(mixture.log_prob(torch.zeros(1, 2))) == pytest.approx(expected)


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match=r"at t = 0, where sigma = 0"):
        MIXTURES["scalar"].field(EDM()).evaluate(0.0, random(1, 2))
    with pytest.raises(ValueError, match="'nose'"):
        MIXTURES["scalar"].field(EDM(), "nose")
    with pytest.raises(ValueError, match=r"prod\(shape\) = 2, got shape \(2, 4\)"):
        MIXTURES["full"].field(EDM()).evaluate(1.0, random(2, 4))
    for name in ("points", "varied", "singular"):
        with pytest.raises(ValueError, match=r"no density.*`\.at\(process, t\)`"):
            MIXTURES[name].log_prob(random(1, 2))
    weightless = GaussianMixture([0.0, 1.0], MEANS[:2], [0.0, 1.0])
    assert bool(weightless.log_prob(random(1, 2)).isfinite().all())
