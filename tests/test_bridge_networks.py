"""Kernels that are networks, the regression that trains them, and the cache that it sees."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, awake, exact_iterate, nets

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.solvers.field import FieldOutputError
from halfbridge.training.bridge import Direction, Full, HalfBridge, PathLaw, ReferenceChain, gaussian_chain, simulate
from halfbridge.training.bridge.cache import TrajectoryCache
from halfbridge.training.bridge.covariances import Isotropic
from halfbridge.training.bridge.ends import Normal
from halfbridge.training.bridge.memory import available
from halfbridge.training.bridge.network import NetworkTransitions, VarianceHead
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.regression import Batch, Regression
from halfbridge.training.bridge.residuals import residual_covariances
from halfbridge.training.bridge.room import buffer
from halfbridge.training.bridge.targets import TARGETS
from halfbridge.training.bridge.transitions import ScoreTransitions, Sum, Transitions

CHAIN = ReferenceChain.spaced(ONE, [1.0, 2.0, 1.5])
WAYS = pytest.mark.parametrize("direction", Direction, ids=lambda d: d.value)


def half_bridge(direction, start=NEAR0):
    """One whose kernels of that direction are wanted: the teacher is a network that runs the other way."""
    teacher = NetworkTransitions(CHAIN, direction.other, awake(nets(dtype=F64)[0]), "drift")
    return HalfBridge(3, PathLaw(start, teacher))


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


@WAYS
@pytest.mark.parametrize("target", TARGETS)
def test_the_rows_of_a_cache_are_the_pairs_of_the_half_bridge_with_their_labels(direction, target):
    half, n = half_bridge(direction), 5
    cache = TrajectoryCache(CHAIN, NEAR0.sample(1, 0), n, target, chunk=3)
    cache.hold(half, seed=4, refresh=2)
    assert len(cache) == 15
    for pair in half.pairs(n, 4, 2 * n, means=True):
        j = direction.interval(pair.k)
        batch = cache.batch(torch.arange(j * n, (j + 1) * n))
        torch.testing.assert_close(batch.here, pair.here, rtol=0, atol=1e-14)
        torch.testing.assert_close(batch.value, TARGETS[target].value(pair), rtol=0, atol=1e-12)
        assert torch.equal(batch.label, torch.full((n,), CHAIN.times[pair.k], dtype=F64))
        assert torch.equal(batch.gamma, torch.full((n,), pair.gamma, dtype=F64))
    shuffled = torch.tensor([14, 0, 7])
    mixed, whole = cache.batch(shuffled), cache.batch(torch.arange(15))
    for a, b in zip(mixed, whole, strict=True):
        assert torch.equal(a, b[shuffled])


@pytest.mark.parametrize("target", ["mean", "increment"])
def test_a_cache_is_a_function_of_teacher_seed_and_refresh_wherever_it_lies(target, tmp_path):
    half, like = half_bridge(Direction.FORWARD), NEAR0.sample(1, 0)
    here, there = (TrajectoryCache(CHAIN, like, 6, target, where=w, folder=tmp_path) for w in ("memory", "disk"))
    assert list(tmp_path.iterdir()) == []  # the file has no name
    held = []
    for cache in (here, there):
        place = cache.states.data_ptr()
        for refresh in (1, 0, 1):
            cache.hold(half, 0, refresh)
            held.append(cache.states.clone())
        assert cache.states.data_ptr() == place
    assert all(torch.equal(held[0], held[i]) for i in (2, 3, 5))
    assert torch.equal(held[1], held[4])
    rows = torch.cat([held[0], held[1]])
    assert len(torch.unique(rows, dim=0)) == len(rows)  # no state of one refresh is one of the other


def test_a_cache_above_its_limit_goes_to_the_disk_and_says_so(tmp_path):
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "folder": tmp_path}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer((10, 5), **options, limit=200)
    with pytest.warns(RuntimeWarning, match="has 200 bytes, more than cache_limit = 199: it goes to the disk, in "):
        made = buffer((10, 5), **options, limit=199)
    made.fill_(1.0)
    assert made.sum() == 50
    with (
        pytest.warns(RuntimeWarning, match=r"more than \d+, its share of the free memory: it goes to the disk"),
        pytest.raises(OSError, match="cache_folder"),
    ):
        buffer((1 << 46,), **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="`cache` = 'dusk' is no place for a cache; did you mean 'disk'"):
        buffer((2,), **options, where="dusk")
    with pytest.raises(ValueError, match="`cache_limit` = 0 must be"):
        buffer((2,), **options, limit=0)


def test_a_cache_that_a_gpu_has_no_room_for_goes_to_the_hosts_memory_first(monkeypatch, tmp_path):
    """The meta device stands for one with its own memory."""
    gpu, free = torch.device("meta"), {"meta": 400, "cpu": 2000}
    monkeypatch.setattr("halfbridge.training.bridge.room.available", lambda place: free[place.type])
    options = {"dtype": torch.float32, "folder": tmp_path}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count, among, place in ((50, 1, "meta"), (51, 1, "cpu"), (50, 9, "meta"), (125, 2, "cpu")):
            assert buffer((count,), device=gpu, among=among, **options).device.type == place
    for count, among, most in ((251, 1, 1000), (126, 2, 500)):
        with pytest.warns(
            RuntimeWarning, match=f"has {4 * count} bytes, more than {most}, its share of the free memory"
        ):
            assert buffer((count,), device=gpu, among=among, **options).device.type == "cpu"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8000),
        ({"proc/self/cgroup": "0::/\n"}, 8000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": "9"}, 8000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000", "sys/fs/cgroup/memory.current": "3000",
          "sys/fs/cgroup/memory.stat": "anon 7\ninactive_file 600\n"}, 2600),
        # the limit of a group above; the path outside, in a container whose tree begins at its own group
        ({"proc/self/cgroup": "0::/jobs/7\n", "sys/fs/cgroup/jobs/memory.max": "4000", "sys/fs/cgroup/jobs/memory.current": "3500",
          "sys/fs/cgroup/jobs/7/memory.max": "4000", "sys/fs/cgroup/jobs/7/memory.current": "10"}, 500),
        ({"proc/self/cgroup": "0::/docker/ab\n", "sys/fs/cgroup/memory.max": "700", "sys/fs/cgroup/memory.current": "800"}, 0),
        ({"proc/self/cgroup": "3:cpu:/\n4:memory:/job\n0::/\n", "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "6000",
          "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "5000",
          "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 20\n"}, 1020),
    ],
    ids=["none", "no limit", "max", "version 2", "above", "container", "version 1"],
)  # fmt: skip
def test_free_memory_is_what_the_system_and_every_control_group_have_left(files, free, tmp_path):
    for name, text in {"proc/meminfo": "MemTotal: 20 kB\nMemAvailable: 8 kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available(torch.device("cpu"), tmp_path) == (8192 if free == 8000 else free)


def batch(n=7, shape=(2, 3)):
    g = torch.Generator().manual_seed(0)
    here, value = (torch.randn(n, *shape, generator=g, dtype=F64) for _ in range(2))
    label, gamma, known = torch.rand(3, n, generator=g, dtype=F64)
    return Batch(here, value, label, 0.1 + gamma, known)


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


def half_reference():
    return hb.training.bridge.ReferenceTransitions(ReferenceChain(ONE, 3))


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


@pytest.mark.parametrize("few", [True, False])
def test_training_sees_each_row_once_a_pass_and_paths_anew_each_refresh(few, monkeypatch):
    """3 steps of 8 rows are a pass over 8 paths of 3 steps; the passes of the next half-bridge are in another order. Also of many
    rows, whose order is not sorted."""
    monkeypatch.setattr("halfbridge.training.bridge.half_trainer.SORTED", 24 if few else 23)
    monkeypatch.setattr(
        "halfbridge.training.trainer.shuffled" if not few else "halfbridge.training.bridge.half_trainer.scattered", None
    )
    held, seen = [], []
    hold, rows = TrajectoryCache.hold, TrajectoryCache.batch
    monkeypatch.setattr(TrajectoryCache, "hold", lambda *a: (held.append(a[1:]), hold(*a))[1])
    monkeypatch.setattr(TrajectoryCache, "batch", lambda *a: (seen.append(a[1]), rows(*a))[1])
    settings = hb.training.Settings(steps=6, batch_size=8, seed=4)
    for refresh, expected in ((None, [0, 0, 0, 1, 1, 1]), (2, [0, 0, 1, 1, 2, 2])):
        held.clear()
        seen.clear()
        regressor = NetworkRegressor(*nets(dtype=F64), cache_paths=8, refresh=refresh, settings=settings)
        half = HalfBridge(0, PathLaw(NEAR0, half_reference()))
        regressor.fit(half)
        assert [(at is half, seed, number) for at, seed, number in held] == [(True, 4, number) for number in expected]
        steps = refresh or 3
        passes = [torch.cat(seen[i : i + steps]) for i in range(0, 6, steps)]
        assert all(len(one.unique()) == len(one) == 8 * steps for one in passes)
        regressor.fit(
            HalfBridge(
                1, PathLaw(NEAR1, NetworkTransitions(half.reference, Direction.BACKWARD, awake(nets(dtype=F64)[0])))
            )
        )
        assert not torch.equal(torch.cat(seen[6 : 6 + steps]), passes[0])


def test_no_row_of_a_refresh_is_seen_twice_whatever_the_numbers(monkeypatch):
    """7 paths of 3 steps by batches of 4, half-bridges of 8 steps: neither is a multiple of the other. Each refresh is in another order,
    those of the next half-bridge too."""
    seen, rows = [], TrajectoryCache.batch
    monkeypatch.setattr(TrajectoryCache, "batch", lambda *a: (seen.append(a[1]), rows(*a))[1])
    settings = hb.training.Settings(steps=8, batch_size=4)
    regressor = NetworkRegressor(*nets(dtype=F64), cache_paths=7, settings=settings)
    first = HalfBridge(0, PathLaw(NEAR0, half_reference()))
    kernels = regressor.fit(first)
    regressor.fit(HalfBridge(1, PathLaw(NEAR1, kernels)))
    parts = [torch.cat(seen[i:j]) for i, j in ((0, 5), (5, 8), (8, 13), (13, 16))]
    for part in parts:
        assert len(part.unique()) == len(part)
    for one, other in itertools.combinations(parts, 2):
        assert not torch.equal(one[:12], other[:12])


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


@pytest.mark.parametrize(("options", "most"), [({"chunk": 5}, 5), ({"accumulate": 2}, 16)])
def test_no_more_paths_are_simulated_at_once_than_chunk_says(options, most):
    """For caches, covariances and monitors; by default 8 times the rows of a micro-batch."""
    sizes = []

    class Spy(MLP):
        def forward(self, x, t):
            if not torch.is_grad_enabled():
                sizes.append(len(x))
            return super().forward(x, t)

    both = [Spy(2, hidden=8, depth=1).double() for _ in range(2)]
    for method, form in (("dsb", "full"), ("dsbm", "diagonal")):
        hb.training.bridge.fit_bridge(*both, NEAR0, NEAR1, CHAIN, method=method, variance="matched", form=form, iterations=1, steps=2,
                                      refresh=50, batch_size=4, cache_paths=33, covariance_paths=34, monitor_paths=35, **options)  # fmt: skip
    assert max(sizes) == most
    with pytest.raises(ValueError, match="`chunk` = 0"):
        NetworkRegressor(*both, chunk=0)


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
