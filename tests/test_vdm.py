"""Variational diffusion: sums against integrals, one schedule against another, and what trains a schedule."""

import math

import pytest
import torch
from exact_moments import (
    COV,
    LAW,
    PREDICTS,
    STEPS,
    by_name,
    converted,
    crooked,
    every_time,
    exact_net,
    exact_sample,
    quadrature,
)
from largest_tensor import LargestTensor

import halfbridge as hb
from halfbridge.training.losses import (
    Discretised,
    LearnedSchedule,
    correction,
    ddpm_elbo,
    draw_times,
    learned_vdm_loss,
    prior_kl,
    reconstruction,
    vdm_discrete_loss,
    vdm_loss,
)
from halfbridge.training.losses.vdm import step_times

ENDS = {"gamma_0": -6.0, "gamma_1": 5.0}
PLAIN = [hb.VP(), hb.EDM(0.01, 20.0), hb.VE(0.05, 20.0), hb.OU(g=1.4)]


def bent(seed=0, hidden=12):
    """A learned schedule with an interior of its own."""
    schedule = LearnedSchedule(**ENDS, hidden=hidden)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (schedule.weight_1, schedule.weight_2, schedule.bias_2, schedule.weight_3):
            p.add_(1.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return schedule


def integral(process, net, nodes=120, times="likelihood", loss=vdm_loss):
    """The diffusion loss in infinitely many steps, E over data and noise."""
    u, weights = quadrature(nodes)
    t, inverse = draw_times(process, u, times)
    x, t, z = every_time(t.detach(), *exact_sample())
    values = loss(net, process, x, t, z, labels=lambda t: t).view(nodes, -1).mean(dim=1)
    return (weights * correction(process, inverse, integral=True) * values).sum()


def closed_form(gamma_0, gamma_1):
    """1/2 int tr(I - sigma^2 S^-1) dgamma for the exact field: eigenvalues c give c/(c + e^gamma)."""
    c = torch.linalg.eigvalsh(COV)
    return 0.5 * sum(
        (gamma_1 - gamma_0) - math.log((v + math.exp(gamma_1)) / (v + math.exp(gamma_0))) for v in c.tolist()
    )


@pytest.mark.parametrize("process", PLAIN, **by_name)
def test_the_integral_at_the_exact_field_is_its_closed_form_on_every_process(process):
    ends = [-2.0 * process.half_log_snr(t) for t in (process.t_min, process.T)]
    assert integral(process, exact_net(process)).item() == pytest.approx(closed_form(*ends), rel=1e-9)


def test_the_loss_does_not_depend_on_the_schedule_between_its_ends():
    totals = []
    for schedule in (LearnedSchedule(**ENDS, hidden=16), bent(1), bent(2)):
        process = schedule.process()
        with torch.no_grad():
            totals.append(integral(process, exact_net(process), times="uniform", nodes=160).item())
            # and so for a field that is wrong in the same way at each lambda
            wrong = exact_net(process, law=hb.reference.Gaussian([0.0, 0.3], 1.3))
            totals.append(integral(process, wrong, times="uniform", nodes=160).item())
    assert totals[::2] == pytest.approx([closed_form(-6.0, 5.0)] * 3, rel=1e-6)
    assert totals[1::2] == pytest.approx([totals[1]] * 3, rel=1e-6)
    middle = torch.tensor([0.5], dtype=torch.float64)
    assert abs((bent(1)(middle) - bent(2)(middle)).item()) > 0.1


@pytest.mark.parametrize(
    "process", [LearnedSchedule(**ENDS, hidden=8).process(), bent(3).process()], ids=["line", "bent"]
)
def test_the_sum_over_steps_tends_to_the_integral_from_above_at_first_order(process):
    net = exact_net(process)

    def total(steps):
        x, i, z = every_time(torch.arange(1.0, steps + 1.0, dtype=torch.float64), *exact_sample())
        return vdm_discrete_loss(net, process, x, i, z, steps=steps, labels=lambda t: t).sum().item() / 32

    with torch.no_grad():
        limit = closed_form(*(-2.0 * process.half_log_snr(t) for t in (process.t_min, process.T)))
        gaps = [total(n) - limit for n in (400, 800, 1600)]
    assert gaps[2] > 0
    assert gaps[0] / gaps[1] == pytest.approx(2.0, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2.0, rel=0.05)


def test_terms_are_those_of_ddpm_on_its_chain():
    """t_min = 1 is DDPM's step 1: term j of VDM's N - 1 steps is L_j, with the variance "posterior"."""
    steps = int(STEPS.T) - 1
    j = torch.arange(1.0, steps + 1.0, dtype=torch.float64)
    x0, z = exact_sample(steps)
    got = vdm_discrete_loss(crooked, STEPS, x0, j, z, steps=steps)
    torch.testing.assert_close(got, ddpm_elbo(crooked, STEPS, x0, j + 1.0, z), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("process", PLAIN, **by_name)
def test_the_discrete_weight_is_half_the_drop_of_snr_on_the_error_of_the_data(process):
    x0, z = exact_sample(7)
    i = torch.arange(1.0, 8.0, dtype=torch.float64)
    s, t = step_times(process, i, 7)
    assert (s[0].item(), t[-1].item()) == (process.t_min, process.T)
    assert torch.equal(s[1:], t[:-1])
    clean = converted(crooked, process, "data")(process.perturb(t, x0, z), t)
    snr = [(process.alpha(u) / process.sigma(u)) ** 2 for u in (s, t)]
    expected = 0.5 * (snr[0] - snr[1]) * (clean - x0).square().sum(dim=1)
    got = vdm_discrete_loss(crooked, process, x0, i, z, steps=7)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=0.0)


def test_the_bound_of_the_exact_gaussian_field_is_the_entropy_and_the_gaps_at_both_ends():
    """E of the bound - H(q) = KL(q_T || prior) + the gap of reconstructing from z_s, which vanishes with gamma_0."""
    law = hb.reference.Gaussian([0.7, -0.4], COV)
    entropy = 0.5 * math.log((2.0 * math.pi * math.e) ** 2 * torch.linalg.det(COV).item())
    gaps = []
    for gamma_0 in (-6.0, -9.0, -12.0):
        process = LearnedSchedule(gamma_0, 5.0, hidden=8).process()
        x0 = exact_sample()[0]
        with torch.no_grad():
            ends = (prior_kl(process, x0) + reconstruction(process, x0)).mean().item()
        total = ends + closed_form(gamma_0, 5.0)
        gaps.append(total - entropy - law.at(process, 1.0).kl(hb.reference.Gaussian([0.0, 0.0], 1.0)))
    # reconstruction by N(z_s/alpha, nu^2), exact posterior narrower by nu^2/c: 1/2 sum log(1 + nu^2/c)
    expected = [
        0.5 * sum(math.log1p(math.exp(g) / c) for c in torch.linalg.eigvalsh(COV).tolist()) for g in (-6, -9, -12)
    ]
    assert gaps == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("gamma", [-9.0, -4.0, -1.0, 2.0])
@pytest.mark.parametrize("n", [2, 5, 33])
def test_the_levels_at_the_start_cost_what_bayes_gives_them_on_average(gamma, n):
    """-log of the posterior over all levels given z_s, by its definition, over a fine grid of noises."""
    levels = Discretised(n, -1.0, 1.0)
    process = LearnedSchedule(gamma, 5.0, hidden=4).process()
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    centres = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)
    z = torch.linspace(-9.0, 9.0, 6001, dtype=torch.float64)
    share = torch.softmax(-0.5 * z**2, dim=0)
    seen = alpha * centres[:, None] + sigma * z
    posterior = torch.log_softmax(-0.5 * ((seen[..., None] - alpha * centres) / sigma) ** 2, dim=-1)
    expected = torch.stack([-(share * posterior[k, :, k]).sum() for k in range(n)])
    got = torch.stack([reconstruction(process, c.view(1, 1), levels)[0] for c in centres])
    torch.testing.assert_close(got, expected, rtol=0.0, atol=2e-8)
    x0 = centres[torch.tensor([[0, n - 1], [1, 0], [n // 2, 1]])]
    total = got[levels.index(x0).long()].sum(dim=1)
    torch.testing.assert_close(reconstruction(process, x0, levels), total, rtol=1e-12, atol=0.0)


def test_a_learned_schedule_is_told_what_the_levels_cost():
    """d/d gamma_0 against differences, and no memory of (elements, levels): the cost of a level is found once."""
    levels, x0 = Discretised(256), torch.linspace(-1.0, 1.0, 256, dtype=torch.float64).repeat(4, 40)
    schedule = LearnedSchedule(-6.0, 5.0, hidden=4)
    with LargestTensor() as seen:
        loss = reconstruction(schedule.process(), x0, levels).sum()
    assert seen.numel <= x0.numel()
    (gradient,) = torch.autograd.grad(loss, schedule.gamma_0)
    ends = [
        reconstruction(LearnedSchedule(g, 5.0, hidden=4).process(), x0, levels).sum()
        for g in (-6.0 + 1e-4, -6.0 - 1e-4)
    ]
    assert gradient.item() == pytest.approx(((ends[0] - ends[1]) / 2e-4).item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_learned_schedule_is_monotone_between_its_ends_and_its_slope_is_exact(seed):
    schedule, t = bent(seed), torch.linspace(1e-3, 1.0, 301, dtype=torch.float64)
    process = schedule.process()
    gamma = schedule(t).detach()
    assert (gamma.diff() > 0).all()
    assert (gamma[0].item(), gamma[-1].item()) == pytest.approx((-6.0, 5.0), rel=1e-12)
    h = 1e-5
    inner = t[1:-1]
    slope = (schedule(inner + h) - schedule(inner - h)).detach() / (2 * h)
    torch.testing.assert_close((process.diffusion(inner) / process.sigma(inner)) ** 2, slope, rtol=1e-6, atol=0.0)
    with torch.no_grad():
        alpha, sigma = process.alpha(inner), process.sigma(inner)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14, atol=0.0)
        torch.testing.assert_close((sigma / alpha) ** 2, schedule(inner).exp(), rtol=1e-12, atol=0.0)
        rate = (process.alpha(inner + h) - process.alpha(inner - h)) / (2 * h) / alpha
        torch.testing.assert_close(process.drift_rate(inner), rate, rtol=1e-5, atol=1e-7)
        back = process.time_at(process.half_log_snr(inner))
        torch.testing.assert_close(back, inner, rtol=0.0, atol=1e-12)
        assert process.time_at(process.half_log_snr(0.3)) == pytest.approx(0.3, abs=1e-12)
        r, v = process.transition(0.2, 0.7)
        assert r == pytest.approx(process.alpha(0.7) / process.alpha(0.2), rel=1e-12)
        assert v == pytest.approx(process.sigma(0.7) ** 2 - (r * process.sigma(0.2)) ** 2, rel=1e-9)


def test_times_of_levels_follow_the_schedule_as_it_learns():
    """d t/d parameters at a fixed lambda, by the implicit function theorem, against differences."""
    schedule = bent(4)
    level = torch.tensor([0.5, -1.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(schedule.process().time_at(level).sum(), schedule.log_span)
    values = []
    for h in (1e-5, -1e-5):
        moved = bent(4)
        with torch.no_grad():
            moved.log_span.add_(h)
            values.append(moved.process().time_at(level).sum().item())
    assert gradient.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_a_learned_process_samples_like_any_other():
    law = hb.reference.Gaussian([0.7, -0.4], COV)
    process = bent(5).process()
    grid = hb.grids.half_log_snr(process, 40)
    unit = hb.reference.Gaussian([0.0, 0.0], 1.0)
    end = hb.reference.law_of(hb.DPMSolver(order=3), process, grid, law, start=unit)
    lost = law.at(process, 1.0).kl(unit)  # the prior is not quite the law at T; the exact flow keeps this divergence
    assert law.at(process, process.t_min).kl(end) == pytest.approx(lost, rel=0.01)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_learned_loss_is_the_loss_of_its_process(predicts):
    schedule, (x0, z) = bent(6), exact_sample(9)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    process = schedule.process()
    net = converted(lambda x, label: crooked(x, label) + label[:, None], process, predicts)
    by_time = lambda x, level: net(x, process.time_at(level))  # noqa: E731
    got = learned_vdm_loss(by_time, schedule, x0, t, z, predicts=predicts)
    expected = vdm_loss(by_time, process, x0, t, z, predicts=predicts, labels=process.half_log_snr)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)


def gradients(loss, module):
    return dict(
        zip([n for n, _ in module.named_parameters()], torch.autograd.grad(loss, [*module.parameters()]), strict=True)
    )


def test_the_interior_learns_from_the_variance_and_the_ends_and_the_net_from_the_bound():
    schedule, (x0, z) = bent(7), exact_sample(9)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    net = torch.nn.Linear(2, 2, dtype=torch.float64)
    told = lambda x, level: net(x) + 0.1 * level[:, None]  # noqa: E731

    def loss(interior):
        return learned_vdm_loss(told, schedule, x0, t, z, interior=interior)

    of_bound = gradients(loss("bound").sum(), schedule)
    of_square = gradients(0.5 * loss("bound").square().sum(), schedule)  # over d = 2
    got = gradients(loss("variance").sum(), schedule)
    for name in ("gamma_0", "log_span"):
        torch.testing.assert_close(got[name], of_bound[name], rtol=1e-12, atol=0.0)
    for name in ("weight_1", "weight_2", "bias_2", "weight_3"):
        torch.testing.assert_close(got[name], of_square[name], rtol=1e-10, atol=1e-12)
    plain = vdm_loss(told, schedule.process(), x0, t, z, labels=schedule.process().half_log_snr)
    direct = gradients(plain.sum(), schedule)
    for name, value in of_bound.items():
        torch.testing.assert_close(value, direct[name], rtol=1e-9, atol=1e-12)
    for found, expected in zip(*(torch.autograd.grad(loss(i).sum(), [*net.parameters()]) for i in ("variance", "bound")), strict=True):  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_following_the_variance_gradient_lowers_the_variance_and_keeps_the_mean():
    schedule = LearnedSchedule(**ENDS, hidden=16)
    u, weights = quadrature(40)
    x, t, z = every_time(1e-3 + 0.999 * u, *exact_sample(8))
    share = weights.repeat_interleave(8) / 8.0

    def net(x, level):
        """The exact field, told lambda."""
        alpha, sigma = (torch.sigmoid(s * 2.0 * level).sqrt()[:, None, None] for s in (1.0, -1.0))
        total = alpha**2 * COV + sigma**2 * torch.eye(2, dtype=torch.float64)
        return sigma[..., 0] * torch.linalg.solve(total, (x - alpha[..., 0] * LAW.mean)[..., None])[..., 0]

    interior = [p for name, p in schedule.named_parameters() if name not in ("gamma_0", "log_span")]
    optimizer = torch.optim.Adam(interior, lr=0.1)
    variances = []
    for _ in range(60):
        loss = learned_vdm_loss(net, schedule, x, t, z)
        mean = (share * loss).sum()
        assert mean.item() == pytest.approx(closed_form(**ENDS) / 0.999, rel=1e-4)
        variances.append((share * (loss - mean) ** 2).sum().item())
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
    assert variances[-1] < 0.6 * variances[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnedSchedule(1.0, 1.0), "gamma_0 = 1.0 must be finite and below gamma_1 = 1.0"),
        (lambda: LearnedSchedule(hidden=0), "hidden = 0"),
        (lambda: LearnedSchedule(**ENDS).process().time_at(4.0), "from 4 to 4 is not reached"),
        (lambda: step_times(hb.VP(), torch.tensor([0.0, 1.0]), 4), r"i holds 0, but the steps are the whole numbers 1 .. 4"),
        (lambda: learned_vdm_loss(crooked, bent(), *exact_sample(3)[:1], torch.rand(3), exact_sample(3)[1], interior="x"), "interior = 'x' is unknown; there are 'variance', 'bound'"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
