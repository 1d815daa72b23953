"""Sliced score matching: along every direction it is the explicit loss of that direction, and together the implicit one."""

import math

import pytest
import torch
from scores import F64, Rows, all_signs, frame, randn
from test_implicit_loss import SMOOTH, affine_minimiser, crooked, plane
from test_losses import COV, MEAN, exact_sample

import halfbridge as hb
from halfbridge.training.losses.implicit import implicit_loss
from halfbridge.training.losses.score_function import score_function
from halfbridge.training.losses.sliced import sliced_loss
from halfbridge.training.objectives.score import Implicit, Sliced

BOTH = pytest.mark.parametrize("variance_reduced", [True, False])


def test_along_one_direction_it_is_the_explicit_loss_of_that_direction():
    x, weight = plane()
    score = SMOOTH.score(x)
    for v in ([1.0, 0.0], [0.6, -1.3]):
        along = torch.tensor(v, dtype=F64)
        got = (weight * sliced_loss(crooked, x, along.expand(1, *x.shape), variance_reduced=False)).sum()
        explicit = (weight * ((crooked(x) - score) @ along).square()).sum() / 2
        torch.testing.assert_close(got, explicit - (weight * (score @ along).square()).sum() / 2, rtol=1e-10, atol=0.0)


@BOTH
def test_the_affine_minimiser_on_gaussian_data_is_the_exact_score(variance_reduced):
    x, _ = exact_sample()
    v = all_signs(len(x), (2,))
    matrix, shift = affine_minimiser(lambda score, x: sliced_loss(score, x, v, variance_reduced=variance_reduced), x)
    torch.testing.assert_close(matrix, -torch.linalg.inv(COV), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(shift, torch.linalg.solve(COV, MEAN), rtol=1e-10, atol=1e-10)


@BOTH
def test_over_an_orthonormal_frame_of_directions_it_is_the_exact_implicit_loss(variance_reduced):
    a, x = randn(5, 5, seed=1), randn(4, 5, seed=2)
    score = lambda x: (x @ a.T).tanh()  # noqa: E731
    got = sliced_loss(score, x, frame(4, 5), variance_reduced=variance_reduced)
    torch.testing.assert_close(got, implicit_loss(score, x), rtol=1e-12, atol=1e-12)


@BOTH
def test_it_is_the_mean_of_its_formula_over_its_directions(variance_reduced):
    a, x, v = randn(6, 6, seed=1), randn(3, 2, 3, seed=2), randn(4, 3, 2, 3, seed=3)
    score = lambda x: (x.flatten(1) @ a.T).tanh().view_as(x)  # noqa: E731
    s, flat = score(x).flatten(1), v.flatten(2)
    form = torch.einsum("kbi,bij,kbj->kb", flat, (1 - s**2)[:, :, None] * a, flat)
    square = s.square().sum(1) if variance_reduced else (flat * s).sum(2).square()
    got = sliced_loss(score, x, v, variance_reduced=variance_reduced)
    torch.testing.assert_close(got, (form + square / 2).mean(0), rtol=1e-12, atol=1e-12)


def test_the_variance_reduced_objective_is_the_implicit_one_with_hutchinson():
    x0, noise = randn(4, 3), Rows(randn(4, 3, seed=1))
    net = lambda x, t: torch.sin(x.flip(1) * t[:, None])  # noqa: E731
    for kind in ("rademacher", "gaussian"):
        got = Sliced(hb.VE(), probes=3, kind=kind)(net, x0, noise)
        assert torch.equal(got, Implicit(hb.VE(), divergence="hutchinson", probes=3, kind=kind)(net, x0, noise))


def test_the_objective_is_the_loss_at_x_t_weighted_as_the_denoising_one():
    x0, noise = randn(4, 3), Rows(randn(4, 3, seed=1), 0.25)
    net = lambda x, t: torch.sin(x.flip(1) * t[:, None])  # noqa: E731
    p = hb.VP()
    t = p.t_min + 0.25 * torch.ones(4, dtype=F64) * (p.T - p.t_min)
    x = p.perturb(t, x0, noise.z)
    loss = sliced_loss(score_function(net, p, t), x, noise.signs(1)[None], variance_reduced=False)
    got = Sliced(p, variance_reduced=False, weighting="likelihood")(net, x0, noise)
    torch.testing.assert_close(got, loss * 2 * p.diffusion(t) ** 2 / 3, rtol=1e-12, atol=0.0)


def test_a_training_step_of_a_network_lowers_its_error():
    """Adam on the objective, against the explicit error of the score over the law of x_t: a run, not a formula."""
    from halfbridge.training.noise import StepNoise

    torch.manual_seed(0)
    net = hb.nets.MLP(2, hidden=32, depth=1)
    process, law = hb.VP(), hb.reference.Gaussian([0.0, 0.0], [[0.5, 0.3], [0.3, 0.4]])
    objective, x0 = Sliced(process, probes=2), law.sample(256, seed=1).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

    def error():
        t = 0.3
        x = law.at(process, t).sample(2000, seed=2).float()
        with torch.no_grad():
            return (objective.field(net).score(t, x) - law.field(process).score(t, x)).square().sum(1).mean().item()

    before = error()
    for step in range(150):
        optimizer.zero_grad()
        objective(net, x0, StepNoise(0, step, 256, x0)).mean().backward()
        optimizer.step()
    assert error() < 0.1 * before
    assert math.isfinite(before)


def test_it_refuses_probes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"probes has shape \(4, 2\).*probes\[None\]"):
        sliced_loss(crooked, torch.zeros(4, 2), torch.zeros(4, 2), variance_reduced=False)
