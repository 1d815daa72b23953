"""High-order denoising score matching: minimisers, shifts under wrong lower orders, stop-gradients, one network for all."""

import math

import pytest
import torch
from scores import F64, Attending, Mixture, Rows, frame, hermite, randn

import halfbridge as hb
from halfbridge.solvers.exact_derivatives import exact_derivatives
from halfbridge.training.losses.denoising import denoising_loss
from halfbridge.training.losses.high_order import (
    high_order_loss,
    high_order_terms,
    second_order_loss,
    third_order_loss,
    trace_loss,
)
from halfbridge.training.losses.score_function import score_function
from halfbridge.training.objectives.denoising import Denoising
from halfbridge.training.objectives.score import HighOrder

ALPHA, SIGMA = 0.8, 0.7
LAWS = {
    "gaussian": Mixture([1.0], [[0.7, -0.4]], [[[0.9, 0.3], [0.3, 0.5]]], ALPHA, SIGMA),
    "mixture on the line": Mixture([0.3, 0.7], [[-1.5], [1.0]], [[[0.2]], [[0.1]]], ALPHA, SIGMA),
    "mixture in the plane": Mixture(
        [0.6, 0.4], [[-1.0, 0.5], [0.8, 0.3]], [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]], ALPHA, SIGMA
    ),
}


def truth(law, x):
    """score, Hessian, gradient of every second derivative of log p, at one x (d,)."""
    return law.score(x[None])[0], law.hessian(x[None])[0], law.third(x[None])[0]


def minimiser(loss, shape, weight):
    """What minimises the weighted mean of a loss of one model value, the same for all rows: a quadratic, one Newton step."""

    def mean(value):
        return (weight * loss(value.view(shape).expand(len(weight), *shape))).sum()

    start = torch.zeros(math.prod(shape), dtype=F64)
    gradient = torch.autograd.functional.jacobian(mean, start)
    return -torch.linalg.solve(torch.autograd.functional.hessian(mean, start), gradient).view(shape)


def check_minimisers(law, x, wrong):
    d = law.dim
    s, h, third = truth(law, x)
    e = randn(d, seed=1) if wrong else torch.zeros(d, dtype=F64)
    f = randn(d, d, seed=2) if wrong else torch.zeros(d, d, dtype=F64)
    v = randn(d, seed=3)
    z, weight = law.noise_given(x)
    n = len(z)
    sigma = torch.full((n,), SIGMA, dtype=F64)
    score, matrix, along = (s + e).expand(n, d), (h + f).expand(n, d, d), v.expand(n, d)
    product = along @ (h + f).T
    found = [
        minimiser(lambda m: second_order_loss(m, score, sigma, z), (d, d), weight),
        minimiser(lambda m: second_order_loss(m, score, sigma, z, along), (d,), weight),
        minimiser(lambda m: trace_loss(m, score, sigma, z), (), weight),
        minimiser(lambda m: trace_loss(m, score, sigma, z, along), (), weight),
        minimiser(lambda m: third_order_loss(m, score, matrix, sigma, z), (d,), weight),
        minimiser(lambda m: third_order_loss(m, score, product, sigma, z, along), (d,), weight),
    ]
    want = [
        h + torch.outer(e, e),
        h @ v + e * (e @ v),
        h.trace() + e @ e,
        v @ h @ v + (e @ v) ** 2,
        torch.einsum("iik->k", third) + f.trace() * e + 2 * f @ e - (e @ e) * e,
        torch.einsum("i,j,ijk->k", v, v, third) + (v @ f @ v) * e + 2 * (e @ v) * (f @ v) - (e @ v) ** 2 * e,
    ]
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wrong", [False, True], ids=["lower orders exact", "lower orders wrong"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_minimisers_are_the_derivatives_of_log_p_shifted_by_what_the_lower_orders_are_off(law, wrong):
    """At a point x: over z given x, a mixture of normals, every target is a polynomial, whose mean the nodes have exactly."""
    for x in 0.9 * randn(3, law.dim, seed=7):
        check_minimisers(law, x, wrong)


def net_of(theta):
    """A score of the plane that is no gradient and no polynomial."""
    a, b = theta[:4].view(2, 2), theta[4:].view(2, 2)
    return lambda x: (x @ a.T).tanh() + 0.3 * x.square() @ b.T


def by_hand(theta, fixed, x, sigma, z, v):
    """The four losses for one sample by torch.func, lower orders with the parameters `fixed`."""
    net, lower = (lambda y: net_of(theta)(y[None])[0]), (lambda y: net_of(fixed)(y[None])[0])
    jacobian, eye = torch.func.jacrev(net), torch.eye(2, dtype=F64)
    m1, m2 = sigma * lower(x) + z, sigma**2 * torch.func.jacrev(lower)(x)
    first = (sigma * net(x) + z).square().sum()
    if v is None:
        second = (sigma**2 * jacobian(x) + eye - torch.outer(m1, m1)).square().sum()
        trace = (sigma**2 * jacobian(x).trace() + 2 - m1 @ m1) ** 2
        m2 = m2 + eye
        m3 = (m1 @ m1 - m2.trace()) * m1 - 2 * m2 @ m1
        third = torch.func.grad(lambda y: jacobian(y).trace())(x)
    else:
        second = (sigma**2 * jacobian(x).T @ v + v - m1 * (m1 @ v)).square().sum()
        trace = (sigma**2 * v @ jacobian(x) @ v + v @ v - (m1 @ v) ** 2) ** 2
        m3 = ((m1 @ v) ** 2 - v @ m2 @ v - v @ v) * m1 - 2 * (m1 @ v) * (m2.T @ v + v)
        third = torch.func.grad(lambda y: v @ jacobian(y) @ v)(x)
    return torch.stack([first, second, trace, (sigma**3 * third + m3).square().sum()])


@pytest.mark.parametrize("projected", [True, False])
def test_one_network_has_these_losses_and_sends_gradients_into_the_order_of_each_alone(projected):
    theta = (0.6 * randn(8, seed=4)).requires_grad_()
    x, z, sigma = randn(3, 2), randn(3, 2, seed=1), torch.tensor([0.3, 0.8, 1.4], dtype=F64)
    v = randn(3, 2, seed=2) if projected else None
    terms = high_order_terms(net_of(theta), x, sigma, z, v)
    rows = range(3)
    want = sum(
        by_hand(theta, theta.detach(), x[i], sigma[i], z[i], None if v is None else v[i]) * (i + 1) for i in rows
    )
    for term, other in zip(terms, want, strict=True):
        got = sum(term[i] * (i + 1) for i in rows)
        torch.testing.assert_close(got, other, rtol=1e-11, atol=1e-11)
        (gradient,) = torch.autograd.grad(got, theta, retain_graph=True)
        torch.testing.assert_close(
            gradient, torch.autograd.grad(other, theta, retain_graph=True)[0], rtol=1e-9, atol=1e-10
        )
    total = high_order_loss(net_of(theta), x, sigma, z, v, lambda1=0.3, lambda2=0.05)
    first, second, trace, third = terms
    torch.testing.assert_close(total, first + 0.3 * (second + trace) + 0.05 * third, rtol=1e-12, atol=0.0)


def test_separate_models_get_the_gradients_and_lower_orders_get_none():
    z, v, sigma = randn(3, 2), randn(3, 2, seed=1), torch.full((3,), 0.6, dtype=F64)
    score, matrix = randn(3, 2, seed=2).requires_grad_(), randn(3, 2, 2, seed=3).requires_grad_()
    trace, third, product = (randn(*shape, seed=4).requires_grad_() for shape in ((3,), (3, 2), (3, 2)))
    for model, loss, others in (
        (matrix, second_order_loss(matrix, score, sigma, z), (score,)),
        (product, second_order_loss(product, score, sigma, z, v), (score,)),
        (trace, trace_loss(trace, score, sigma, z), (score,)),
        (trace, trace_loss(trace, score, sigma, z, v), (score,)),
        (third, third_order_loss(third, score, matrix, sigma, z), (score, matrix)),
        (third, third_order_loss(third, score, product, sigma, z, v), (score, product)),
    ):
        found = torch.autograd.grad(loss.sum(), (model, *others), allow_unused=True)
        assert bool((found[0] != 0).all())
        assert all(g is None for g in found[1:])


def test_the_projected_second_loss_has_the_matrix_form_for_its_mean_over_directions():
    """Over an orthonormal frame times sqrt(d), for a Jacobian that is not symmetric."""
    theta, d = randn(8, seed=4), 2
    x, z, sigma = randn(5, 2), randn(5, 2, seed=1), torch.linspace(0.3, 1.2, 5, dtype=F64)
    terms = [high_order_terms(net_of(theta), x, sigma, z, v, order=2).second for v in frame(5, d)]
    whole = high_order_terms(net_of(theta), x, sigma, z, order=2).second
    torch.testing.assert_close(sum(terms) / d, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("predicts", ["noise", "score", "data", "velocity"])
@pytest.mark.parametrize("projected", [True, False])
def test_the_exact_field_of_gaussian_data_is_a_stationary_point_of_the_objective(projected, predicts):
    """The expectation over (x0, z) by quadrature, exact for the cubic features that the exact field is perturbed with;
    in the projected form along one direction, for which it holds too."""
    process, law = hb.VP(), hb.reference.Gaussian([0.7, -0.4], [[0.9, 0.3], [0.3, 0.5]])
    nodes, weight = hermite(4, 4)
    x0, z = law.mean + nodes[:, :2] @ torch.linalg.cholesky(law.cov).T, nodes[:, 2:]
    t = process.t_min + 0.4 * (process.T - process.t_min)
    exact, direction = law.field(process, predicts), torch.tensor([1.0, -1.0], dtype=F64)

    def features(x):
        x, y = x[:, 0], x[:, 1]
        one = torch.ones_like(x)
        return torch.stack([one, x, y, x * x, x * y, y * y, x * x * y, y**3], 1)

    def mean(theta, **options):
        net = lambda x, _: exact.evaluate(t, x) + features(x) @ theta  # noqa: E731
        objective = HighOrder(process, predicts, projected=projected, **options)
        return (weight * objective(net, x0, Rows(z, 0.4, direction))).sum()

    off = torch.zeros(8, 2, dtype=F64)
    off[3, 0] = 0.1
    for options in ({"lambda1": 1.0, "lambda2": 0.0}, {"lambda1": 0.0, "lambda2": 1.0}, {}):
        gradient = torch.autograd.functional.jacobian(lambda a, o=options: mean(a, **o), torch.zeros_like(off))
        assert gradient.abs().max() < 1e-9
        away = torch.autograd.functional.jacobian(lambda a, o=options: mean(a, **o), off)
        assert away.abs().max() > 1e-3


def test_without_higher_orders_it_is_denoising_score_matching():
    x0, z = randn(5, 3), randn(5, 3, seed=1)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    net = lambda x, label: torch.sin(x.flip(1) * label[:, None]).floor()  # noqa: E731  no derivative of any order is asked for
    process = hb.VP()
    x, sigma = process.perturb(t, x0, z), process.sigma(t)
    got = high_order_loss(score_function(net, process, t), x, sigma, z, lambda1=0.0, lambda2=0.0) / 3
    torch.testing.assert_close(got, denoising_loss(net, process, x0, t, z), rtol=1e-12, atol=0.0)
    noise = Rows(z, 0.3)
    for options in ({"weighting": "likelihood", "times": "likelihood"}, {"integral": True, "predicts": "velocity"}):
        got = HighOrder(process, lambda1=0.0, lambda2=0.0, **options)(net, x0, noise)
        torch.testing.assert_close(got, Denoising(process, **options)(net, x0, noise), rtol=1e-10, atol=0.0)


def test_the_objective_weights_its_orders_by_one_over_d_and_one_over_its_square_unless_told():
    x0, noise = randn(4, 2, 3), Rows(randn(4, 2, 3, seed=1))
    net = lambda x, t: torch.sin(x.flip(1) * t[:, None, None])  # noqa: E731
    got = HighOrder(hb.VP(), weighting="uniform")(net, x0, noise)
    given = HighOrder(hb.VP(), weighting="uniform", lambda1=1 / 6, lambda2=1 / 36)(net, x0, noise)
    assert torch.equal(got, given)
    p = hb.VP()
    t = p.t_min + noise.uniform() * (p.T - p.t_min)
    x, sigma = p.perturb(t, x0, noise.z), p.sigma(t)
    loss = high_order_loss(score_function(net, p, t), x, sigma, noise.z, noise.signs(1), lambda1=1 / 6, lambda2=1 / 36)
    torch.testing.assert_close(got, loss / sigma**2 / 6, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("projected", [True, False])
def test_an_affine_score_has_no_third_derivative_whatever_its_parameters_ask_for(projected):
    z, sigma, x = randn(4, 2), torch.full((4,), 0.6, dtype=F64), randn(4, 2, seed=1)
    v = randn(4, 2, seed=2) if projected else None
    a = randn(2, 2, seed=3)
    for trained in (False, True):
        a = a.clone().requires_grad_(trained)
        terms = high_order_terms(lambda x, a=a: x @ a.T, x, sigma, z, v)
        second = a.expand(4, 2, 2) if v is None else v @ a
        zero = third_order_loss(torch.zeros_like(x), x @ a.T, second, sigma, z, v)
        torch.testing.assert_close(terms.third, zero, rtol=1e-12, atol=0.0)


class Called(torch.nn.Module):
    """A function of maps (batch, 1, 4), of rows (batch, 4)."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x[:, None])[:, 0]


NORMS = {
    "layer norm": torch.nn.LayerNorm(4, dtype=F64),
    "layer norm of two axes": torch.nn.Sequential(
        torch.nn.Unflatten(1, (2, 2)), torch.nn.LayerNorm((2, 2), dtype=F64), torch.nn.Flatten()
    ),
    "instance norm": torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 4)), torch.nn.InstanceNorm1d(1, affine=True, dtype=F64), torch.nn.Flatten()
    ),
    "instance norm in train mode with running statistics": Called(
        torch.nn.InstanceNorm1d(1, track_running_stats=True, dtype=F64).train()
    ),
    "torch.instance_norm": Called(lambda x: torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, True)),
    "torch.native_layer_norm": Called(lambda x: torch.native_layer_norm(x, (4,), None, None, 1e-5)[0]),
    "group norm": torch.nn.GroupNorm(2, 4, dtype=F64),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_the_third_order_trains_networks_with_norms_by_the_right_gradient(norm):
    """Against finite differences: torch's own layer norm and instance norm have a wrong third derivative."""
    w = (0.5 * randn(4, 4)).requires_grad_()
    x, v, z, sigma = randn(2, 4, seed=1), randn(2, 4, seed=2), randn(2, 4, seed=3), torch.ones(2, dtype=F64)
    norm = norm.requires_grad_(False)
    start = x.clone().requires_grad_()
    score = norm(start @ w.detach()).tanh()
    (second,) = torch.autograd.grad(score, start, v)
    with exact_derivatives():
        value = norm(x)
    torch.testing.assert_close(value, norm(x), rtol=1e-12, atol=1e-12)

    def loss(w):
        net = lambda x: norm(x @ w).tanh()  # noqa: E731
        return high_order_terms(net, x, sigma, z, v).third

    def with_lower_orders_held(w):
        def net(x):
            with exact_derivatives():
                return norm(x @ w).tanh()

        y = x.clone().requires_grad_()
        (product,) = torch.autograd.grad(net(y), y, v, create_graph=True)
        (third,) = torch.autograd.grad((product * v).sum(), y, create_graph=True)
        return third_order_loss(third, score, second, sigma, z, v)

    assert torch.autograd.gradcheck(with_lower_orders_held, (w,))
    torch.testing.assert_close(loss(w), with_lower_orders_held(w), rtol=1e-10, atol=1e-10)
    got, want = (torch.autograd.grad(f(w).sum(), w)[0] for f in (loss, with_lower_orders_held))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_running_statistics_and_moments_are_those_of_torch():
    """Whatever the form in which the norm itself is evaluated."""
    x, found, wanted = randn(5, 3, 4), *(torch.nn.InstanceNorm1d(3, track_running_stats=True, dtype=F64) for _ in "ab")
    with exact_derivatives():
        value, moments = found(x), torch.native_layer_norm(x, (3, 4), None, None, 1e-5)
    torch.testing.assert_close(value, wanted(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments, torch.native_layer_norm(x, (3, 4), None, None, 1e-5), rtol=1e-12, atol=1e-12)
    for mode in (torch.nn.InstanceNorm1d.train, torch.nn.InstanceNorm1d.eval):
        with exact_derivatives():
            product = torch.func.jvp(mode(found), (x,), (x,))
        torch.testing.assert_close(product, torch.func.jvp(mode(wanted), (x,), (x,)), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("projected", [True, False])
def test_without_recording_it_is_the_same_number_and_keeps_no_graph(projected):
    net, x, z = Attending(False), randn(3, 2, 2, 2), randn(3, 2, 2, 2, seed=1)
    sigma = torch.full((3,), 0.6, dtype=F64)
    v = randn(3, 2, 2, 2, seed=2) if projected else None
    score = score_function(net, hb.VP(), torch.full((3,), 0.5))
    recorded = high_order_terms(score, x, sigma, z, v)
    with torch.no_grad():
        bare = high_order_terms(score, x, sigma, z, v)
    for one, other in zip(bare, recorded, strict=True):
        assert other.requires_grad
        assert not one.requires_grad
        torch.testing.assert_close(one, other.detach(), rtol=1e-11, atol=1e-11)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambda1": -0.1}, r"lambda1 = -0\.1"),
        ({"lambda2": math.nan}, "lambda2 = nan"),
        ({"sigma": torch.tensor(0.5)}, r"sigma has shape \(\).*each of the 4 samples"),
        ({"z": torch.zeros(4, 1)}, r"score has shape \(4, 2\) for samples of shape \(4, 1\)"),
        ({"v": torch.zeros(1, 4, 2)}, r"v has shape \(1, 4, 2\) for samples of shape \(4, 2\)"),
    ],
)
def test_the_total_refuses_what_does_not_fit(change, message):
    arguments = {"score": lambda x: x.sin(), "x": torch.zeros(4, 2), "sigma": torch.ones(4), "z": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=message):
        high_order_loss(**{**arguments, "lambda1": 1.0, "lambda2": 1.0, **change})


def test_separate_models_of_other_shapes_are_refused():
    z, sigma = torch.zeros(4, 3), torch.ones(4)
    with pytest.raises(ValueError, match=r"second has shape \(4, 3\); pass a matrix for each sample, \(4, 3, 3\)"):
        second_order_loss(z, z, sigma, z)
    with pytest.raises(ValueError, match=r"second has shape \(4, 3, 3\) for samples of shape \(4, 3\)"):
        third_order_loss(z, z, torch.zeros(4, 3, 3), sigma, z, z)
    with pytest.raises(ValueError, match=r"trace has shape \(4, 1\); pass one number"):
        trace_loss(torch.zeros(4, 1), z, sigma, z)
    with pytest.raises(ValueError, match="order = 4 must be 1, 2 or 3"):
        high_order_terms(torch.sin, z, sigma, z, order=4)
