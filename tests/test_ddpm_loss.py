"""DDPM's losses against laws of Gaussian chains in closed form."""

import math

import pytest
import torch
from exact_moments import PREDICTS, STEPS, converted, crooked, every_time, exact_net, exact_sample, minimiser

import halfbridge as hb
from halfbridge.training.losses import Discretised, ddpm_elbo, ddpm_loss, gaussian_nll, hybrid_loss, prior_kl

N = int(STEPS.T)
ALL = torch.arange(1.0, N + 1.0, dtype=torch.float64)
TAU2 = [0.01 * (k + 1) for k in range(N)]
GIVEN = pytest.mark.parametrize("variance", ["posterior", "transition", TAU2], ids=["posterior", "transition", "given"])
PIXELS = Discretised(9, -1.0, 1.0)


def times(net):
    """The net with times for labels, as `ddpm_elbo` tells it steps less 1."""
    return lambda x, label: net(x, label + 1.0)


def tau2(variance, i):
    """By hand, from alpha and sigma."""
    v = STEPS.transition(i - 1.0, float(i))[1]
    if variance == "transition":
        return v
    if variance == "posterior":
        j = max(i, 2)
        return STEPS.transition(j - 1.0, float(j))[1] * STEPS.sigma(j - 1.0) ** 2 / STEPS.sigma(float(j)) ** 2
    return variance[i - 1]


def reverse_mean(net, i, x):
    """(x + v score)/r: Tweedie's formula for one transition, as `hb.Ancestral` has it."""
    r, v = STEPS.transition(i - 1.0, float(i))
    t = torch.full((len(x),), float(i), dtype=torch.float64)
    return (x - v / STEPS.sigma(float(i)) * net(x, t)) / r


@GIVEN
def test_every_term_is_the_divergence_of_the_two_gaussian_laws(variance):
    x0, z = exact_sample(6)
    for i in range(2, N + 1):
        t = torch.full((6,), float(i), dtype=torch.float64)
        got = ddpm_elbo(times(crooked), STEPS, x0, t, z, variance=variance)
        x = STEPS.perturb(t, x0, z)
        mean = reverse_mean(crooked, i, x)
        r, v = STEPS.transition(i - 1.0, float(i))
        # q(x_{i-1} | x_i, x0): the product of N(x_{i-1}; alpha x0, sigma^2) and N(x_i; r x_{i-1}, v) in x_{i-1}
        precision = 1.0 / STEPS.sigma(i - 1.0) ** 2 + r**2 / v
        centre = (STEPS.alpha(i - 1.0) * x0 / STEPS.sigma(i - 1.0) ** 2 + r * x / v) / precision
        for row in range(6):
            q = hb.reference.Gaussian(centre[row], 1.0 / precision)
            p = hb.reference.Gaussian(mean[row], tau2(variance, i))
            assert got[row].item() == pytest.approx(q.kl(p), rel=1e-9, abs=1e-12)


@GIVEN
def test_the_last_term_is_the_density_of_the_data_under_the_last_step(variance):
    x0, z = exact_sample(6)
    t = torch.ones(6, dtype=torch.float64)
    mean = reverse_mean(crooked, 1, STEPS.perturb(t, x0, z))
    law = torch.distributions.Normal(mean, math.sqrt(tau2(variance, 1)))
    got = ddpm_elbo(times(crooked), STEPS, x0, t, z, variance=variance)
    torch.testing.assert_close(got, -law.log_prob(x0).sum(dim=1), rtol=1e-10, atol=0.0)


def test_terms_of_a_mixed_batch_are_those_of_each_step():
    x0, z = exact_sample(N)
    mixed = ddpm_elbo(times(crooked), STEPS, x0, ALL, z)
    alone = [ddpm_elbo(times(crooked), STEPS, x0[k : k + 1], ALL[k : k + 1], z[k : k + 1]) for k in range(N)]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("predicts", PREDICTS[1:])
@pytest.mark.parametrize("decoder", [gaussian_nll, PIXELS], ids=["density", "levels"])
def test_one_belief_has_one_bound_however_it_is_stated(predicts, decoder):
    x0, z = exact_sample(N)
    x0 = (4.0 * x0).round().clamp(-4.0, 4.0) / 4.0 if decoder is PIXELS else x0
    stated = times(converted(crooked, STEPS, predicts))
    for loss in (ddpm_elbo, ddpm_loss):
        options = {"decoder": decoder} if loss is ddpm_elbo else {}
        expected = loss(times(crooked), STEPS, x0, ALL, z, **options)
        got = loss(stated, STEPS, x0, ALL, z, predicts=predicts, **options)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_the_prior_term_is_the_divergence_from_the_prior():
    x0, _ = exact_sample(5)
    for process in (STEPS, hb.VP(), hb.EDM(), hb.OU(g=1.4)):
        prior = hb.reference.Gaussian([0.0, 0.0], process.prior_std**2)
        expected = [
            hb.reference.Gaussian(process.alpha(process.T) * x, process.sigma(process.T) ** 2).kl(prior) for x in x0
        ]
        assert prior_kl(process, x0).tolist() == pytest.approx(expected, rel=1e-8)


def bound(net, x0, z, **options):
    """E of the whole bound over data and noise, nats."""
    x, i, noise = every_time(ALL, x0, z)
    return prior_kl(STEPS, x0).mean().item() + ddpm_elbo(times(net), STEPS, x, i, noise, **options).sum().item() / len(
        x0
    )


def test_with_exact_means_and_variances_the_gap_to_the_entropy_is_the_priors():
    """On N(m, c I) the reverse transitions are normal with variance of one number, so the model's chain differs from the
    data's in its start alone: E -ELBO = H(q) + KL(q_N || N(0, I)) (Sohl-Dickstein et al. 2015; Bao et al. 2022)."""
    c, mean = 0.6, torch.tensor([0.7, -0.4], dtype=torch.float64)
    law = hb.reference.Gaussian(mean, c)
    x0, z = exact_sample(mean=mean, cov=c * torch.eye(2, dtype=torch.float64))
    optimal = []
    for i in range(1, N + 1):
        r, v = STEPS.transition(i - 1.0, float(i))
        before = STEPS.alpha(i - 1.0) ** 2 * c + STEPS.sigma(i - 1.0) ** 2
        optimal.append(before - r**2 * before**2 / (r**2 * before + v))  # Var(x_{i-1} | x_i)
    entropy = math.log(2.0 * math.pi * math.e * c)
    exact = entropy + law.at(STEPS, N).kl(hb.reference.Gaussian([0.0, 0.0], 1.0))
    assert bound(exact_net(STEPS, law=law), x0, z, variance=optimal) == pytest.approx(exact, rel=1e-10)
    for other in ("posterior", "transition", [1.01 * v for v in optimal], [0.99 * v for v in optimal]):
        assert bound(exact_net(STEPS, law=law), x0, z, variance=other) > exact + 1e-5


def test_learned_variances_reach_the_exact_chain_of_data_with_two_scales():
    """As above with N(m, diag(c)): each coordinate needs a variance of its own."""
    c, mean = torch.tensor([0.6, 1.7], dtype=torch.float64), torch.tensor([0.7, -0.4], dtype=torch.float64)
    law = hb.reference.Gaussian(mean, torch.diag(c))
    x0, z = exact_sample(mean=mean, cov=torch.diag(c))
    prediction = exact_net(STEPS, law=law)

    def net(x, t):
        rows = []
        for i in t.tolist():
            r, v = STEPS.transition(i - 1.0, i)
            before = STEPS.alpha(i - 1.0) ** 2 * c + STEPS.sigma(i - 1.0) ** 2
            optimal = before - r**2 * before**2 / (r**2 * before + v)
            small, large = math.log(tau2("posterior", int(i))), math.log(tau2("transition", int(i)))
            rows.append(2.0 * (optimal.log() - small) / (large - small) - 1.0)
        return torch.cat([prediction(x, t), torch.stack(rows)], dim=1)

    exact = 0.5 * math.log((2.0 * math.pi * math.e) ** 2 * c.prod().item())
    exact += law.at(STEPS, N).kl(hb.reference.Gaussian([0.0, 0.0], 1.0))
    assert bound(net, x0, z, learned=True) == pytest.approx(exact, rel=1e-10)


@GIVEN
def test_the_bound_is_above_the_chains_own_log_density(variance):
    """The chain x_{i-1} = a x_i + b + tau z of a Gaussian field ends in a normal law known exactly."""
    law = hb.reference.Gaussian([0.3, -0.2], torch.tensor([[1.2, 0.1], [0.1, 0.4]]))  # not the data's
    net, x0z = exact_net(STEPS, law=law), exact_sample()
    mean, cov = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for i in range(N, 0, -1):
        basis = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
        images = reverse_mean(net, i, basis)
        shift, matrix = images[0], (images[1:] - images[0]).T
        mean, cov = matrix @ mean + shift, matrix @ cov @ matrix.T + tau2(variance, i) * torch.eye(2)
    model = hb.reference.Gaussian(mean, cov)
    nll = -model.log_prob(x0z[0]).mean().item()
    gap = bound(net, *x0z, variance=variance) - nll
    assert gap > 0
    assert variance is TAU2 or gap < 2.0


def test_the_simple_loss_is_least_at_the_exact_noise_and_then_the_residual_variance():
    x0, z = exact_sample()
    for i in (1.0, 4.0, float(N)):
        t = torch.full((len(x0),), i, dtype=torch.float64)
        exact = hb.reference.Gaussian(x0.mean(dim=0), torch.cov(x0.T, correction=0)).field(STEPS)
        found = minimiser(lambda net, t=t: ddpm_loss(net, STEPS, x0, t, z).mean())
        probe = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(found, exact.noise(i, probe), rtol=1e-8, atol=1e-8)
        for predicts in ("posterior", "transition"):
            found = minimiser(lambda net, t=t, p=predicts: ddpm_elbo(net, STEPS, x0, t, z, variance=p).mean())
            torch.testing.assert_close(found, exact.noise(i, probe), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spread", [1e-3, 0.1, 3.0])
def test_probabilities_of_all_levels_sum_to_one_and_are_exact_in_the_tails(spread):
    from scipy.stats import norm

    decoder = Discretised(256, -1.0, 1.0)
    centres = decoder.centres()
    for mean in (-1.7, -0.3, 0.0, 0.999, 1.4):
        log_p = -torch.stack([decoder(x.view(1, 1), torch.full((1, 1), mean, dtype=torch.float64), torch.full((1, 1), 2 * math.log(spread), dtype=torch.float64))[0] for x in centres])  # fmt: skip
        assert log_p.exp().sum().item() == pytest.approx(1.0, rel=1e-12)
        k = 200
        low, high = (norm.logsf((centres[k].item() + s / 255 - mean) / spread) for s in (-1, 1))
        if spread > 1e-3 and centres[k].item() > mean:
            assert log_p[k].item() == pytest.approx(low + math.log(-math.expm1(high - low)), rel=1e-9)


def test_a_wide_decoder_is_its_density_times_the_width_of_a_bin():
    x0, mean = torch.tensor([[0.25]]).double(), torch.tensor([[0.1]]).double()
    log_variance = torch.tensor([[0.0]]).double()
    got = Discretised(1025, -1.0, 1.0)(x0, mean, log_variance) - gaussian_nll(x0, mean, log_variance)
    assert got.item() == pytest.approx(math.log(1024 / 2), abs=1e-6)


def test_gradients_through_the_decoder_are_finite_at_the_ends_and_far_away():
    decoder = Discretised(256, -1.0, 1.0)
    x0 = torch.tensor([[-1.0, 1.0, -1.0, 1.0, 0.0 + 1 / 255]])
    mean = torch.tensor([[-1.0, 1.0, 5.0, -5.0, 40.0]], requires_grad=True)
    log_variance = torch.full((1, 5), -9.0, requires_grad=True)
    decoder(x0, mean, log_variance).sum().backward()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()
    assert (mean.grad[0, 2:] * torch.tensor([1.0, -1.0, 1.0]) > 0).all()  # downhill is towards the data


def test_the_hybrid_loss_trains_variances_by_the_bound_and_means_by_the_simple_loss_alone():
    x0, z = exact_sample(N)
    shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    w = torch.full((2,), 0.2, dtype=torch.float64, requires_grad=True)

    def net(x, label):
        return torch.cat([crooked(x, label) + shift, w.expand(len(x), 2)], dim=1)

    hybrid = hybrid_loss(net, STEPS, x0, ALL, z, vlb_weight=0.01)
    simple = ddpm_loss(lambda x, t: net(x, t)[:, :2], STEPS, x0, ALL, z)
    terms = ddpm_elbo(net, STEPS, x0, ALL, z, learned=True)
    torch.testing.assert_close(hybrid, simple + 0.01 * N / 2 * terms, rtol=1e-12, atol=0.0)
    of_hybrid = torch.autograd.grad(hybrid.sum(), (shift, w))
    (of_simple,) = torch.autograd.grad(simple.sum(), shift)
    (of_terms,) = torch.autograd.grad(terms.sum(), w)
    torch.testing.assert_close(of_hybrid[0], of_simple, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(of_hybrid[1], 0.01 * N / 2 * of_terms, rtol=1e-12, atol=0.0)


def test_half_states_are_compared_in_float32():
    x0, z = (v.bfloat16() for v in exact_sample(N))
    got = ddpm_elbo(lambda x, _: 0.5 * x, STEPS, x0, ALL, z)
    assert got.dtype == torch.float32
    # the state, and so the net's output, is rounded to bfloat16: 2^-8
    exact = ddpm_elbo(lambda x, _: 0.5 * x.bfloat16().double(), STEPS, x0.double(), ALL, z.double())
    torch.testing.assert_close(got.double(), exact, rtol=0.03, atol=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"process": hb.VP()}, "has no steps; pass hb.DiscreteVP"),
        ({"i": torch.full((4,), 1.5).double()}, "i holds 1.5.*1 .. 10"),
        ({"i": torch.full((4,), 0.0).double()}, "i holds 0"),
        ({"i": torch.ones(3).double()}, r"i has shape \(3,\)"),
        ({"variance": "posteriour"}, "'posteriour' is no known name.*10 positive numbers.*did you mean 'posterior'"),
        ({"variance": [1.0, 2.0]}, r"variance = \[1.0, 2.0\].*10 positive"),
        ({"variance": [0.0] * 10}, "10 positive"),
        ({"learned": True}, r"\(4, 4\) is needed: a prediction, then the variances"),
        ({"decoder": Discretised()}, "x0 holds 0, which is none of the 256 levels from -1 to 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    arguments = {"net": crooked, "process": STEPS, "x0": torch.zeros(4, 2), "i": torch.ones(4).double()}
    with pytest.raises(ValueError, match=message):
        ddpm_elbo(**{**arguments, "z": torch.zeros(4, 2), **change})


def test_default_weight_of_the_bound_is_the_papers():
    x0, z = exact_sample(N)
    net = lambda x, _: torch.cat([0.5 * x, 0.2 * x], dim=1)  # noqa: E731
    assert torch.equal(hybrid_loss(net, STEPS, x0, ALL, z), hybrid_loss(net, STEPS, x0, ALL, z, vlb_weight=0.001))


def test_bad_levels_are_refused_by_name():
    with pytest.raises(ValueError, match="levels = 1"):
        Discretised(1)
    with pytest.raises(ValueError, match=r"low = 2\.0"):
        Discretised(8, 2.0, 1.0)
