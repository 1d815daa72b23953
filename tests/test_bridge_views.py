"""A bridge in use: drifts against the closed form, flows and likelihoods, trajectories at any time."""

import math

import numpy as np
import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, exact_iterate

import halfbridge as hb
from halfbridge.training.bridge import Bridge, ReferenceChain, ReferenceTransitions, ScoreTransitions, simulate

CLOSED = hb.reference.GaussianBridge(NEAR0, NEAR1, ONE)


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


def test_the_likelihood_along_the_flow_is_the_bridges():
    """log p_t at t_min, by the flow from there to T and the law there: the chain's 40 steps leave 1e-3."""
    x, t_min = NEAR0.sample(5, 2), 0.01
    found = hb.log_likelihood(
        bridge(40).flow_field(), x, prior=NEAR1, solver=hb.Heun(), grid=np.linspace(1.0, t_min, 100)
    )
    torch.testing.assert_close(found.log_prob, CLOSED.marginal(t_min).log_prob(x), rtol=0, atol=4e-3)


def test_trajectories_are_the_chain_and_between_its_times_the_reference_held_at_both():
    made, n = bridge(4), 20_000
    x = NEAR1.sample(n, 3)
    path = made.trajectories(x, 7, to="start", first=2)
    assert torch.equal(path, simulate(made.backward, x, 7, 2, keep=True))
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
    assert made.forward_drift(0.3, torch.zeros(1, 2, dtype=F64)).shape == (1, 2)
