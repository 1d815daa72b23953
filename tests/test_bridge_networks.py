"""Kernels that are networks, and what a half-bridge's training begins from."""

import math

import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, exact_iterate, half_reference, nets

import halfbridge as hb
from halfbridge.training.bridge import Direction, Full, HalfBridge, PathLaw, ReferenceChain, gaussian_chain, simulate
from halfbridge.training.bridge.network import NetworkTransitions, VarianceHead
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.regression import Regression
from halfbridge.training.bridge.targets import TARGETS
from halfbridge.training.bridge.transitions import ScoreTransitions

CHAIN = ReferenceChain.spaced(ONE, [1.0, 2.0, 1.5])
WAYS = pytest.mark.parametrize("direction", Direction, ids=lambda d: d.value)


@WAYS
def test_a_network_sees_the_time_of_the_state_that_a_step_leaves(direction):
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, t):
            seen.append((t, x.clone()))
            return torch.zeros_like(x)

    x = NEAR0.sample(4, 0)
    path = simulate(NetworkTransitions(CHAIN, direction, Spy()), x, seed=0, keep=True)
    labels = {"forward": [0, 1, 2], "backward": [3, 2, 1]}[direction.value]
    assert len(seen) == 3
    for k, (t, at) in zip(labels, seen, strict=True):
        assert torch.equal(t, torch.full((4,), CHAIN.times[k], dtype=F64))
        assert torch.equal(at, path[k])


@pytest.mark.parametrize("target", TARGETS)
@WAYS
def test_kernels_are_those_of_the_target_that_was_learned(direction, target):
    """The network returns what the regression's exact minimiser would have it return: the means are the exact regressor's."""
    exact = exact_iterate(4, 3 if direction is Direction.BACKWARD else 2, target="increment" if target == "increment" else target,
                          variance="matched" if target == "increment" else "fixed")  # fmt: skip
    fitted, reference = exact.law.transitions, exact.reference
    teacher = exact.forward if direction is Direction.BACKWARD else exact.backward
    assert fitted.direction is direction

    class Net(torch.nn.Module):
        def forward(self, x, t):
            k = reference.times.index(float(t[0]))
            gamma = fitted.gamma(k)
            if target == "score":
                return (fitted.mean(k, x) - 2 * x + teacher.mean(direction.arrives(k), x)) / (2 * gamma)
            return (fitted.mean(k, x) - x) / gamma

    kernels = NetworkTransitions(reference, direction, Net(), target, teacher=teacher)
    x = NEAR0.sample(5, 3)
    for k in direction.leaves(4):
        torch.testing.assert_close(kernels.mean(k, x), fitted.mean(k, x), rtol=1e-11, atol=1e-11)
        assert float(kernels.covariance(k, x).diagonal(x)[0, 0]) == pytest.approx(2 * reference.gamma(direction, k))


def test_hooks_see_the_times_that_any_network_is_called_with():
    """In training, and as kernels: (batch,), also of the networks that share labels without hooks."""
    seen, both = [], nets(dtype=F64)
    for net in both:
        net.register_forward_pre_hook(lambda net, arguments: seen.append([*map(torch.Tensor.size, arguments)]))
    settings = hb.training.Settings(steps=2, batch_size=4)
    regressor = NetworkRegressor(*both, variance="matched", cache_paths=7, settings=settings)
    kernels = regressor.fit(HalfBridge(0, PathLaw(NEAR0, half_reference())))
    regressor.fit(HalfBridge(1, PathLaw(NEAR1, kernels)))
    assert len(seen) > 8
    assert all(t == x[:1] for x, t in seen)


def test_the_first_kernels_of_a_score_are_sgms_with_the_covariances_that_they_leave():
    """Nothing is trained. For an exact score of Gaussian data, matched full kernels are the exact reversal, within 6 standard
    errors sqrt(2/n) of a covariance."""
    start = HalfBridge(0, PathLaw(NEAR0, half_reference()))
    field, n = NEAR0.field(ONE), 20_000
    fixed = NetworkRegressor(*nets(), first=field).fit(start)
    assert isinstance(fixed, ScoreTransitions)
    assert fixed.covariances is None
    matched = NetworkRegressor(*nets(), variance="matched", form="full", covariance_paths=n, first=field).fit(start)
    exact = gaussian_chain(start.law).backward
    x = NEAR1.sample(3, 0)
    for j in range(3):
        wanted = exact.cov[j]
        torch.testing.assert_close(matched.mean(j + 1, x), x @ exact.gain[j].mT + exact.offset[j])
        assert float((matched.covariance(j + 1, x).matrix(x)[0] - wanted).abs().max()) < 6 * math.sqrt(2 / n) * float(
            wanted.max()
        )


def test_warm_starts_go_on_from_the_average_of_the_iterate_before_and_leave_it_as_it_was():
    forward, backward = nets(dtype=F64)
    regressor = NetworkRegressor(forward, backward, variance="matched", cache_paths=8,
                                 settings=hb.training.Settings(steps=3, batch_size=8))  # fmt: skip
    half = HalfBridge(0, PathLaw(NEAR0, half_reference()))
    one = regressor.fit(half)
    kept = {k: v.clone() for k, v in one.net.state_dict().items()}
    head = {k: v.clone() for k, v in one.spread.state_dict().items()}
    trainer = regressor.begin(HalfBridge(2, half.law, previous=one))
    for name, value in trainer.net.state_dict().items():
        assert torch.equal(value, kept[name])
    for name, value in trainer.regression.head.state_dict().items():
        assert torch.equal(value, head[name])
    for _ in range(3):
        trainer.advance()
    two = regressor.finish(trainer)
    assert all(torch.equal(v, kept[k]) for k, v in one.net.state_dict().items())
    assert any(not torch.equal(v, kept[k]) for k, v in two.net.state_dict().items())
    assert not two.net.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkTransitions(CHAIN, Direction.FORWARD, nets()[0], "means"), "`target` = 'means' is no target of a half-bridge; did you mean 'mean'"),
        (lambda: NetworkTransitions(CHAIN, Direction.FORWARD, nets()[0], "score"), "pass teacher="),
        (lambda: NetworkTransitions(CHAIN, Direction.FORWARD, nets()[0], spread=[Full(torch.eye(2))]), "has 1 covariances; .* 3"),
        (lambda: VarianceHead(nets()[0], "full"), "`form` = 'full' of a variance that a network gives"),
        (lambda: Regression("mean", "planar"), "`weighting` = 'planar' is no weighting of a loss; did you mean 'plain'"),
        (lambda: NetworkRegressor(*nets(), variance="matched", target="mean"), "pass target='increment'"),
        (lambda: NetworkRegressor(*nets(), form="ful"), "`form` = 'ful' .*did you mean 'full'"),
        (lambda: NetworkRegressor(*nets(), cache_paths=0), "`cache_paths` = 0"),
        (lambda: NetworkRegressor(*nets(), refresh=0), "`refresh` = 0"),
        (
            lambda: simulate(NetworkTransitions(CHAIN, Direction.FORWARD, lambda x, t: x[:, :1]), NEAR0.sample(2, 0), 0),
            r"shape \(2, 1\) for a state of shape \(2, 2\) \(from the forward network\)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
