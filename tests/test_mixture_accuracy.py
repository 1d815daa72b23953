"""Gaussian mixtures where arithmetic is hard: small noise far from the origin, far tails, many components."""

import math

import numpy as np
import pytest
import torch
from gaussians import F64, VIEWS, covariances, random, tensor
from largest_tensor import LargestTensor

from halfbridge.kernels import mixture_reference
from halfbridge.solvers.processes import EDM, VP
from halfbridge.solvers.reference import posterior
from halfbridge.solvers.reference.mixture import GaussianMixture


def explicit(means, variances, sigma, x):
    """(log density, views) of equally weighted N(m_k, v_k I) under EDM at sigma, from x - m_k in 80-bit floats."""
    means, x = (a.numpy().astype(np.longdouble) for a in (means, x))
    v = variances.numpy().astype(np.longdouble)[:, None, None]
    s, y = v + np.longdouble(sigma) ** 2, x - means[:, None]
    logs = -(y**2 / s + np.log(2 * np.longdouble(np.pi) * s)).sum(2) / 2 - np.log(np.longdouble(len(means)))
    top = logs.max(0)
    r = np.exp(logs - top)
    total = r.sum(0)
    r = (r / total)[:, :, None]
    eps, data = (r * sigma * y / s).sum(0), (r * (means[:, None] + v * y / s)).sum(0)
    views = {"noise": eps, "score": -eps / sigma, "data": data, "velocity": eps - sigma * data}
    as_tensor = {name: torch.from_numpy(value.astype(np.float64)) for name, value in views.items()}
    return torch.from_numpy((top + np.log(total)).astype(np.float64)), as_tensor


def size(value):
    return float(value.abs().max())


@pytest.mark.parametrize(("d", "sigma"), [(8, 1e-3), (2, 1e-5), (64, 1e-5), (8, 1e-8)])
def test_posterior_survives_small_noise_at_large_distance(d, sigma):
    """|x| = 10 between neighbours 2 sigma apart: differences of exponents of 1e8 to 1e18 decide the weights.

    What is left is the rounding of x - alpha m_k itself, which the explicit sum in float64 has too, and at 1e-8 that of
    the products with tails, 2^-52 |x|^2 / sigma^2 over 2^bits.
    """
    process = EDM()
    means = random(40, d, seed=4)
    means = 10 * means / means.norm(dim=1, keepdim=True)
    means[1::2] = means[::2] + 2 * sigma * random(20, d, seed=5) / math.sqrt(d)
    x = (means[::2] + means[1::2]) / 2 + sigma * random(20, d, seed=6)
    for covs in (torch.zeros(40, dtype=F64), torch.where(torch.arange(40) % 3 == 0, sigma**2, 0.0).to(F64)):
        mixture = GaussianMixture(torch.full((40,), 1 / 40), means, covs)
        density, views = explicit(means, covs, sigma, x)
        bits = 24 - math.log2(d) / 2
        rounding = 30 * 2**-52 * 10 / sigma + 2 ** (-52 - bits) * (10 / sigma) ** 2
        for predicts in VIEWS:
            got = mixture.field(process, predicts).evaluate(sigma, x)
            assert size(got - views[predicts]) < rounding * size(views[predicts]), predicts
        at = mixture.at(process, sigma).log_prob(x)
        assert size(at - density) < 4 * rounding * math.sqrt(d)


def test_far_tails_of_equal_components_keep_their_posterior():
    """|x|^2 = 1e20 drops out between components of one variance, instead of drowning the 0.4 nats that decide."""
    mixture = GaussianMixture([0.25, 0.25, 0.5], [[0.0, 1], [0, -1], [0, 0]], [0.5, 0.5, 0.1])
    got = mixture.field(EDM(), "data").evaluate(1.0, tensor([[1e10, 0.3]]))
    mean = math.tanh(0.3 / 1.5)  # of the two that are left, S = 0.5 + 1
    expected = tensor([[1e10 / 3, mean + (0.3 - mean) / 3]])
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("n", "k", "d"), [(200, 1797, 64), (2000, 400, 8), (7, 4000, 30)])
@pytest.mark.parametrize("kind", ["common", "varied"])
def test_scalar_covariances_need_blocks_of_rows_by_components_only(n, k, d, kind):
    variances = 0.01 if kind == "common" else torch.linspace(0, 1, k)
    mixture = GaussianMixture(torch.full((k,), 1 / k), random(k, d), variances)
    x = random(n, d)
    with LargestTensor() as seen:
        mixture.at(VP(), 0.3).log_prob(x)
        mixture.field(VP()).evaluate(0.3, x)
    assert seen.numel <= max(mixture_reference.LOGITS, 2 * k * d, n * d)
    assert seen.numel < n * k * d / 3


def test_full_covariances_are_streamed():
    n, k, d = 400, 300, 20
    mixture = GaussianMixture(torch.full((k,), 1 / k), random(k, d), covariances(k, d))
    x = random(n, d)
    with LargestTensor() as seen:
        diffused = mixture.at(VP(), 0.3)
        diffused.log_prob(x)
        mixture.field(VP()).evaluate(0.3, x)
    assert seen.numel <= max(posterior.STREAM, k * d * d)
    assert seen.numel < n * k * d / 4
