"""Gaussian mixtures: fields against autograd and textbook sums, invariances, gradients."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from gaussians import F64, MEANS, MIXTURES, VIEWS, WEIGHTS, by_mixture, by_name, by_view, covariances, random, tensor

from halfbridge.kernels import mixture_reference
from halfbridge.solvers.processes import EDM, OU, VE, VP
from halfbridge.solvers.reference import posterior
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.mixture import GaussianMixture


def times(process):
    low = max(1e-3, process.t_min)
    return [low, math.sqrt(low * process.T), 0.5 * process.T, process.T]


def matrices(mixture):
    """The covariances as (k, d, d) extended-precision matrices."""
    return [np.asarray(c.cov.numpy(), dtype=np.longdouble) for c in mixture.components]


def explicit(mixture, process, t, x):
    """(log density, views) by the textbook sums in 80-bit floats, for diagonal matrices or d = 2."""
    alpha, sigma = np.longdouble(process.alpha(t)), np.longdouble(process.sigma(t))
    x = np.asarray(x.numpy(), dtype=np.longdouble)
    d = x.shape[1]
    logs, noise, data = [], [], []
    for w, m, c in zip(mixture.weights.numpy(), mixture.means.numpy(), matrices(mixture), strict=True):
        y = x - alpha * m.astype(np.longdouble)
        if np.count_nonzero(c - np.diag(np.diag(c))) == 0:
            s = alpha**2 * np.diag(c) + sigma**2
            det, u = np.prod(s), y / s
            cu = np.diag(c) * u
        else:
            s = alpha**2 * c + sigma**2 * np.eye(2, dtype=np.longdouble)
            det_c = c[0, 0] * c[1, 1] - c[0, 1] ** 2
            det = alpha**4 * det_c + alpha**2 * sigma**2 * np.trace(c) + sigma**4
            u = y @ np.array([[s[1, 1], -s[0, 1]], [-s[1, 0], s[0, 0]]]) / det
            cu = u @ c
        log_norm = np.log(det) + d * np.log(2 * np.longdouble(np.pi))
        logs.append(np.log(np.longdouble(w)) - ((u * y).sum(1) + log_norm) / 2)
        noise.append(sigma * u)
        data.append(m + alpha * cu)
    logs = np.array(logs)
    top = logs.max(0)
    r = np.exp(logs - top)
    log_density = top + np.log(r.sum(0))
    r = (r / r.sum(0))[:, :, None]
    eps, x0 = (r * np.array(noise)).sum(0), (r * np.array(data)).sum(0)
    views = {"noise": eps, "score": -eps / sigma, "data": x0, "velocity": alpha * eps - sigma * x0}
    as_tensor = {name: torch.from_numpy(v.astype(np.float64)) for name, v in views.items()}
    return torch.from_numpy(log_density.astype(np.float64)), as_tensor


def size(value):
    return float(value.abs().max())


@by_name
@by_mixture
def test_every_view_is_the_textbook_sum(process, mixture):
    for t in times(process):
        x = mixture.at(process, t).sample(12, seed=5)
        density, views = explicit(mixture, process, t, x)
        slack = 1e-12 + (1e-15 if mixture._eigen is None else 1e-14) / process.sigma(t)
        for predicts in VIEWS:
            got = mixture.field(process, predicts).evaluate(t, x)
            assert size(got - views[predicts]) < slack * size(views[predicts]), (predicts, t)
        torch.testing.assert_close(mixture.at(process, t).log_prob(x), density, rtol=slack, atol=slack)


@by_name
@by_mixture
def test_score_is_the_gradient_of_the_diffused_log_density(process, mixture):
    for t in times(process):
        diffused = mixture.at(process, t)
        x = diffused.sample(12, seed=6).requires_grad_()
        (gradient,) = torch.autograd.grad(diffused.log_prob(x).sum(), x)
        score = mixture.field(process, "score").score(t, x.detach())
        slack = 1e-12 + (1e-15 if mixture._eigen is None else 1e-14) / process.sigma(t)
        assert size(score - gradient) < slack * size(gradient), t


@by_name
@by_mixture
def test_every_view_is_the_one_that_the_noise_implies(process, mixture):
    """EQUATIONS section 0; the views share the posterior weights, so they may differ by ulps of their terms only."""
    for t in times(process):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = mixture.at(process, t).sample(12, seed=7)
        eps = mixture.field(process, "noise").evaluate(t, x)
        ulp = (size(x) + alpha * size(mixture.means)) / sigma  # noise of one component: x - alpha m_k over sigma
        for predicts, c_x, c_eps in (
            ("score", 0.0, -1 / sigma),
            ("data", 1 / alpha, -sigma / alpha),
            ("velocity", -sigma / alpha, (alpha**2 + sigma**2) / alpha),
        ):
            scale = abs(c_x) * size(x) + abs(c_eps) * (size(eps) + ulp)
            got = mixture.field(process, predicts).evaluate(t, x)
            slack = 1e-14 if mixture._eigen is None else 1e-14 + 1e-15 / sigma
            assert size(got - c_x * x - c_eps * eps) < slack * scale, (predicts, t)


@by_view
def test_one_component_is_the_gaussian(predicts):
    process, mean = VP(), random(4, seed=2)
    x = random(6, 4)
    for cov in (tensor(0.7), tensor(0.0), covariances(1, 4)[0]):
        gaussian, mixture = Gaussian(mean, cov), GaussianMixture([1.0], mean[None], cov if cov.ndim == 0 else cov[None])
        for t in (1e-3, 0.3, 1.0):
            expected = gaussian.field(process, predicts).evaluate(t, x)
            assert size(mixture.field(process, predicts).evaluate(t, x) - expected) < 1e-13 * size(expected)
            density = gaussian.at(process, t).log_prob(x)
            torch.testing.assert_close(mixture.at(process, t).log_prob(x), density, rtol=1e-13, atol=1e-13)
        draws = gaussian.sample(9, seed=3, first=2)
        torch.testing.assert_close(mixture.sample(9, seed=3, first=2), draws, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(mixture.mean, gaussian.mean)
        torch.testing.assert_close(mixture.cov, gaussian.cov)


@by_view
def test_scalar_and_matrix_covariances_give_one_law(predicts):
    variances = tensor([0.3, 0.01, 2.0])
    scalar = GaussianMixture(WEIGHTS, MEANS, variances)
    full = GaussianMixture(WEIGHTS, MEANS, variances[:, None, None] * torch.eye(2, dtype=F64))
    x = 2 * random(50, 2)
    for t in (1e-3, 0.2, 1.0):
        expected = full.field(VP(), predicts).evaluate(t, x)
        assert size(scalar.field(VP(), predicts).evaluate(t, x) - expected) < 1e-10 * size(expected)
        torch.testing.assert_close(scalar.at(VP(), t).log_prob(x), full.at(VP(), t).log_prob(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(scalar.cov, full.cov, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(scalar.sample(40, seed=1), full.sample(40, seed=1), rtol=1e-14, atol=1e-14)


@by_mixture
@by_view
def test_splitting_permuting_or_adding_a_weightless_component_changes_nothing(mixture, predicts):
    process, t, x = OU(), 0.4, 2 * random(30, 2)
    expected = mixture.field(process, predicts).evaluate(t, x)
    density = mixture.at(process, t).log_prob(x)
    far = torch.cat([mixture.means, tensor([[1e6, -1e6]])])
    nothing = torch.cat([mixture.weights, tensor([0.0])])
    last = mixture._covs[:1]
    half = torch.cat([mixture.weights[:1] / 2, mixture.weights[1:], mixture.weights[:1] / 2])
    order = torch.tensor([2, 0, 1])
    for other, slack in (
        (GaussianMixture(half, torch.cat([mixture.means, mixture.means[:1]]), torch.cat([mixture._covs, last])), 1e-13),
        (GaussianMixture(mixture.weights[order], mixture.means[order], mixture._covs[order]), 1e-13),
        (GaussianMixture(nothing, far, torch.cat([mixture._covs, last])), 0.0),
    ):
        assert size(other.field(process, predicts).evaluate(t, x) - expected) <= slack * size(expected)
        assert size(other.at(process, t).log_prob(x) - density) <= slack * size(density)
        torch.testing.assert_close(other.mean, mixture.mean, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(other.cov, mixture.cov, rtol=1e-14, atol=1e-15)


@by_name
def test_two_points_have_the_hyperbolic_tangent(process):
    """Data half +1, half -1: D = tanh(alpha x / sigma^2) (EQUATIONS A.4, rescaled)."""
    data = GaussianMixture([0.5, 0.5], [[1.0], [-1.0]], 0.0).field(process, "data")
    for t in times(process):
        alpha, sigma = process.alpha(t), process.sigma(t)
        x = torch.linspace(-3, 3, 41, dtype=F64)[:, None] * sigma**2 / alpha
        torch.testing.assert_close(data.evaluate(t, x), torch.tanh(alpha * x / sigma**2), rtol=1e-13, atol=1e-15)


def test_second_order_tweedie_gives_the_posterior_covariance():
    """Cov[x0 | x] = (sigma^2 / alpha) dD/dx, the left side from the posterior weights and component covariances."""
    process, t, x = VP(), 0.4, tensor([[0.3, -0.2]])
    alpha, sigma = process.alpha(t), process.sigma(t)
    for mixture in MIXTURES.values():
        field = mixture.field(process, "data")
        jacobian = torch.autograd.functional.jacobian(lambda x, f=field: f.evaluate(t, x).sum(0), x)
        logs, means, covs = [], [], []
        for w, c in zip(mixture.weights, mixture.components, strict=True):
            logs.append(w.log() + c.at(process, t).log_prob(x)[0])
            means.append(c.field(process, "data").evaluate(t, x)[0])
            s = alpha**2 * c.cov + sigma**2 * torch.eye(2, dtype=F64)
            covs.append(sigma**2 * torch.linalg.solve(s, c.cov))
        r, means = torch.stack(logs).softmax(0), torch.stack(means)
        centred = means - r @ means
        expected = torch.tensordot(r, torch.stack(covs), 1) + centred.mT @ (r[:, None] * centred)
        torch.testing.assert_close(sigma**2 / alpha * jacobian[:, 0], expected, rtol=1e-11, atol=1e-12)


@by_mixture
def test_far_tails_and_extreme_noise_do_not_overflow(mixture):
    far = tensor([[1.0, 0.3], [-0.2, -1.0]])
    for process, t, x in (
        (EDM(), 0.01, 1e6 * far),
        (VE(), 1.0, 1e12 * far),
        (EDM(sigma_max=1e9), 1e8, 1e8 * random(4, 2)),
        (EDM(), 1e-7, MEANS + 1e-7 * random(3, 2)),
    ):
        density, views = explicit(mixture, process, t, x)
        for predicts in VIEWS:
            got = mixture.field(process, predicts).evaluate(t, x)
            assert size(got - views[predicts]) < 1e-7 * size(views[predicts]), (predicts, t)
        torch.testing.assert_close(mixture.at(process, t).log_prob(x), density, rtol=1e-7, atol=1e-7)


@by_mixture
@by_view
def test_blocks_do_not_change_values_or_gradients(mixture, predicts, monkeypatch):
    process, t, x = VP(), 0.2, random(25, 2)

    def everything():
        at = x.clone().requires_grad_()
        value = mixture.field(process, predicts).evaluate(t, at)
        density = mixture.at(process, t).log_prob(at)
        (gradient,) = torch.autograd.grad((value * random(25, 2, seed=9)).sum() + density.sum(), at)
        return value.detach(), density.detach(), gradient

    whole = everything()
    monkeypatch.setattr(mixture_reference, "LOGITS", 6)
    monkeypatch.setattr(mixture_reference, "WIDTH", 2)
    monkeypatch.setattr(posterior, "STREAM", 7)
    for one, other in zip(everything(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@by_mixture
def test_gradients_pass_the_numerical_check(mixture):
    x = random(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mixture.field(VP(), "data").evaluate(0.3, x), (x,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: mixture.at(VP(), 0.3).log_prob(x), (x,), atol=1e-6)


@by_mixture
def test_field_answers_on_the_device_of_x(mixture):
    """The meta device stands in for a GPU: any table left on the CPU would raise."""
    x = random(4, 2).float().to("meta").requires_grad_()
    got = mixture.field(VP()).evaluate(0.2, x)
    got.sum().backward()
    assert (got.device.type, got.dtype, got.shape) == ("meta", torch.float32, (4, 2))
    assert mixture.at(VP(), 0.2).log_prob(x).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@by_mixture
def test_field_answers_in_the_shape_and_dtype_of_x(mixture, dtype):
    field = mixture.field(VP())
    x = random(6, 2).to(dtype)
    got = field.evaluate(0.2, x.reshape(6, 1, 2))
    assert got.shape == (6, 1, 2)
    assert torch.equal(got.reshape(6, 2), field.evaluate(0.2, x.double()).to(dtype))
    assert field.evaluate(0.2, x[:0]).shape == (0, 2)


@by_mixture
def test_a_mixture_on_the_cpu_does_not_depend_on_the_default_device(mixture):
    x = 2.0 * random(4, 2, seed=5)

    def results():
        covs = mixture._covs.tolist()
        made = GaussianMixture(mixture.weights.tolist(), mixture.means.tolist(), covs)
        later = made.at(VP(), 0.4)
        field = made.field(VP()).evaluate(0.4, x)
        one = later.components[0].cov
        return field, made.sample(5, seed=1), later.log_prob(x), made.mean, made.cov, one

    expected = results()
    with torch.device("meta"):
        got = results()
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@by_mixture
@pytest.mark.parametrize("again", [copy.deepcopy, lambda law: pickle.loads(pickle.dumps(law))], ids=["copy", "pickle"])
def test_a_copied_or_pickled_mixture_has_the_same_fields(mixture, again):
    x = 2.0 * random(4, 2, seed=5)
    for law in (mixture, mixture.at(VP(), 0.2)):
        other = again(law)
        assert torch.equal(other.field(VP()).evaluate(0.4, x), law.field(VP()).evaluate(0.4, x))
        assert torch.equal(other.sample(3, seed=2), law.sample(3, seed=2))


def test_a_pickled_mixture_leaves_its_copies_on_other_devices_behind():
    mixture = GaussianMixture(WEIGHTS, MEANS, 0.3)
    mixture._core._tables(torch.device("meta"))
    other = pickle.loads(pickle.dumps(mixture))
    assert list(other._core._tables._copies) == [torch.device("cpu")]
