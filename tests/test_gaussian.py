"""Gaussian laws: exact fields, densities, sampling, and every refusal of a bad covariance."""

import copy
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from gaussians import F64, by_name, by_view, tensor

from halfbridge.kernels import normal
from halfbridge.solvers.processes import EDM, VP
from halfbridge.solvers.reference.gaussian import Gaussian


def covariance(d, seed, floor=0.05):
    a = torch.randn(d, d, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return a @ a.mT / d + floor * torch.eye(d, dtype=F64)


def points(n, d, seed=0, scale=2.0):
    return scale * torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def times(process):
    low = max(1e-3, process.t_min)
    return [low, math.sqrt(low * process.T), 0.5 * process.T, process.T]


def view_from_score(predicts, score, x, alpha, sigma):
    """The view and the size of its terms, from the score (EQUATIONS section 0)."""
    terms = {
        "score": (score,),
        "noise": (-sigma * score,),
        "data": (x / alpha, sigma**2 * score / alpha),
        "velocity": (-sigma / alpha * x, -sigma * (alpha**2 + sigma**2) / alpha * score),
    }[predicts]
    return sum(terms), sum(term.abs().max() for term in terms)


LAWS = {
    "full": Gaussian(tensor([0.3, -1.0, 2.0]), covariance(3, 1)),
    "diagonal": Gaussian(tensor([0.3, -1.0, 2.0]), torch.diag(tensor([2.0, 0.1, 0.7]))),
    "singular": Gaussian(tensor([0.3, -1.0, 2.0]), torch.outer(tensor([1.0, 2, -1]), tensor([1.0, 2, -1]))),
    "point": Gaussian(tensor([0.3, -1.0, 2.0]), 0.0),
}
by_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())


@by_name
@by_law
def test_score_is_the_gradient_of_the_diffused_log_density(process, law):
    for t in times(process):
        x = law.at(process, t).sample(5, seed=3).requires_grad_()
        (gradient,) = torch.autograd.grad(law.at(process, t).log_prob(x).sum(), x)
        score = law.field(process, "score").score(t, x)
        torch.testing.assert_close(score, gradient, rtol=1e-11, atol=1e-11 * float(gradient.abs().max()))


@by_name
@by_law
@by_view
def test_every_view_is_the_one_that_the_score_implies(process, law, predicts):
    for t in times(process):
        x = points(5, 3)
        alpha, sigma = process.alpha(t), process.sigma(t)
        score = -torch.linalg.solve(
            alpha**2 * law.cov + sigma**2 * torch.eye(3, dtype=F64), (x - alpha * law.mean).mT
        ).mT
        expected, scale = view_from_score(predicts, score, x, alpha, sigma)
        got = law.field(process, predicts).evaluate(t, x)
        cond = float(alpha**2 * law.eigenvalues[-1] + sigma**2) / float(alpha**2 * law.eigenvalues[0] + sigma**2)
        assert float((got - expected).abs().max()) < 1e-15 * (10 + cond) * float(scale)


@by_view
@pytest.mark.parametrize("variance", [1.0, 1 - 1e-9, 1e-6, 4.0, 0.0])
@by_name
def test_each_view_keeps_its_digits_at_every_time(process, variance, predicts):
    """Against exact fractions: a view formed from another one would lose up to 1e8 ulp near t_min."""
    x, mean = 0.75, 0.0
    for t in times(process):
        a, s, v = Fraction(process.alpha(t)), Fraction(process.sigma(t)), Fraction(variance)
        total = a * a * v + s * s
        gain = {"noise": s / total, "score": -1 / total, "data": a * v / total, "velocity": a * s * (1 - v) / total}
        exact = float(gain[predicts] * Fraction(x))
        got = float(Gaussian([mean], variance).field(process, predicts).evaluate(t, tensor([[x]])))
        assert abs(got - exact) <= 8 * 2**-52 * abs(exact)


@by_view
def test_view_of_the_mean_itself(predicts):
    process, t, law = VP(), 0.3, LAWS["full"]
    at_mean = law.field(process, predicts).evaluate(t, process.alpha(t) * law.mean[None])[0]
    factor = {"noise": 0.0, "score": 0.0, "data": 1.0, "velocity": -process.sigma(t)}[predicts]
    torch.testing.assert_close(at_mean, factor * law.mean, rtol=1e-14, atol=0)


def test_second_order_tweedie_gives_the_posterior_covariance():
    process, t, law = VP(), 0.4, LAWS["full"]
    alpha, sigma = process.alpha(t), process.sigma(t)
    data = law.field(process, "data")
    jacobian = torch.autograd.functional.jacobian(lambda x: data.data(t, x[None])[0], tensor([0.1, 0.2, 0.3]))
    precision = torch.linalg.inv(law.cov) + (alpha / sigma) ** 2 * torch.eye(3, dtype=F64)
    torch.testing.assert_close(sigma**2 / alpha * jacobian, torch.linalg.inv(precision), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@by_view
def test_field_answers_in_the_shape_and_dtype_of_x(dtype, predicts):
    law = Gaussian(torch.arange(12.0) / 12, covariance(12, 2))
    x = points(4, 12).to(dtype)
    flat = law.field(VP(), predicts).evaluate(0.2, x.double())
    shaped = law.field(VP(), predicts).evaluate(0.2, x.reshape(4, 3, 2, 2))
    assert shaped.dtype == dtype
    assert shaped.shape == (4, 3, 2, 2)
    assert torch.equal(shaped.reshape(4, 12), flat.to(dtype))
    assert law.log_prob(x).dtype == dtype
    assert law.field(VP(), predicts).evaluate(0.2, x[:0]).shape == (0, 12)


@by_view
def test_field_answers_on_the_device_of_x(predicts):
    """The meta device stands in for a GPU: any table left on the CPU would raise."""
    for law in LAWS.values():
        field = law.field(VP(), predicts)
        x = points(4, 3).float().to("meta")
        with torch.inference_mode():
            field.evaluate(0.2, x)
        got = field.evaluate(0.2, x.requires_grad_())
        got.sum().backward()
        assert (got.device.type, got.dtype, got.shape) == ("meta", torch.float32, (4, 3))


def test_what_inference_mode_made_can_enter_a_graph():
    """Tables and eigenvectors made lazily inside torch.inference_mode would be refused by autograd later."""
    process = VP()
    with torch.inference_mode():
        law = Gaussian(torch.zeros(3), covariance(3, 5)).at(process, 0.2)
        field = law.field(process)
        field.evaluate(0.5, points(2, 3))
    x = points(2, 3).requires_grad_()
    (field.evaluate(0.5, x).sum() + law.log_prob(x).sum()).backward()
    assert x.grad is not None


def test_log_prob_is_the_multivariate_normal():
    for law in (LAWS["full"], LAWS["diagonal"]):
        x = points(6, 3)
        expected = torch.distributions.MultivariateNormal(law.mean, law.cov).log_prob(x)
        torch.testing.assert_close(law.log_prob(x), expected, rtol=1e-12, atol=1e-12)


@by_name
def test_diffused_law_has_the_diffused_moments_and_eigenvalues(process):
    law = LAWS["full"]
    for t in times(process):
        alpha, sigma, diffused = process.alpha(t), process.sigma(t), law.at(process, t)
        torch.testing.assert_close(diffused.mean, alpha * law.mean, rtol=1e-15, atol=0)
        cov = alpha**2 * law.cov + sigma**2 * torch.eye(3, dtype=F64)
        torch.testing.assert_close(diffused.cov, cov, rtol=1e-15, atol=0)
        rebuilt = diffused.eigenvectors @ torch.diag(diffused.eigenvalues) @ diffused.eigenvectors.mT
        torch.testing.assert_close(rebuilt, cov, rtol=1e-14, atol=1e-14 * float(cov.abs().max()))
    assert EDM().sigma(0.0) == 0.0
    assert law.at(EDM(), 0.0) == law


@by_law
def test_eigendecomposition_rebuilds_the_covariance(law):
    values, vectors = law.eigenvalues, law.eigenvectors
    assert bool((values.diff() >= 0).all())
    assert float(values[0]) >= 0
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.mT, law.cov, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(3, dtype=F64), rtol=1e-14, atol=1e-14)


@by_law
def test_sample_is_the_symmetric_root_times_the_prior_draw(law):
    z = normal((50, 3), 7, draw=0, first=4, dtype=F64)
    root = (law.sample(50, seed=7, first=4) - law.mean).mT @ torch.linalg.pinv(z).mT
    torch.testing.assert_close(root, root.mT, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(root @ root, law.cov, rtol=1e-11, atol=1e-11)
    assert float(torch.linalg.eigvalsh(root)[0]) > -1e-11


@pytest.mark.parametrize("law", [*LAWS.values(), Gaussian(torch.zeros(200), covariance(200, 7))], ids=[*LAWS, "wide"])
def test_sample_has_the_same_bits_whatever_the_batch(law):
    whole = law.sample(1100, seed=11)
    for first, n in ((0, 1), (3, 1), (1, 7), (1020, 20), (1099, 1)):
        assert torch.equal(law.sample(n, seed=11, first=first), whole[first : first + n])
    assert not torch.equal(law.sample(5, seed=12), whole[:5]) or float(law.cov.abs().max()) == 0


def test_sample_moments_lie_within_five_and_a_half_standard_errors():
    n, law = 100_000, LAWS["full"]
    x = law.sample(n, seed=0)
    c = law.cov
    assert bool(((x.mean(0) - law.mean).abs() < 5.5 * (c.diagonal() / n).sqrt()).all())
    moment = (x - law.mean).mT @ (x - law.mean) / n
    assert bool(((moment - c).abs() < 5.5 * ((torch.outer(c.diagonal(), c.diagonal()) + c**2) / n).sqrt()).all())


def test_array_likes_are_copied_and_promoted():
    cov = np.array([[2.0, 0.5], [0.5, 1.0]])
    law = Gaussian([0, 1], cov)
    cov[0, 0] = 100.0
    assert law.cov.dtype == law.mean.dtype == F64
    assert law == Gaussian(torch.tensor([0.0, 1.0]), [[2.0, 0.5], [0.5, 1.0]])
    assert law != Gaussian([0, 1], [[2.0, 0.4], [0.4, 1.0]])
    assert hash(law) == hash(Gaussian([0, 1], law.cov))
    assert Gaussian([0, 1], 3) == Gaussian([0, 1], [[3, 0], [0, 3]])
    assert "cov=[[2.0, 0.5], [0.5, 1.0]]" in repr(law)
    assert "dim=9" in repr(Gaussian(torch.zeros(9), 1.0))


def test_a_covariance_semidefinite_up_to_rounding_is_accepted_and_clipped():
    a = points(40, 2)
    law = Gaussian(torch.zeros(40), a @ a.mT)
    assert float(torch.linalg.eigvalsh(law.cov)[0]) < 0
    assert int((law.eigenvalues > 0).sum()) == 2
    assert bool(law.sample(3, seed=0).isfinite().all())
    single = (a @ a.mT).float()
    assert Gaussian(torch.zeros(40), single).dim == 40
    skew = Gaussian([0, 0], [[1.0, 0.5], [0.5 + 1e-15, 1.0]])
    assert torch.equal(skew.cov, skew.cov.mT)
    tiny = Gaussian([0, 0], [[1.0, 0], [0, 1e-30]])
    assert float(tiny.eigenvalues[0]) == 1e-30
    assert float(tiny.log_prob(torch.zeros(1, 2))) == pytest.approx(-math.log(2 * math.pi) + 15 * math.log(10))


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        ([0, 0], [[1, 0.5], [0.4, 1]], r"`cov` must be symmetric.*\(0, 1\).*largest asymmetry 0\.1"),
        ([0, 0], [[1, 0.5], [0.5 + 1e-9, 1]], r"`cov` must be symmetric.*largest asymmetry 1e-09"),
        ([0, 0], [[1, 2], [2, 1]], r"`cov` must be positive semidefinite.*smallest eigenvalue is -1"),
        ([0, 0], -0.5, r"smallest eigenvalue is -0\.5"),
        ([0, 0], [[1, 0], [0, -1e-9]], r"smallest eigenvalue is -1e-09"),
        ([0, 0], [1, 1], r"`cov` must be a number or have shape \(2, 2\).*got \(2,\).*torch\.diag"),
        ([0, 0], [[1.0]], r"got \(1, 1\)"),
        ([[0, 0]], 1.0, r"`mean` must have shape \(d,\)"),
        (0.0, 1.0, r"`mean` must have shape \(d,\)"),
        ([], 1.0, r"`mean` must have shape \(d,\)"),
        ([0, math.nan], 1.0, r"`mean` must be finite, but 1 of its 2"),
        ([0, 0], math.inf, r"`cov` must be finite"),
        ([0, "a"], 1.0, r"`mean` must be numbers"),
        ([0, 1j], 1.0, r"`mean` must be real"),
    ],
)
def test_bad_input_is_named(mean, cov, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(mean, cov)


def test_bad_calls_are_named():
    law, process = LAWS["full"], EDM()
    with pytest.raises(ValueError, match=r"at t = 0, where sigma = 0.*t_min = 0\.002"):
        law.field(process).evaluate(0.0, points(1, 3))
    with pytest.raises(ValueError, match="'nose'"):
        law.field(process, "nose")
    with pytest.raises(ValueError, match=r"prod\(shape\) = 3, got shape \(2, 4\)"):
        law.field(process).evaluate(1.0, points(2, 4))
    with pytest.raises(ValueError, match=r"floating dtype, got torch\.int64"):
        law.log_prob(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="rank 1 in 3"):
        LAWS["singular"].log_prob(points(1, 3))
    with pytest.raises(ValueError, match=r"`other` must be a Gaussian of dimension 3.*got dimension 2"):
        law.kl(Gaussian([0, 0], 1.0))
    with pytest.raises(ValueError, match="got int"):
        law.w2(3)


@by_law
def test_a_law_on_the_cpu_does_not_depend_on_the_default_device(law):
    x = points(4, 3)

    def results():
        made = Gaussian(law.mean.tolist(), law.cov.tolist())
        later = made.at(VP(), 0.4)
        field = made.field(VP()).evaluate(0.4, x)
        scalar = Gaussian([1.0, 2.0], 0.5)
        distances = (later.kl(law.at(VP(), 0.5)), later.w2(law))
        return field, made.sample(5, seed=1), later.log_prob(x), later.cov, scalar.sample(2, seed=0), distances

    expected = results()
    with torch.device("meta"):
        got = results()
    for a, b in zip(got[:-1], expected[:-1], strict=True):
        assert torch.equal(a, b)
    assert got[-1] == expected[-1]


@by_law
@pytest.mark.parametrize("again", [copy.deepcopy, lambda law: pickle.loads(pickle.dumps(law))], ids=["copy", "pickle"])
def test_a_copied_or_pickled_law_has_the_same_fields(law, again):
    x = points(4, 3)
    other = again(law)
    assert other == law
    assert torch.equal(other.field(VP()).evaluate(0.4, x), law.field(VP()).evaluate(0.4, x))
    assert torch.equal(other.sample(3, seed=2), law.sample(3, seed=2))
