"""The plain implementation that bridges are timed against: it is the same algorithm, and the benchmark says what it measured."""

import math
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from bridge_nets import ONE, awake, nets

import halfbridge as hb
from halfbridge.kernels import normal
from halfbridge.nets.conditioned import SharedLabels
from halfbridge.training.bridge import Direction, Examples, ReferenceChain, fit_bridge, path_index
from halfbridge.training.bridge.network import NetworkTransitions, shares_labels
from halfbridge.training.data.order import shuffled

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import bridge, bridge_cases, bridge_errors
from benchmarks.plain_bridge import PlainBridge

CHAIN = ReferenceChain(ONE, [0.0, 0.2, 0.7, 1.0])
PATHS, STEPS, BATCH, REFRESH, SEED = 16, 6, 8, 3, 5


class OurNumbers(PlainBridge):
    """The plain implementation with the paths, noise and rows that `fit_bridge` takes."""

    half_bridges = -1

    def half_bridge(self, way):
        self.half_bridges += 1
        self.refreshes, self.seen = -1, 0
        super().half_bridge(way)

    def simulate(self, way):
        self.refreshes += 1
        index, self.drawn = path_index(self.half_bridges, self.refreshes * PATHS), 0
        law = self.laws[self.half_bridges % 2]

        def drawn(x):
            self.drawn += 1
            return normal(x.shape, SEED, self.drawn, index)

        self.start = self.end = lambda n: law.sample(n, SEED, index)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn_like", drawn)
            x, value, t = super().simulate(way)
        # its intervals come in the order of simulation, ours by index
        blocks = [part.unflatten(0, (CHAIN.steps, PATHS)) for part in (x, value, t)]
        order = slice(None) if way == "backward" else torch.arange(CHAIN.steps - 1, -1, -1)
        return tuple(block[order].flatten(0, 1) for block in blocks)

    def batches(self, data, count):
        for _ in range(count):
            fill = self.half_bridges * STEPS // REFRESH + self.refreshes  # each begins a pass of its own
            rows = shuffled(len(data[0]), SEED, self.seen % REFRESH, BATCH, fill)
            self.seen += 1
            yield tuple(part[rows] for part in data)


def test_the_plain_implementation_given_our_noise_and_rows_trains_our_networks():
    """Two iterations, so that both teachers and both warm starts are met: the same averages, to float32's rounding."""
    laws = [
        Examples(hb.reference.Gaussian(m, 0.5 * torch.eye(2).double()).sample(50, 1).float()) for m in ([0, 1], [1, 0])
    ]
    fit = fit_bridge(
        *nets(), *laws, CHAIN, iterations=2, weighting="plain", steps=STEPS, batch_size=BATCH, lr=0.01, warmup=0,
        schedule="constant", ema_decay=0.9, clip=0.5, seed=SEED, cache_paths=PATHS, refresh=REFRESH, monitor_paths=2,
    )  # fmt: skip
    forward, backward = nets()
    peer = OurNumbers(
        {"forward": forward, "backward": backward}, None, None, CHAIN.gains, CHAIN.gammas, CHAIN.times, STEPS, BATCH,
        PATHS, REFRESH, 0.01, 0.9, 0.5,
    )  # fmt: skip
    peer.laws = laws
    peer.run(2)
    for way in ("forward", "backward"):
        found = dict(peer.averages[way].named_parameters())
        for name, value in getattr(fit, way).net.named_parameters():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)
            assert not torch.equal(value, dict(nets()[0].named_parameters())[name])


@pytest.mark.parametrize("loader", ["loader", "index"])
def test_batches_are_rows_of_the_cache_with_their_targets_and_labels(loader):
    peer = PlainBridge({}, None, None, (), (), (), 0, 4, 0, 0, 0.0, 0.0, 0.0, loader)
    x = torch.arange(10.0)
    seen = list(peer.batches((x, 2 * x, 3 * x), 5))
    assert [len(b[0]) for b in seen] == [4] * 5
    assert all(torch.equal(b[1], 2 * b[0]) and torch.equal(b[2], 3 * b[0]) for b in seen)
    if loader == "loader":  # a pass has each row once
        assert len(torch.cat([b[0] for b in seen[:2]]).unique()) == 8


@pytest.mark.parametrize("make", bridge_cases.CASES, ids=lambda f: f.__name__)
def test_ours_and_the_peers_run_every_case_on_one_budget(make, monkeypatch):
    """As many optimiser steps and as many simulations each, of as many rows."""
    case = make(0.0)._replace(paths=8, refresh=1)
    case = case._replace(settings=case.settings.replace(batch_size=4))
    steps, simulations = [], []
    update = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *a, **k: (steps.append(1), update(*a, **k))[1])

    class Counted(bridge_cases.Clock):
        @contextmanager
        def simulating(self):
            simulations.append(1)
            with super().simulating():
                yield

    counts = {}
    for who in bridge_cases.WHO:
        steps.clear()
        simulations.clear()
        clock = Counted()
        made = bridge_cases.trained(case, who, 1, clock)
        assert made.direction is Direction.FORWARD
        assert clock.simulated > 0.0
        counts[who] = (len(steps), len(simulations))
    assert counts == dict.fromkeys(bridge_cases.WHO, (4, 4))


def test_the_error_that_is_measured_is_zero_at_the_bridge_and_not_beside_it():
    """The bridge's own conditional law of x_N, in one step: 50 000 pairs have 1.06 % of noise, as said beside it."""
    star = hb.reference.GaussianBridge(*bridge_errors.LAWS, bridge_errors.PROCESS).coupling()
    d = 5
    gain = torch.linalg.solve(star.cov[:d, :d], star.cov[:d, d:]).mT
    cov = star.cov[d:, d:] - gain @ star.cov[:d, d:]

    def kernel(scale):
        from halfbridge.training.bridge import AffineTransitions, Full

        chain = ReferenceChain(bridge_errors.PROCESS, 1)
        offset = star.mean[d:] - gain @ star.mean[:d]
        return AffineTransitions(chain, Direction.FORWARD, scale * gain[None], offset[None], [Full(cov)])

    noise = math.sqrt((1.0 + float(star.cov.trace() ** 2 / star.cov.square().sum())) / 50_000)
    assert noise == pytest.approx(0.0106, abs=1e-4)
    assert bridge_errors.coupling_error(kernel(1.0)) < 2.0 * noise
    assert bridge_errors.coupling_error(kernel(0.9)) > 0.03


def test_memory_is_measured_in_a_process_of_its_own():
    """The peak of a run, and not that of the process that asks, which on Linux goes to its children."""
    held = torch.ones(1 << 27)  # 512 MiB, beside the 500 that imports take
    before, above = bridge.peak("gaussians", "index", 0.01)
    del held
    assert 50.0 < before < 900.0
    # 8 x 4096 paths of 12 steps: states and targets of 5 floats and a label, twice while they are stacked
    assert above > 8 * 4096 * 12 * 11 * 4 / 2**20
    assert above < 300.0


def test_the_tables_are_printed(monkeypatch, capsys):
    tiny = [make(0.0)._replace(paths=32, refresh=2) for make in bridge_cases.CASES[:2]]
    monkeypatch.setattr(bridge, "CASES", (lambda scale=0: tiny[0],))
    monkeypatch.setattr(bridge_errors, "case", lambda steps, scale, seed: tiny[1])
    monkeypatch.setattr(
        bridge, "peak", lambda name, who, scale: (300.0, {"ours": 20.0, "loader": 40.0, "index": 25.0}[who])
    )
    errors = iter([(0.04, 0.02), (0.02, 0.04), *[(0.3, 0.3)] * 6])  # a seed each; the second comes back
    monkeypatch.setattr(
        bridge_errors,
        "errors_over_time",
        lambda case, who, n: [bridge_errors.Point(k + 1.0, e) for k, e in enumerate(next(errors))],
    )
    monkeypatch.setattr(bridge, "network_seconds", lambda case: 0.25)
    monkeypatch.setattr(
        bridge, "seconds", lambda case, who, n: {"ours": (0.5, 0.1), "loader": (1.0, 0.3), "index": (0.8, 0.2)}[who]
    )
    threads = torch.get_num_threads()
    try:
        bridge.main(["--turns", "1", "--scale", "0", "--iterations", "2", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert "1 thread, CPU seconds" in shown
    lines = [line.split() for line in shown.splitlines()]
    times = [line for line in lines if line[:2] == ["moons,", "MLP"]]
    assert [line[-1] for line in times[:2]] == ["0.50", "0.50"]  # of ours, whoever the peer is
    assert times[2][2:] == ["300", "20.0", "40.0", "25.0", "0.50", "0.80"]
    rows = [line for line in lines if line[:3] == ["ours,", "matched", "4"]]
    assert [line[-2:] for line in rows[:2]] == [["4.00", "2.00"], ["2.00", "4.00"]]
    assert rows[2][3:] == ["1.0,", "1.0", "1.0,", "1.0", "1.0,", "1.0", "2.0,", "never"]
    assert [line for line in lines if line[:2] == ["index", "48"]][-1][2:] == ["never,", "never"] * 4


def test_an_error_is_reached_where_it_stays_below():
    run = [bridge_errors.Point(t, e) for t, e in ((1.0, 0.2), (2.0, 0.02), (3.0, 0.04), (4.0, 0.03), (5.0, 0.01))]
    assert [bridge_errors.until(run, e) for e in (0.3, 0.05, 0.03, 0.02, 0.001)] == [
        "1.0",
        "2.0",
        "4.0",
        "5.0",
        "never",
    ]
    assert bridge_errors.until([bridge_errors.Point(1.0, float("nan"))], 0.03) == "never"
    assert bridge_errors.THRESHOLDS[-1] == 0.03


def test_with_more_threads_the_clock_is_the_walls(monkeypatch):
    monkeypatch.setattr(bridge_cases.time, "process_time", lambda: 1.0)
    monkeypatch.setattr(bridge_cases.time, "perf_counter", lambda: 2.0)
    for threads, wanted in ((1, 1.0), (2, 2.0)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert bridge_cases.now() == wanted


def test_kernels_compared_at_equal_error_are_those_that_are_named(monkeypatch):
    """Matched, full and "kl"; fixed and "plain", as the peer's; each on as many rows of a cache, which are trained on once."""
    seen = []

    class Told(bridge_errors.NetworkRegressor):
        def __init__(self, *nets, **options):
            super().__init__(*nets, **options)
            seen.append((self.variance, options.get("form"), self.weighting))

    monkeypatch.setattr(bridge_errors, "NetworkRegressor", Told)
    monkeypatch.setattr(bridge_errors, "coupling_error", lambda forward: 0.5)
    monkeypatch.setattr(bridge_errors, "EXAMPLES", 10)
    tiny = bridge_cases.gaussians(0.0, 3, 10)._replace(paths=16, refresh=2)
    for who in (bridge_errors.MATCHED, bridge_errors.FIXED):
        assert len(bridge_errors.errors_over_time(tiny, who, 1)) == 1
    assert seen == [("matched", "full", "kl"), ("fixed", None, "plain")]
    for who, steps in bridge_errors.ROWS:
        case = bridge_errors.case(steps, 0.01, 7)
        assert case.chain.steps == steps, who
        assert case.settings.seed == 7
        assert case.refresh * case.settings.batch_size == case.paths * steps == 4096 * 12


@pytest.mark.parametrize("make", [lambda: hb.nets.MLP(2, hidden=8, depth=2), lambda: hb.nets.MLP(2, hidden=8, classes=3),
                                  lambda: hb.nets.UNet((1, 8, 8), width=4, multipliers=(1, 2), blocks=1)])  # fmt: skip
def test_shared_labels_say_what_a_label_for_each_row_says(make):
    """Values and the gradients of all parameters; also where one label is for all, and with classes."""
    net = awake(make()).double()
    x = torch.randn(6, *net.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    classes = (torch.tensor([0, 1, 2, -1, 1, 0]),) if net.classes else ()
    values = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    rows = torch.tensor([2, 0, 2, 1, 1, 0])
    for shared, t in (
        (SharedLabels(values, rows), values[rows]),
        (SharedLabels(values[:1], None), values[:1].expand(6)),
    ):
        found = []
        for told in (shared, t):
            net.zero_grad()
            out = net(x, told, *classes)
            out.square().sum().backward()
            found.append([out.detach(), *(p.grad for p in net.parameters())])
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
    for wrong in (SharedLabels(values, rows[:5]), SharedLabels(values, None)):
        with pytest.raises(ValueError, match=r"t of shape \(batch,\)"):
            net(x, wrong, *classes)


def test_only_networks_that_are_known_to_are_given_shared_labels():
    class Own(hb.nets.MLP):
        def forward(self, x, t, classes=None):
            assert t.shape == x.shape[:1]
            return super().forward(x, t, classes)

    net = awake(hb.nets.MLP(2, hidden=8, depth=1))
    own = Own(2, hidden=8, depth=1)
    own.load_state_dict(net.state_dict())
    assert shares_labels(net)
    assert not shares_labels(own)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    means = [NetworkTransitions(CHAIN, Direction.FORWARD, n).mean(1, x) for n in (net, own)]
    torch.testing.assert_close(*means, rtol=1e-5, atol=1e-6)
