"""Implicit score matching: its identity with the explicit loss, its minimiser, its probes; the score of a network."""

import dataclasses
import json
import math

import pytest
import torch
from scores import F64, Attending, Mixture, Rows, all_signs, gradients, randn
from test_losses import COV, MEAN, PREDICTS, PROCESSES, by_name, exact_sample

import halfbridge as hb
from halfbridge.training.losses.implicit import implicit_loss
from halfbridge.training.losses.score_function import score_function
from halfbridge.training.noise import StepNoise
from halfbridge.training.objectives.denoising import Denoising
from halfbridge.training.objectives.score import HighOrder, Implicit, Sliced

SMOOTH = Mixture([0.3, 0.7], [[-1.0, 0.5], [0.8, -0.4]], [[[0.8, 0.2], [0.2, 0.6]], [[0.5, -0.1], [-0.1, 0.9]]])


def crooked(x):
    """Neither a gradient nor a polynomial of degree 1."""
    x, y = x[:, 0], x[:, 1]
    return torch.stack([0.3 * x * y - x - 0.1 * y**3, 0.5 * x**2 - 0.7 * y + 0.2 * x], 1)


def plane(step=0.25, reach=9.0):
    """A grid and the weights of its points: sums over it are integrals against SMOOTH, to rounding."""
    line = torch.arange(-reach, reach + step / 2, step, dtype=F64)
    x = torch.cartesian_prod(line, line)
    return x, SMOOTH.log_prob(x).exp() * step**2


def affine_minimiser(loss, x):
    """(A, b) of the affine score A x + b that minimises the mean of a loss quadratic in it: one Newton step."""

    def mean(theta):
        return loss(lambda x: x @ theta[:4].view(2, 2).T + theta[4:] + 0.0 * x, x).mean()

    start = torch.tensor([0.3, -0.2, 0.1, -0.5, 0.2, 0.4], dtype=F64)
    hessian = torch.autograd.functional.hessian(mean, start)
    theta = start - torch.linalg.solve(hessian, torch.autograd.functional.jacobian(mean, start))
    return theta[:4].view(2, 2), theta[4:]


def test_it_is_the_explicit_loss_less_half_the_mean_square_of_the_score():
    x, weight = plane()
    score = SMOOTH.score(x)
    got = (weight * implicit_loss(crooked, x)).sum()
    explicit = (weight * (crooked(x) - score).square().sum(1)).sum() / 2
    torch.testing.assert_close(got, explicit - (weight * score.square().sum(1)).sum() / 2, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("probes", [None, "signs"])
def test_the_affine_minimiser_on_gaussian_data_is_the_exact_score(probes):
    x, _ = exact_sample()
    v = None if probes is None else all_signs(len(x), (2,))
    matrix, shift = affine_minimiser(lambda score, x: implicit_loss(score, x, v), x)
    torch.testing.assert_close(matrix, -torch.linalg.inv(COV), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(shift, torch.linalg.solve(COV, MEAN), rtol=1e-10, atol=1e-10)


def test_its_mean_over_all_sign_vectors_is_the_exact_loss_and_each_one_is_the_quadratic_form():
    a = randn(6, 6, seed=1)

    def score(x):
        return (x.flatten(1) @ a.T).tanh().view_as(x)

    x = randn(3, 2, 3, seed=2)
    jacobian = (1 - score(x).flatten(1) ** 2)[:, :, None] * a
    half = score(x).flatten(1).square().sum(1) / 2
    v = all_signs(3, (2, 3))
    exact = implicit_loss(score, x)
    torch.testing.assert_close(exact, jacobian.diagonal(dim1=1, dim2=2).sum(1) + half, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(implicit_loss(score, x, v), exact, rtol=1e-12, atol=1e-12)
    one = randn(1, 3, 2, 3, seed=4)
    form = torch.einsum("bi,bij,bj->b", one[0].flatten(1), jacobian, one[0].flatten(1))
    torch.testing.assert_close(implicit_loss(score, x, one), form + half, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probes", [None, 3])
def test_its_gradient_reaches_the_parameters_of_an_mlp_whole(probes):
    torch.manual_seed(0)
    net = hb.nets.MLP(3, hidden=8, depth=1).double()
    with torch.no_grad():
        net.last.weight.copy_(randn(3, 8))
    x, t = randn(4, 3, seed=1), torch.linspace(0.2, 0.9, 4, dtype=F64)
    v = None if probes is None else randn(probes, 4, 3, seed=2)
    got = gradients(implicit_loss(score_function(net, hb.VP(), t), x, v).sum(), net)

    scale = hb.VP().sigma(t)[:, None]
    jacobian = torch.stack([torch.func.jacrev(lambda y, i=i: net(y[None], t[i : i + 1])[0])(x[i]) for i in range(4)])
    weights = torch.eye(3, dtype=F64).expand(4, 3, 3) if v is None else torch.einsum("kbi,kbj->bij", v, v) / probes
    trace = -(weights * jacobian / scale[:, :, None]).sum((1, 2))
    want = gradients((trace + (net(x, t) / scale).square().sum(1) / 2).sum(), net)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("make", [Implicit, Sliced, HighOrder], ids=lambda make: make.name)
def test_networks_with_fused_attention_are_differentiated_as_those_with_it_written_out(make):
    x0, noise = randn(3, 2, 2, 2), Rows(randn(3, 2, 2, 2, seed=1))
    losses, found = [], []
    for fused in (True, False):
        net = Attending(fused)
        losses.append(make(hb.VP())(net, x0, noise))
        found.append(gradients(losses[-1].sum(), net))
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_dropout_has_one_mask_in_the_score_and_in_its_trace():
    x = randn(5, 4)

    def score(x):
        return torch.nn.functional.dropout(x, 0.5)

    torch.manual_seed(1)
    kept = score(x) / x
    torch.manual_seed(1)
    got = implicit_loss(score, x)
    torch.testing.assert_close(got, kept.sum(1) + (kept * x).square().sum(1) / 2, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("process", PROCESSES, **by_name)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_score_of_a_network_is_that_of_its_field(process, predicts):
    def net(x, label):
        return torch.sin(x.flip(1)) + 0.1 * label[:, None] * x

    x = randn(3, 2)
    t = process.t_min + (process.T - process.t_min) * torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    t = t.round() if isinstance(process, hb.DiscreteVP) else t
    got = score_function(net, process, t, predicts=predicts)(x)
    field = hb.nets.as_field(net, process, predicts)
    want = torch.cat([field.score(float(t[i]), x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(got, want, rtol=1e-8, atol=0.0)  # (alpha D - x) / sigma^2 cancels
    score_function(lambda x, label: torch.testing.assert_close(label, t + 3) or x, process, t, labels=lambda t: t + 3)(
        x
    )


@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("times", ["uniform", "likelihood"])
@pytest.mark.parametrize("make", [Implicit, Sliced], ids=lambda make: make.name)
def test_as_objectives_they_differ_from_the_denoising_one_by_a_constant_of_the_data(make, times, predicts, weighting):
    """Between two affine networks, over a sample with the exact second moments of x0 and z. Sliced draws a direction a row,
    so its trace is exact for Jacobians that are diagonal only, and its second term is taken in the mean over them."""
    x0, z = exact_sample()
    process = hb.VP()

    def mean(objective, matrix, shift):
        return objective(lambda x, _: x @ torch.tensor(matrix, dtype=F64).T + shift, x0, Rows(z, 0.3)).mean()

    options = {"predicts": predicts, "weighting": weighting, "times": times, "integral": True}
    one = ([[0.5, 0.0], [0.0, -0.3]], 0.2), ([[0.1, 0.0], [0.0, 0.8]], -0.5)
    two = ([[0.5, 0.3], [-0.1, -0.3]], 0.2), ([[0.1, 0.2], [0.7, 0.8]], -0.5)
    for first, second in (one, two) if make is Implicit else (one,):
        change = mean(make(process, **options), *first) - mean(make(process, **options), *second)
        want = mean(Denoising(process, **options), *first) - mean(Denoising(process, **options), *second)
        torch.testing.assert_close(change, want, rtol=1e-9, atol=1e-9)


def test_the_objective_averages_over_its_own_directions():
    x0, noise = randn(4, 3), Rows(randn(4, 3, seed=1))
    net = lambda x, t: torch.sin(x.flip(1) * t[:, None])  # noqa: E731
    process = hb.VP()
    for kind in ("rademacher", "gaussian"):
        got = Implicit(process, divergence="hutchinson", probes=2, kind=kind)(net, x0, noise)
        t = noise.uniform() * (process.T - process.t_min) + process.t_min
        x, sigma = process.perturb(t, x0, noise.z), process.sigma(t)
        draws = noise.signs if kind == "rademacher" else noise.normal
        v = torch.stack([draws(1), draws(2)])
        want = implicit_loss(score_function(net, process, t), x, v) * 2 * sigma**2 / 3
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0.0)


def test_without_recording_it_is_the_same_number_and_keeps_no_graph():
    net, x = Attending(False), randn(3, 2, 2, 2)
    score = score_function(net, hb.VP(), torch.full((3,), 0.5))
    recorded = implicit_loss(score, x)
    with torch.no_grad():
        bare = implicit_loss(score, x)
    assert recorded.requires_grad
    assert not bare.requires_grad
    torch.testing.assert_close(bare, recorded.detach(), rtol=1e-12, atol=1e-12)
    assert not x.requires_grad
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("make", [Implicit, Sliced, HighOrder], ids=lambda make: make.name)
def test_half_precision_networks_are_given_half_states_and_their_losses_are_formed_in_float32(make):
    x0 = randn(4, 3).bfloat16()
    seen = []

    def net(x, label):
        seen.append(x.dtype)
        return 0.5 * x

    noise = StepNoise(0, 0, 4, x0)
    loss = make(hb.VP())(net, x0, noise)
    assert loss.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    wide = make(hb.VP())(lambda x, label: (0.5 * x.bfloat16()).to(x), x0.float(), noise)
    torch.testing.assert_close(loss, wide, rtol=0.05, atol=0.05)  # x_t rounded to 8 bits


OBJECTIVES = [
    Implicit(hb.VP(), "score", "min_snr", "likelihood", divergence="hutchinson", probes=3),
    Sliced(hb.VE(), variance_reduced=False, kind="gaussian", integral=True),
    HighOrder(hb.EDM(), "data", lambda1=0.5, lambda2=0.0, projected=False, times="log_normal"),
    HighOrder(hb.VP()),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_an_objective_is_rebuilt_from_its_config_and_its_field_is_what_it_trained(objective):
    config = json.loads(json.dumps(objective.config))
    assert config.pop("type") == objective.name
    assert type(objective)(objective.process, **config) == objective
    net = lambda x, label: x * label[:, None]  # noqa: E731
    labelled = dataclasses.replace(objective, labels=lambda t: 2.0 * t)
    field = labelled.field(net)
    assert (field.process, field.predicts) == (objective.process, objective.predicts)
    assert torch.equal(field.evaluate(0.25, torch.ones(2, 2)), torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"labels = .* cannot be written down"):
        labelled.config  # noqa: B018


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"probes": torch.zeros(4, 2)}, ValueError, r"probes has shape \(4, 2\).*probes\[None\]"),
        ({"probes": torch.zeros(2, 1, 2)}, ValueError, r"\(2, 1, 2\) for an x of shape \(4, 2\)"),
        ({"probes": torch.zeros(0, 4, 2)}, ValueError, r"\(0, 4, 2\)"),
        ({"probes": torch.zeros(1, 4, 2, dtype=F64)}, ValueError, r"dtype torch.float64 and x torch.float32"),
        ({"score": None}, TypeError, "score is a NoneType"),
        ({"score": lambda x: x[:, :1]}, ValueError, r"\(4, 1\)"),
        ({"x": torch.zeros(4, 2, dtype=torch.int64)}, ValueError, "int64"),
    ],
)
def test_it_refuses_what_does_not_fit(change, error, message):
    with pytest.raises(error, match=message):
        implicit_loss(**{"score": crooked, "x": torch.zeros(4, 2), **change})


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Implicit, {"predicts": "nois"}, "'nois'"),
        (Implicit, {"weighting": "simpel"}, "'simpel'"),
        (Implicit, {"times": "unifrom"}, "'unifrom'"),
        (Implicit, {"divergence": "exakt"}, "'exakt'.*did you mean 'exact'"),
        (Implicit, {"kind": "normal"}, "normal"),
        (Implicit, {"probes": 0}, "probes = 0"),
        (Sliced, {"probes": True}, "probes = True"),
        (HighOrder, {"lambda1": -1.0}, r"lambda1 = -1\.0"),
        (HighOrder, {"lambda2": math.inf}, "lambda2 = inf"),
    ],
)
def test_objectives_refuse_options_out_of_range_when_they_are_made(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(hb.VP(), **options)


def test_the_score_function_refuses_times_and_networks_that_do_not_fit():
    t, x = torch.full((3,), 0.5), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"t has shape \(\)"):
        score_function(lambda x, t: x, hb.VP(), t[0])
    with pytest.raises(ValueError, match=r"t has shape \(3,\).*each of the 4 samples"):
        score_function(lambda x, t: x, hb.VP(), t)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"\(3, 1\) for x of shape \(3, 2\)"):
        score_function(lambda x, t: x[:, :1], hb.VP(), t)(x)
    with pytest.raises(ValueError, match=r"'scores'.*did you mean 'score'"):
        score_function(lambda x, t: x, hb.VP(), t, predicts="scores")
