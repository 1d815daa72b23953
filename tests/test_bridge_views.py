"""A bridge in use: drifts against the closed form, flows and likelihoods, trajectories at any time."""

import functools
import math
import warnings

import numpy as np
import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, exact_iterate, nets

import halfbridge as hb
from halfbridge.training.bridge import (
    Bridge,
    Direction,
    ReferenceChain,
    ReferenceTransitions,
    ScoreTransitions,
    simulate,
)
from halfbridge.training.bridge.bridge_process import BridgeProcess
from halfbridge.training.bridge.network import NetworkTransitions, VarianceHead

CLOSED = hb.reference.GaussianBridge(NEAR0, NEAR1, ONE)


@functools.cache
def bridge(steps, half_bridges=26):
    """By exact discrete IPF: the kernels are the bridge's own."""
    last = exact_iterate(steps, half_bridges)
    return Bridge(last.forward, last.backward)


def test_drifts_at_the_chains_times_are_the_closed_forms_exactly_and_between_to_second_order():
    """With 4 steps: no error of the step at its times."""
    x = NEAR1.sample(6, 0)
    four, errors = bridge(4, 36), []
    for t in four.reference.times:
        if t < 1:
            torch.testing.assert_close(four.forward_drift(t, x), CLOSED.forward_drift(t, x), rtol=1e-9, atol=1e-9)
        if t > 0:
            torch.testing.assert_close(four.backward_drift(t, x), CLOSED.backward_drift(t, x), rtol=1e-9, atol=1e-9)
    for n in (10, 20):
        made, t = bridge(n), 0.55 - 0.25 / n
        errors.append(
            [
                float((getattr(made, d)(t, x) - getattr(CLOSED, d)(t, x)).norm())
                for d in ("forward_drift", "backward_drift")
            ]
        )
    np.testing.assert_allclose(np.divide(*errors), 4.0, rtol=0.35)


def test_drifts_are_held_outside_the_labels_and_refused_outside_the_bridge():
    four, x = bridge(4), NEAR0.sample(3, 0)
    last = torch.full_like(x, 0.0)
    control = four.forward_drift(0.75, x) + 0.5 * x
    torch.testing.assert_close(four.forward_drift(1.0, x) + 0.5 * x, control)
    torch.testing.assert_close(four.backward_drift(0.0, x) + 0.5 * x, four.backward_drift(0.25, x) + 0.5 * x)
    assert not torch.equal(control, last)
    with pytest.raises(ValueError, match=r"`t` = 1\.5 is not a time of this bridge"):
        four.forward_drift(1.5, x)


def test_the_reference_and_sgm_have_their_own_drifts():
    chain = ReferenceChain(hb.VP(), 6)
    field = NEAR0.field(chain.process)
    scores = [torch.ones(()).double() for _ in range(6)]
    made = Bridge(
        ReferenceTransitions(chain),
        ScoreTransitions(chain, field, [hb.training.bridge.Isotropic(float(s)) for s in scores]),
    )
    x, t = NEAR1.sample(4, 1), chain.times[3]
    a, g = chain.process.drift_rate(t), chain.process.diffusion(t)
    torch.testing.assert_close(made.forward_drift(t, x), a * x)
    torch.testing.assert_close(made.backward_drift(t, x), a * x - g**2 * field.score(t, x))
    torch.testing.assert_close(made.probability_flow()(t, x), field.probability_flow()(t, x))


def test_our_solvers_carry_one_law_to_the_other_along_drifts_and_flow():
    """On a grid that is none of the chain's. The flow is deterministic: an affine map, whose mean and covariance are compared
    with the closed form; the SDEs' ends within 6 standard errors and the step's bias, 0.02."""
    made, n = bridge(40), 20_000
    grid = np.linspace(0.0, 1.0, 64)
    x = NEAR0.sample(n, 5)
    for problem, times, begin, wanted in (
        (made.forward_sde(), grid, x, NEAR1),
        (made.backward_sde(), grid[::-1].copy(), NEAR1.sample(n, 6), NEAR0),
        (made.probability_flow(), grid, x, NEAR1),
    ):
        solver = hb.EulerMaruyama() if isinstance(problem, hb.SDE) else hb.Heun()
        y = hb.solve(problem, solver, begin, grid=times, seed=1).x
        left = y - wanted.mean
        assert float(left.mean(0).abs().max()) < 0.02 + 6 / math.sqrt(n)
        assert float((left.mT @ left / n - wanted.cov).abs().max()) < 0.02 + 6 * math.sqrt(2 / n)


NOISELESS = pytest.mark.parametrize("solver", [hb.Heun(), hb.DPMSolver(2), hb.DPMSolverPP(), hb.DDIM()], ids=repr)
FIELDS = [("backward_field", NEAR1, NEAR0), ("forward_field", NEAR0, NEAR1)]


@NOISELESS
@pytest.mark.parametrize("way", FIELDS, ids=lambda way: way[0])
def test_solvers_without_noise_follow_the_flow_to_the_very_end_in_their_order(solver, way):
    """Both ways, on grids that end at 0: the last step is like any other, not twice too long (Tweedie's)."""
    made, x, errors = bridge(20), way[1].sample(200, 6), []
    fine = np.linspace(0.0, 1.0, 201)
    wanted = hb.solve(made.probability_flow(), hb.Heun(), x, grid=fine if way[0] == "forward_field" else 1.0 - fine).x
    for n in (10, 40):
        end = hb.solve(getattr(made, way[0])(solver.stochasticity), solver, x, grid=np.linspace(1.0, 0.0, n + 1)).x
        errors.append(float((end - wanted).norm(dim=1).mean()))
    first, last = (0.05, 0.012) if solver.order == 1 else (0.01, 0.001)
    assert errors[0] < first
    assert errors[-1] < last


@pytest.mark.parametrize("way", FIELDS, ids=lambda way: way[0])
def test_euler_maruyama_on_the_fields_is_that_on_the_sdes(way):
    made, x, grid = bridge(5), way[1].sample(50, 6), np.linspace(1.0, 0.0, 14)
    forward = way[0] == "forward_field"
    sde = made.forward_sde() if forward else made.backward_sde()
    wanted = hb.solve(sde, hb.EulerMaruyama(), x, grid=1.0 - grid if forward else grid, seed=1).x
    found = hb.solve(getattr(made, way[0])(), hb.EulerMaruyama(), x, grid=grid, seed=1).x
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "solver", [hb.ReverseDiffusion(), hb.Ancestral(), hb.Ancestral("transition"), hb.DDIM(1.0), hb.DDIM(0.5)], ids=repr
)
@pytest.mark.parametrize("way", FIELDS, ids=lambda way: way[0])
def test_samplers_of_fields_carry_one_law_to_the_other(solver, way):
    """As of the SDEs, by hb.sample from the law at the other end."""
    name, begin, wanted = way
    made, n = bridge(40), 20_000
    y = hb.sample(getattr(made, name)(solver.stochasticity), solver, grid=np.linspace(1.0, 0.0, 64), shape=(n, 2), seed=3,
                  prior=begin, dtype=F64)  # fmt: skip
    left = y - wanted.mean
    assert float(left.mean(0).abs().max()) < 0.02 + 6 / math.sqrt(n)
    assert float((left.mT @ left / n - wanted.cov).abs().max()) < 0.02 + 6 * math.sqrt(2 / n)


def test_the_equation_of_the_fields_does_not_depend_on_their_spread():
    """Drift rate, diffusion and transitions are the reference's, for its reversal too; the noise level and its inverse agree."""
    reference = hb.VP(0.1, 4.0)
    for way in Direction:
        one, other = (BridgeProcess(reference, way, spread) for spread in (0.3, 2.0))
        for u in (0.0, 0.3, 1.0):
            t = u if way is Direction.BACKWARD else 1.0 - u
            sign = 1.0 if way is Direction.BACKWARD else -1.0
            assert one.drift_rate(u) == other.drift_rate(u) == sign * reference.drift_rate(t)
            assert one.diffusion(u) == other.diffusion(u) == reference.diffusion(t)
        for process in (one, other):
            assert process.alpha(0.0) == pytest.approx(1.0)
            assert process.sigma(0.0) == pytest.approx(process.spread)
            u = torch.linspace(0.0, 1.0, 5, dtype=F64)
            torch.testing.assert_close(process.time_at(process.half_log_snr(u)), u, rtol=1e-9, atol=1e-9)
            r, v = process.transition(0.2, 0.7)
            assert r == pytest.approx(process.alpha(0.7) / process.alpha(0.2))
            assert v == pytest.approx(process.sigma(0.7) ** 2 - (r * process.sigma(0.2)) ** 2)


@pytest.mark.parametrize("spread", [0.1, 1.0])
@pytest.mark.parametrize("way", Direction)
@pytest.mark.parametrize(
    "process", [hb.VP(), hb.CosineVP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.OU(), hb.OU(3.0, 1.0, 2.0), hb.Brownian(),
                hb.LinearProcess(lambda t: torch.exp(-t), lambda t: torch.sqrt(t + 0.01), 1.0, 1e-3)], ids=repr,
)  # fmt: skip
def test_every_time_of_a_fields_process_is_found_again_from_its_noise_and_grids_cover_it(process, way, spread):
    """Both ends too, as floats and in float32; levels beyond them are refused. A time is as near as its level, rounded, tells."""
    made = BridgeProcess(process, way, spread)
    u = made.T * torch.tensor([0.0, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0], dtype=F64)
    levels = made.half_log_snr(u)
    again = made.time_at(levels)
    assert again.min() >= 0.0
    assert again.max() <= made.T
    torch.testing.assert_close(made.half_log_snr(again), levels, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(again[1:-1], u[1:-1], rtol=1e-4, atol=0.0)
    assert made.time_at(made.half_log_snr(made.T)) == pytest.approx(made.T, rel=1e-4)
    torch.testing.assert_close(made.half_log_snr(made.time_at(levels.float()).double()), levels, rtol=1e-4, atol=1e-4)
    for grid in (hb.grids.half_log_snr, hb.grids.karras):
        times = grid(made, 20)
        assert (times[0], times[-1]) == (made.T, 0.0)
        assert (np.diff(times) < 0).all()
    for beyond in (float(levels[0]) + 1e-3, float(levels[-1]) - 1e-3, math.inf):
        with pytest.raises(ValueError, match=r"a half log-SNR of .* lies outside those of \[0, T\]"):
            made.time_at(beyond)


@pytest.mark.parametrize("t_min", [0.0, 0.01])
def test_the_likelihood_along_the_flow_is_the_bridges(t_min):
    """log p_t at t_min, by the flow from there to T and the law there, and at 0 itself: the chain's 40 steps leave 2e-3 there."""
    x = NEAR0.sample(5, 2)
    field = bridge(40).flow_field()
    found = hb.log_likelihood(field, x, prior=NEAR1, solver=hb.Heun(), grid=np.linspace(1.0, t_min, 100))
    torch.testing.assert_close(found.log_prob, CLOSED.marginal(t_min).log_prob(x), rtol=0, atol=4e-3)
    if t_min == 0:
        torch.testing.assert_close(
            hb.log_likelihood(field, x, prior=NEAR1, rtol=1e-4, atol=1e-6).log_prob, found.log_prob, rtol=0, atol=2e-3
        )


def test_trajectories_are_the_chain_and_between_its_times_the_reference_held_at_both():
    made, n = bridge(4), 20_000
    x = NEAR1.sample(n, 3)
    path = made.trajectories(x, 7, to="start", first=2)
    assert torch.equal(path, simulate(made.backward, x, 7, 2, 1, keep=True))
    assert torch.equal(path[4], x)
    assert torch.equal(path[0], made.translate(x, 7, to="start", first=2))
    times = [0.9, 0.8, 0.5, 0.3, 0.0]
    some = made.trajectories(x, 7, to="start", times=times, first=2)
    assert torch.equal(some[2], path[2])
    assert torch.equal(some[4], path[0])
    joint = CLOSED.joint(times)
    z = some.transpose(0, 1).reshape(n, -1)
    left = z - joint.mean
    spread = joint.cov.diagonal()
    assert (left.mean(0).abs() < 5 * (spread / n).sqrt()).all()
    error = ((torch.outer(spread, spread) + joint.cov.square()) / n).sqrt()
    assert ((left.mT @ left / n - joint.cov).abs() < 5 * error).all()
    other = made.trajectories(x[:5], 7, to="start", times=times[::-1], first=2)
    torch.testing.assert_close(other.flip(0), some[:, :5])
    tensor = torch.tensor(times[::-1], dtype=F64)
    assert torch.equal(made.trajectories(x[:5], 7, to="start", times=tensor, first=2), other)


def test_a_round_trip_with_one_seed_comes_back_to_the_law_that_it_left():
    """There and back is two independent translations: the covariance of the ends within 5 standard errors. With the noise of the
    way there on the way back it would be 70 % too large. States between the chain's are drawn anew too."""
    made, n = bridge(4), 20_000
    x = NEAR0.sample(n, 1)
    y = made.translate(x, 7)
    z = made.translate(y, 7, to="start")
    left, spread = z - NEAR0.mean, NEAR0.cov.diagonal()
    assert (left.mean(0).abs() < 5 * (spread / n).sqrt()).all()
    error = ((torch.outer(spread, spread) + NEAR0.cov.square()) / n).sqrt()
    assert ((left.mT @ left / n - NEAR0.cov).abs() < 5 * error).all()
    there, back = (made.trajectories(x, 7, to=to, times=[0.1])[0] for to in ("end", "start"))
    held = [made.trajectories(x, 7, to=to)[:2] for to in ("end", "start")]
    noise = [at - 0.6 * a - 0.4 * b for at, (a, b) in zip((there, back), held, strict=True)]
    correlation = torch.corrcoef(torch.cat(noise, 1).mT)[:2, 2:]
    assert float(correlation.abs().max()) < 5 / n**0.5


def test_a_state_between_two_of_the_chain_is_drawn_from_the_references_conditional_law():
    """Exactly: weights by conditioning a joint Gaussian, the noise that of the time's place among those asked for."""
    made, x = bridge(4, 2), NEAR0.sample(5, 1)
    path = made.trajectories(x, 3)
    at = made.trajectories(x, 3, times=[0.1, 0.3, 0.4])
    (r1, v1), (r2, v2) = ONE.transition(0.3, 0.4), ONE.transition(0.4, 0.5)
    for t, here, (r, v), (gain, w), count in (
        (1, path[1], ONE.transition(0.25, 0.3), ONE.transition(0.3, 0.5), 2),
        (2, at[1], (r1, v1), (r2, v2), 3),
    ):
        s = 3.0  # of the state before, which drops out
        joint = np.array(
            [[s, r * s, gain * r * s], [0, r**2 * s + v, gain * (r**2 * s + v)], [0, 0, gain**2 * (r**2 * s + v) + w]]
        )
        joint = np.triu(joint) + np.triu(joint, 1).T
        weights = joint[1, [0, 2]] @ np.linalg.inv(joint[np.ix_([0, 2], [0, 2])])
        left = joint[1, 1] - weights @ joint[[0, 2], 1]
        z = hb.kernels.normal((5, 2), 3, 4 + count, dtype=F64)
        torch.testing.assert_close(
            at[t], weights[0] * here + weights[1] * path[2] + left**0.5 * z, rtol=1e-9, atol=1e-9
        )


def test_the_last_steps_noise_can_be_left_out():
    made, x = bridge(4), NEAR0.sample(4, 3)
    path = made.trajectories(x, 1)
    quiet = made.translate(x, 1, last_noise=False)
    torch.testing.assert_close(quiet, made.forward.mean(3, path[3]))


def test_bad_input_is_named():
    made = bridge(2, 2)
    with pytest.raises(ValueError, match="`to` = 'stat' is no end of a bridge; did you mean 'start'"):
        made.translate(NEAR0.sample(2, 0), 0, to="stat")
    with pytest.raises(ValueError, match="`forward` are kernels of the backward direction; exchange them"):
        Bridge(made.backward, made.forward)
    with pytest.raises(ValueError, match="`backward` is under"):
        Bridge(made.forward, bridge(3, 2).backward)
    with pytest.raises(ValueError, match=r"times\[1\] = 1.2 lies outside the bridge"):
        made.trajectories(NEAR0.sample(2, 0), 0, times=[0.1, 1.2])
    for sde, grid, way in (
        (made.forward_sde(), [1.0, 0.0], "increasing"),
        (made.backward_sde(), [0.0, 1.0], "decreasing"),
    ):
        with pytest.raises(ValueError, match=f"this SDE is for {way} times; pass the SDE of the other direction"):
            hb.solve(sde, hb.EulerMaruyama(), NEAR0.sample(2, 0), grid=grid, seed=0)
    with pytest.raises(ValueError, match="`grid` must decrease"):
        hb.solve(made.forward_field(), hb.EulerMaruyama(), NEAR0.sample(2, 0), grid=[0.0, 1.0], seed=0)
    with pytest.raises(ValueError, match="`stochasticity` = None must be a number in"):
        made.backward_field(hb.Heun(churn=2.0).stochasticity)
    with pytest.raises(ValueError, match="pass prior= the law at 0"):
        hb.sample(made.forward_field(), hb.Ancestral(), grid=[1.0, 0.0], shape=(2, 2), seed=0)
    assert made.forward_drift(0.3, torch.zeros(1, 2, dtype=F64)).shape == (1, 2)


def trained():
    """A bridge of networks, with those of the teacher and of variances."""
    chain = ReferenceChain(ONE, 3)
    inner = NetworkTransitions(chain, Direction.BACKWARD, nets()[0], "increment")
    forward = NetworkTransitions(chain, Direction.FORWARD, nets()[1], "score", teacher=inner)
    head = VarianceHead(nets()[0], "diagonal")
    return Bridge(forward, NetworkTransitions(chain, Direction.BACKWARD, nets()[0], "increment", spread=head))


def test_a_bridge_is_moved_with_all_its_networks():
    made = trained()
    assert made.to("meta") is made
    for part in (made.forward.net, made.forward.teacher.net, made.backward.net, made.backward.spread):
        assert {p.device.type for p in part.parameters()} == {"meta"}
    exact = bridge(2, 2)
    assert exact.to("cpu") is exact


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 2, dtype=F64), ValueError, "x is torch.float64 on cpu, but the forward network torch.float32 on cpu; convert x"),
        (np.zeros((2, 2)), TypeError, "x must be a tensor of shape .* got ndarray"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "x must be finite, but 1 of its 2 entries"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, "floating point"),
    ],
)  # fmt: skip
def test_states_that_the_networks_cannot_take_are_named(x, error, message):
    for carry in (trained().translate, trained().trajectories):
        with pytest.raises(error, match=message):
            carry(x, 0)


def test_times_may_be_tensors_in_float64_alone():
    made, x = bridge(2, 2), NEAR0.sample(2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = made.trajectories(x, 0, times=torch.linspace(0.0, 1.0, 3, dtype=F64))
    assert torch.equal(found, made.trajectories(x, 0))
    with pytest.raises(
        ValueError, match=r"`times` has dtype float32, in which 0.1 is 0.100000001; make them in float64"
    ):
        made.trajectories(x, 0, times=torch.linspace(0.0, 1.0, 3))
