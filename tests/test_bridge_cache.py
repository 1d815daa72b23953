"""The cache of trajectories that training sees, where it lies, and its order."""

import itertools
import warnings

import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, awake, half_reference, nets

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training.bridge import Direction, HalfBridge, PathLaw, ReferenceChain
from halfbridge.training.bridge.cache import TrajectoryCache
from halfbridge.training.bridge.memory import available
from halfbridge.training.bridge.network import NetworkTransitions
from halfbridge.training.bridge.network_regressor import NetworkRegressor
from halfbridge.training.bridge.room import buffer
from halfbridge.training.bridge.targets import TARGETS

CHAIN = ReferenceChain.spaced(ONE, [1.0, 2.0, 1.5])
WAYS = pytest.mark.parametrize("direction", Direction, ids=lambda d: d.value)


def half_bridge(direction, start=NEAR0):
    """One whose kernels of that direction are wanted: the teacher is a network that runs the other way."""
    teacher = NetworkTransitions(CHAIN, direction.other, awake(nets(dtype=F64)[0]), "drift")
    return HalfBridge(3, PathLaw(start, teacher))


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
