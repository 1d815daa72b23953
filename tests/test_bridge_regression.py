"""The regression that trains kernels, and networks of their variances."""

import copy

import pytest
import torch
from bridge_nets import F64, NEAR0, ONE, awake, batch, half_reference, nets

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.solvers.field import FieldOutputError
from halfbridge.training.bridge import Direction, HalfBridge, PathLaw, ReferenceChain, simulate
from halfbridge.training.bridge.covariances import Isotropic
from halfbridge.training.bridge.ends import Normal
from halfbridge.training.bridge.network import NetworkTransitions, VarianceHead
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.regression import Regression
from halfbridge.training.bridge.residuals import residual_covariances
from halfbridge.training.bridge.targets import TARGETS
from halfbridge.training.bridge.transitions import Sum, Transitions

CHAIN = ReferenceChain.spaced(ONE, [1.0, 2.0, 1.5])


@pytest.mark.parametrize("weighting", ["kl", "plain"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_the_squared_error_of_the_target_in_units_of_the_kernel_or_plain(target, weighting):
    b = batch()

    def net(x, t):
        return (x + t[:, None, None]).sin()

    loss = Regression(target, weighting)(net, b)
    for i in range(7):
        x, out, gamma = b.here[i], (b.here[i] + b.label[i]).sin(), float(b.gamma[i])
        learned = x + gamma * out if target in ("mean", "increment") else out
        scale = {"mean": 1.0, "increment": 1.0, "drift": gamma, "score": 2 * gamma}[target]
        error = (learned - b.value[i]).square().mean() * (scale**2 / (2 * gamma) if weighting == "kl" else 1.0)
        assert float(loss[i]) == pytest.approx(float(error), rel=1e-12)


@pytest.mark.parametrize("form", ["scalar", "diagonal"])
def test_the_head_learns_the_mean_square_of_what_the_mean_leaves_and_leaves_the_mean_alone(form):
    b = batch(n=50)

    class Constant(torch.nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.value = torch.nn.Parameter(torch.zeros(shape, dtype=F64))

        def forward(self, x, t):
            return self.value.expand(x.shape)

    mean, log_r = Constant((2, 3)), Constant((2, 3))
    regression = Regression("increment", head=VarianceHead(log_r, form))
    plain = torch.autograd.grad(Regression("increment")(mean, b).sum(), mean.value)[0]
    q = (b.value - b.here).square() / (2 * b.gamma)[:, None, None] + b.known[:, None, None]
    best = q.mean(0) if form == "diagonal" else q.mean().expand(2, 3)
    log_r.value.data.copy_(best.log())
    on_mean, on_head = torch.autograd.grad(regression(mean, b).sum(), (mean.value, log_r.value))
    assert torch.equal(on_mean, plain)
    assert float(on_head.abs().max()) < 1e-13
    kernels = NetworkTransitions(CHAIN, Direction.FORWARD, mean, "increment", spread=regression.head)
    x = b.here[:4]
    variances = kernels.covariance(1, x).diagonal(x)
    torch.testing.assert_close(variances, 2 * CHAIN.gammas[1] * best.flatten().expand(4, 6))


@pytest.mark.parametrize("form", ["scalar", "diagonal"])
def test_the_head_begins_at_the_references_variances_whatever_the_network(form):
    """A trained network's copy too: nothing of the mean is in the variances, and the copy learns as it would from zero."""
    trained, x = awake(nets(dtype=F64)[0], size=3.0), NEAR0.sample(5, 0)
    t = torch.full((5,), 0.3, dtype=F64)
    assert float(trained(x, t).detach().abs().max()) > 5
    head = VarianceHead(copy.deepcopy(trained).train(), form).train()
    assert not head(x, t).any()
    assert any(p.requires_grad for p in head.net.parameters())
    assert not any(p.requires_grad or module.training for module in head.given.modules() for p in module.parameters())
    head(x, t).sum().backward()
    assert all(p.grad is not None for p in head.net.parameters())
    head.net.load_state_dict(awake(nets(dtype=F64)[1], seed=5).state_dict())
    wanted = head.net(x, t) - trained(x, t)
    torch.testing.assert_close(head(x, t), wanted if form == "diagonal" else wanted.mean(1, keepdim=True))
    with pytest.raises(FieldOutputError, match=r"shape \(5, 1\) for .* \(from the network of variances\)"):
        VarianceHead(Column(), form)(x, t)


class Column(torch.nn.Module):
    def forward(self, x, t):
        return x[:, :1]


@pytest.mark.parametrize("weighting", ["kl", "plain"])
def test_mean_and_drift_are_one_loss_but_for_the_plain_weights(weighting):
    """Row by row: (M(there) - M(here))/gamma as it is, or as a mean here + M(there) - M(here)."""
    b, (net, *_) = batch(shape=(2,)), nets(dtype=F64)
    as_mean = b._replace(value=b.here + b.gamma[:, None] * b.value)
    one, other = Regression("mean", weighting)(awake(net), as_mean), Regression("drift", weighting)(net, b)
    torch.testing.assert_close(one, other * (b.gamma.square() if weighting == "plain" else 1.0))


def test_variances_that_leave_the_numbers_are_divergence():
    """Those of networks and those that are estimated: FloatingPointError, with where, what and how many."""
    x = NEAR0.sample(4, 0)
    log_r = torch.nn.Linear(2, 2).double()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = log_r

        def forward(self, x, t):
            return self.inner(x)

    for value, shown in ((1e4, "inf"), (-1e4, "0")):
        head = VarianceHead(Net(), "diagonal")
        with torch.no_grad():
            head.net.inner.bias += value
        kernels = NetworkTransitions(CHAIN, Direction.FORWARD, nets(dtype=F64)[0], "increment", spread=head)
        with pytest.raises(
            FloatingPointError, match=rf"forward network's variances at t = 0 .* 8 of 8 are not, such as {shown}; low"
        ):
            simulate(kernels, x, 0)
    still = Normal((2,), 1e-200, dtype=F64)
    half = HalfBridge(1, PathLaw(still, Still(CHAIN, Direction.BACKWARD)))
    for form in ("full", "diagonal", "scalar"):
        with pytest.raises(
            FloatingPointError, match=r"covariance of step \d \(forward\), estimated from 50 paths, is none: "
        ):
            residual_covariances(half, Still(CHAIN, Direction.FORWARD), form, 50, 0)
    with pytest.raises(
        ValueError, match="`n` = 2 paths do not determine a covariance in 2 dimensions; pass more than 2"
    ):
        residual_covariances(half, Still(CHAIN, Direction.FORWARD), "full", 2, 0)


class Still(Transitions):
    """Kernels that stay where they are."""

    def terms(self, k, x):
        return Sum([x], [1.0])

    def covariance(self, k, x):
        return NoNoise(1.0)


class NoNoise(Isotropic):
    def disturb(self, x, seed, draw, first):
        pass


@pytest.mark.parametrize("form", ["scalar", "diagonal"])
def test_variances_learned_on_rows_seen_many_times_are_brought_to_those_of_fresh_paths(form):
    """40 paths, kept for 150 steps: the mean knows them by heart, and what the head learns is half of the variance at most. On 4000 fresh
    paths the kernels' variances are in the mean, interval by interval, what the means leave, within 5 of two estimates' standard
    errors sqrt(2/(2 n)). Where no row is seen twice nothing is done."""
    n = 4000
    settings = hb.training.Settings(steps=150, batch_size=64, lr=1e-2, ema_decay=0.9)
    torch.manual_seed(0)
    regressor = NetworkRegressor(*[MLP(2, hidden=64, depth=2).double() for _ in range(2)], variance="matched", form=form,
                                 cache_paths=40, refresh=150, covariance_paths=n, settings=settings)  # fmt: skip
    half = HalfBridge(0, PathLaw(NEAR0, half_reference()))
    made = regressor.fit(half)
    fresh = residual_covariances(half, made, "scalar", n, 5)
    states = half.states(n, 6)
    for j, left in enumerate(fresh):
        said = float(made.covariance(j + 1, states[j + 1]).diagonal(states[0]).mean())
        assert said / left.variance == pytest.approx(1.0, abs=5 * (2 / n) ** 0.5 + 0.02)
        assert made.factors[j] > 2
    once = NetworkRegressor(
        *nets(dtype=F64), variance="matched", cache_paths=8, settings=settings.replace(steps=2, batch_size=8)
    )
    assert once.fit(half).factors is None
