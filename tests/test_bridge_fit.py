"""fit_bridge: what it learns, against closed forms and Sinkhorn; monitors, the stop rule, divergence."""

import csv
import math
from unittest import mock

import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, awake, coupling_of, exact_iterate, nets

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.solvers.field import FieldOutputError
from halfbridge.training import Settings
from halfbridge.training.bridge import (
    Bridge,
    Examples,
    Iterate,
    NetworkRegressor,
    Normal,
    ReferenceChain,
    StopRule,
    fit_bridge,
    reference_iterate,
)
from halfbridge.training.bridge.arguments import ends
from halfbridge.training.bridge.monitors import Monitor, Monitors
from halfbridge.training.bridge.network import VarianceHead

SMALL = {"steps": 3, "batch_size": 8, "cache_paths": 8, "monitor_paths": 16, "covariance_paths": 50}


class Flat:
    """A law of numbers."""

    def sample(self, n, seed, first=0):
        return torch.zeros(n)


def small(**changes):
    """A fit of 3 steps a half-bridge."""
    options = {"iterations": 2, **SMALL, **changes}
    start, end = (options.pop(name, law) for name, law in (("start", NEAR0), ("end", NEAR1)))
    both = options.pop("nets", None) or nets(dtype=F64)
    return fit_bridge(*both, start, end, options.pop("reference", ReferenceChain(ONE, 3)), **options)


def test_trained_networks_find_the_closed_forms_coupling_in_five_dimensions():
    """examples/gaussian_bridge.py's bridge with a tenth of its steps: 5 iterations of 2 x 200, 4 steps of the chain. Both couplings'
    covariances within 5 % of the closed form's and their means within 0.05. Bounds: the averages remember the last 20 to 30 steps,
    some 6000 rows of each kernel; the covariance of as many pairs is 3 % off, a mean 0.015, and each half-bridge adds its own.
    Seeds 0 to 3 gave at most 3.6 % and 0.039; with the fixed variance it is 16 to 25 % and 0.19."""
    laws = [_gaussian(5, 0, 1.0), _gaussian(5, 1, 1.2)]
    torch.manual_seed(0)
    both = [MLP(5, hidden=32, depth=1) for _ in range(2)]
    data = [law.sample(200_000, 1 + k).float() for k, law in enumerate(laws)]
    made = fit_bridge(*both, *data, ReferenceChain(ONE, 4), variance="matched", form="full", iterations=5, steps=200,
                      batch_size=1024, lr=5e-3, schedule="cosine", ema_decay=0.99, cache_paths=4096, covariance_paths=16384,
                      monitor_paths=500)  # fmt: skip
    star = hb.reference.GaussianBridge(*laws, ONE).coupling()
    for to in ("end", "start"):
        x = laws[to == "start"].sample(50_000, 9).float()
        y = made.translate(x, 3, to=to)
        mean, cov = coupling_of(*((x, y) if to == "end" else (y, x)))
        assert float((mean - star.mean).abs().max()) < 0.05
        assert float((cov - star.cov).norm() / star.cov.norm()) < 0.05
    assert made.stopped == "iterations"
    assert made.monitors[-1].kl < made.monitors[1].kl / 30
    assert made.monitors[-1].end_energy_distance < made.monitors[1].end_energy_distance / 4


def _gaussian(d, seed, spread):
    """A random one with eigenvalues of at least 0.3 spread^2."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=F64)
    mean = 0.5 * torch.randn(d, generator=generator, dtype=F64)
    return hb.reference.Gaussian(mean, spread**2 * (a @ a.mT / d + 0.3 * torch.eye(d)))


def test_trained_networks_find_sinkhorns_bridge_between_mixtures():
    """One dimension, two bumps to three, against discretised Sinkhorn after 3 iterations of 2 x 250 steps. The coupling: how much of
    it joins which bumps, both ways, within 5 % of the mass in all (0.6 % is the 20 000 pairs'), where independent pairs are 28 %
    away; and E[x_T | x_0], which goes from -1.5 to 1.5, within 0.1. The drifts: within 20 % near T forward and 10 % near 0
    backward, where they are large, of root mean square 1.1 and 1.5, and within 0.22 half-way."""
    law0 = hb.reference.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.1)
    law1 = hb.reference.GaussianMixture([0.3, 0.4, 0.3], [[-2.0], [0.0], [2.0]], 0.1)
    process = hb.Brownian(1.0, 1.0)
    grid = torch.linspace(-4.0, 4.0, 161, dtype=F64)[:, None]
    weights = [p / p.sum() for p in (law.log_prob(grid).exp() for law in (law0, law1))]
    wanted = hb.reference.static_bridge(grid, grid, process, *weights, tol=1e-7)
    torch.manual_seed(0)
    both = [MLP(1, hidden=32, depth=1) for _ in range(2)]
    x0, x1 = law0.sample(20_000, 1).float(), law1.sample(20_000, 2).float()
    made = fit_bridge(*both, x0, x1, ReferenceChain(process, 10), variance="matched", iterations=3, steps=250, batch_size=512,
                      lr=1e-2, schedule="cosine", ema_decay=0.98, monitor_paths=500)  # fmt: skip

    def joined(x, y, mass=None):
        """The mass from each bump at 0 to each at T, (6,)."""
        x, y = x.flatten().double(), y.flatten().double()
        cell = 3 * (x > 0).long() + torch.bucketize(y, torch.tensor([-1.0, 1.0], dtype=F64))
        found = torch.bincount(cell, weights=mass, minlength=6).double()
        return found / found.sum()

    pairs = torch.cartesian_prod(grid[:, 0], grid[:, 0]).mT.contiguous()
    table = joined(*pairs, wanted.coupling.flatten())
    x, y = law0.sample(20_000, 7).float(), law1.sample(20_000, 8).float()
    for a, b, close in ((x, made.translate(x, 3), True), (made.translate(y, 3, to="start"), y, True), (x, y, False)):
        away = float((joined(a, b) - table).abs().sum() / 2)
        assert away < 0.05 if close else away > 0.25
    mean = (wanted.coupling @ grid)[:, 0] / wanted.coupling.sum(1)
    bins = torch.tensor([-1.3, -1.0, -0.7, 0.7, 1.0, 1.3], dtype=F64)
    found = made.translate(bins.float().repeat_interleave(4000)[:, None], 5).view(6, -1).double().mean(1)
    expected = torch.stack([mean[(grid[:, 0] - b).abs().argmin()] for b in bins])
    assert float((found - expected).square().mean().sqrt()) < 0.1
    for drift, t, error in (("forward_drift", 0.8, 0.22), ("forward_drift", 0.5, 0.22), ("backward_drift", 0.5, 0.22),
                            ("backward_drift", 0.2, 0.15)):  # fmt: skip
        x = wanted.marginal(t).sample(500, 0)
        gap = getattr(made, drift)(t, x.float()) - getattr(wanted, drift)(t, x)
        assert float(gap.square().mean().sqrt()) < error, (drift, t)


def test_a_fit_is_a_function_of_its_arguments():
    one, two = (small(variance="matched", form="diagonal", ema_decay=0.9) for _ in range(2))
    for a, b in zip(one.losses, two.losses, strict=True):
        assert torch.equal(a, b)
    assert [row[:-1] for row in one.monitors[2:]] == [row[:-1] for row in two.monitors[2:]]
    other = small(variance="matched", form="diagonal", ema_decay=0.9, seed=1)
    assert not torch.equal(one.losses[0], other.losses[0])
    x = NEAR0.sample(3, 0)
    assert torch.equal(one.translate(x, 4), two.translate(x, 4))


def test_monitors_measure_the_newest_chain_of_each_direction():
    """Exact iterates of Gaussian IPF: energy distance falls to nothing, KL and energy are the exact chains'."""
    its = [exact_iterate(4, n) for n in (1, 2, 3, 4)]
    measured, rows = Monitors(NEAR0, NEAR1, paths=1500, seed=3), []
    befores = [hb.training.bridge.reference_iterate(NEAR0, NEAR1, its[0].reference), *its]
    for now, before in zip(its, befores, strict=False):
        rows.append(measured.measure(now, before, rows, 0.5, 1.0).row)
    assert [row.iterate for row in rows] == [1, 2, 3, 4]
    assert [row.direction for row in rows] == ["backward", "forward"] * 2
    assert math.isnan(rows[0].kl)
    assert math.isnan(rows[0].end_energy_distance)
    assert rows[1].start_energy_distance == rows[0].start_energy_distance
    assert rows[2].end_energy_distance == rows[1].end_energy_distance
    chains = [hb.training.bridge.gaussian_chain(it.law) for it in befores]
    for n in (2, 3, 4):
        assert abs(rows[n - 1].kl - chains[n].kl(chains[n - 2])) < 5 * rows[n - 1].kl_error
    floors = measured.floors()
    assert rows[3].end_sliced_w2 < 2 * floors["end_sliced_w2"]
    assert rows[0].start_sliced_w2 > 4 * floors["start_sliced_w2"]


def test_the_same_kernels_have_the_same_line_at_any_iterate_however_many_paths_are_simulated_at_once():
    """So that what a stop rule sees is the kernels' doing. Nothing that only the laws determine is computed twice."""
    now, before = exact_iterate(4, 4), exact_iterate(4, 3)
    later = Iterate(8, now.start, now.end, now.forward, now.backward)
    whole, parts = (Monitors(NEAR0, NEAR1, paths=50, seed=3, chunk=c) for c in (50, 7))
    lines = [m.measure(it, before, [], 0.5, 1.0) for m in (whole, parts) for it in (now, later)]
    for measured in lines[1:]:
        torch.testing.assert_close(measured.samples, lines[0].samples, rtol=0, atol=1e-13)
        assert measured.row[5:] == pytest.approx(lines[0].row[5:], rel=1e-11)
    assert torch.equal(lines[0].samples, lines[1].samples)
    assert whole.floors() == parts.floors()
    with mock.patch("halfbridge.training.bridge.monitors.spread", side_effect=AssertionError):
        whole.measure(now, before, [], 0.5, 1.0)
        with mock.patch("halfbridge.training.bridge.monitors.sliced_w2", side_effect=AssertionError):
            whole.floors()


def lines(*errors, kls=None):
    """Monitors of as many iterations, the larger marginal error of each given."""
    rows = []
    for i, error in enumerate(errors):
        for n in (2 * i + 1, 2 * i + 2):
            kl = 1.0 if kls is None else kls[i]
            rows.append(Monitor(n, "", 0.0, error, 0.0, error / 2, 0.0, kl, 0.0, 0.0, 0.0, 0.0))
    return rows


def test_the_stop_rule_reads_the_monitors():
    rule = StopRule(kl=0.1, error=1.0)
    assert rule.reason(lines(1.0, 1.0, kls=[1.0, 0.2])) is None
    assert "moved by at most 0.1 nats, and both ends are within an energy distance of 1 " in rule.reason(
        lines(1.0, 1.0, kls=[1.0, 0.1])
    )
    assert rule.reason(lines(1.0, 1.1, kls=[1.0, 0.1])) is None
    assert rule.reason(lines(1.0, 1.0, kls=[1.0, 0.1])[:3]) is None  # asked after whole iterations
    assert rule.reason(lines(1.0, kls=[0.01])) is None  # the first has the reference before it
    rule = StopRule(patience=2)
    assert rule.reason(lines(3.0, 2.0, 1.9)) is None
    assert rule.reason(lines(3.0, 2.0, 2.1, 1.9)) is None
    assert "not fallen for 2 iterations" in rule.reason(lines(3.0, 2.0, 2.1, 2.0))
    made = small(iterations=9, stop=StopRule(kl=1e9, error=1e9))
    assert made.iterate.index == 4
    assert "moved by at most" in made.stopped


def test_a_run_that_does_not_train_is_not_called_converged():
    """Its iterates do not move, and are as far from their ends as they were."""
    made = small(iterations=3, lr=1e-9, stop=StopRule(kl=0.05, error=0.01))
    assert (made.iterate.index, made.stopped) == (6, "iterations")
    assert all(row.kl <= 0.05 for row in made.monitors[2:])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kl": 0.0, "error": 1.0}, "`kl` = 0.0 must be a positive number, in nats"),
        ({"kl": "a", "error": 1.0}, "`kl` = 'a' must be a positive number"),
        ({"kl": True, "error": 1.0}, "`kl` = True must be"),
        ({"kl": 1.0, "error": -1.0}, "`error` = -1.0 must be a positive number, an energy distance"),
        ({"kl": 1.0, "error": float("nan")}, "`error` = nan must be"),
        ({"kl": 0.1}, "`kl` = 0.1 alone stops networks that do not train.*; pass `error` too"),
        ({"error": 0.1}, "`error` = 0.1 alone .*; pass `kl` too"),
        ({"patience": 0}, "patience"),
    ],
)
def test_a_stop_rule_that_cannot_be_trusted_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        StopRule(**rule)


class Burst(torch.nn.Module):
    """An MLP that returns `value` from its `after`-th call on, in one mode or both."""

    def __init__(self, value, after=0, training=True):
        super().__init__()
        self.net, self.value, self.after, self.mode, self.calls = (
            MLP(2, hidden=8, depth=1).double(),
            value,
            after,
            training,
            0,
        )

    def forward(self, x, t):
        out = self.net(x, t)
        if self.training is self.mode:
            self.calls += 1
            if self.calls > self.after:
                return out * 0 + self.value
        return out


def test_divergence_stops_at_the_last_good_iterate_and_says_why():
    good, bad = nets(dtype=F64)[0], Burst(float("nan"), after=4)  # step 2 of its second half-bridge
    with pytest.warns(RuntimeWarning, match=r"half-bridge 4 \(forward\) diverged: the loss is nan at step 1 of 3"):
        made = small(nets=[bad, good])
    assert made.diverged
    assert made.stopped.startswith("half-bridge 4 (forward) diverged")
    assert made.iterate.index == 3
    assert len(made.monitors) == 3
    assert made.translate(NEAR0.sample(4, 0), 1).isfinite().all()
    with pytest.warns(
        RuntimeWarning, match=r"half-bridge 2 .* diverged: the forward chain ends [\d.e+]+ from the origin"
    ):
        made = small(nets=[Burst(1e5, training=False), good])  # finite in training, and far out as a chain
    assert made.iterate.index == 1
    assert type(made.forward).__name__ == "ReferenceTransitions"
    with (
        pytest.warns(RuntimeWarning, match="half-bridge 1"),
        pytest.raises(FloatingPointError, match="no iterate but the ref"),
    ):
        small(nets=[good, Burst(float("nan"))])


@pytest.mark.parametrize("form", ["diagonal", "scalar"])
def test_trained_networks_start_matched_kernels_warm(form):
    """Drifts are no logarithms of variances: at r = 1 the first loss is that of the mean alone, once more by half."""
    made, plain = (
        small(nets=[awake(net, size=0.5, seed=i) for i, net in enumerate(nets(dtype=F64))], **options)
        for options in ({"variance": "matched", "form": form}, {"target": "increment"})
    )
    assert not made.diverged
    assert float(made.losses[0][0]) == pytest.approx(1.5 * float(plain.losses[0][0]), rel=1e-12)


def test_variances_that_explode_end_the_run_at_the_last_good_iterate(monkeypatch):
    """Out of range where an iterate is measured or simulated: no ValueError, nothing lost."""
    calls, forward = [], VarianceHead.forward

    def late(head, x, t):
        calls.append(head.training)
        return forward(head, x, t) + (1e5 if calls.count(False) > 25 else 0.0)

    monkeypatch.setattr(VarianceHead, "forward", late)
    with pytest.warns(
        RuntimeWarning, match=r"diverged: the \w+ network's variances at t = .* left the positive numbers: "
    ):
        made = small(variance="matched")
    assert made.diverged
    assert made.iterate.index in (1, 2, 3)


def test_a_teacher_that_leaves_the_numbers_later_is_gone_back_behind():
    """Its paths were finite where they were measured: the iterate before it is the last good one."""
    good, late = (
        nets(dtype=F64)[0],
        Burst(math.nan, after=1 + 4 * 3, training=False),
    )  # tried once, measured by 4 walks of 3 steps
    with pytest.warns(RuntimeWarning, match=r"half-bridge 3 \(backward\) diverged: the forward chain is not finite"):
        made = small(nets=[late, good])
    assert made.iterate.index == 1


def test_the_first_half_bridge_may_be_a_score_that_was_trained():
    made = small(first=NEAR0.field(ONE))
    assert len(made.losses[0]) == 0
    assert [len(part) for part in made.losses[1:]] == [3, 3, 3]
    assert math.isnan(made.monitors[0].loss)


def test_plots_and_tables_are_written(tmp_path):
    made = small(out=tmp_path / "run", plots=True, log_every=1)
    files = sorted(
        str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*.*") if "checkpoints" not in p.parts
    )
    assert files == [".lock", "config.json", "log.csv", "monitors.csv", "monitors.png", "samples/001-backward.png", "samples/002-forward.png",
                     "samples/003-backward.png", "samples/004-forward.png"]  # fmt: skip
    with open(tmp_path / "run" / "monitors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kl"]) for row in rows[1:]] == [row.kl for row in made.monitors[1:]]
    logged = hb.training.log.read(tmp_path / "run" / "log.csv")
    assert [row.step for row in logged] == list(range(1, 13))
    assert [row.loss for row in logged] == torch.cat(made.losses).tolist()


def test_a_network_whose_classes_are_names_has_none_to_be_told():
    class Named(MLP):
        classes = ("a", "b")

    both = [Named(2, hidden=8, depth=1).double(), nets(dtype=F64)[0]]
    assert small(nets=both, iterations=1).stopped == "iterations"


def test_a_fit_and_a_bridge_say_what_they_are():
    made = small(iterations=1)
    assert repr(made) == f"BridgeFit({ONE!r} in 3 steps, after half-bridge 2, stopped='iterations')"
    assert repr(Bridge(made.forward, made.backward)) == f"Bridge({ONE!r} in 3 steps)"


class Stateful(MLP):
    def get_extra_state(self):
        return 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"end": hb.reference.Gaussian([0.0] * 3, 1.0)}, ValueError, r"`end` has samples of shape \(3,\), but `start` has \(2,\)"),
        ({"iterations": 0}, ValueError, "`iterations` = 0 must be a whole number, at least 1"),
        ({"reference": hb.OU()}, TypeError, "`reference` is a OU; pass a ReferenceChain"),
        ({"nets": nets()}, ValueError, "`forward_net` has dtype torch.float32 and `start` gives states of torch.float64"),
        ({"nets": nets(dtype=F64)[:1] * 2}, ValueError, "are one network; pass two"),
        ({"nets": [MLP(2, hidden=8, depth=1, classes=3).double(), nets(dtype=F64)[0]]}, ValueError, "`forward_net` has classes"),
        ({"first": NEAR0.field(hb.VP())}, ValueError, "`first` belongs to VP"),
        ({"class_dropout": 0.1}, ValueError, "class_dropout = 0.1, but a bridge's networks have no classes"),
        ({"resume": True}, ValueError, "resume = True goes with a folder"),
        ({"plots": True}, ValueError, "plots = True goes with a folder"),
        ({"monitor_paths": 1}, ValueError, "`monitor_paths` = 1"),
        ({"step": 3}, TypeError, "there is no setting 'step'; did you mean 'steps'"),
        ({"start": Normal((2,), dtype=F64), "target": "scores"}, ValueError, "did you mean 'score'"),
        ({"start": [[1.0, 2.0]]}, ValueError, "`start` is a list; pass a floating tensor"),
        ({"end": torch.zeros(3, 2).log()}, ValueError, "`end` must be finite, but 6 of its 6"),
        ({"end": torch.distributions.Normal(torch.zeros(2), 1.0)}, TypeError, r"`end` is a Normal, whose sample\(n, seed, first\) fails"),
        ({"start": Flat()}, ValueError, r"`start`.sample\(1, 0, 0\) is \(1,\), torch.float32; it must be"),
        ({"settings": {"steps": 3}}, TypeError, "settings is a dict; pass a Settings"),
        ({"first": nets()[0]}, TypeError, "`first` is a MLP; pass a Field"),
        ({"stop": 0.1}, TypeError, r"`stop` is a float; pass a StopRule, such as StopRule\(kl=0.1, error=0.05\)"),
        ({"form": "diagonal"}, ValueError, "`form` = 'diagonal' is of variance='matched'; pass that too, or leave form out"),
        ({"nets": [lambda x, t: x, nets()[0]]}, TypeError, "`forward_net` is a function; pass a torch.nn.Module"),
        ({"nets": nets(dtype=torch.float16)}, ValueError, "`forward_net` is float16, where Adam's epsilon"),
        ({"precision": "bfloat16"}, ValueError, "keeps float32 weights and `forward_net` is torch.float64"),
        ({"nets": nets(), "start": torch.ones(4, 2), "end": torch.ones(3, 2), "precision": "float16"}, ValueError,
         "needs a CUDA GPU and `forward_net` is on cpu"),
        ({"coupling_size": -3}, ValueError, "`coupling_size` = -3"),
        ({"variance": "matched", "form": "full", "covariance_paths": 2}, ValueError,
         "`covariance_paths` = 2 paths do not determine a covariance in 2 dimensions"),
        ({"end": torch.ones(3, 2, dtype=torch.int64)}, ValueError, r"`end` is \(3, 2\), torch.int64; pass a floating tensor"),
        ({"cache": "dsk"}, ValueError, "`cache` = 'dsk' is no place for a cache; did you mean 'disk'"),
        ({"cache_limit": 1e9}, ValueError, "`cache_limit` = 1000000000.0 must be a number of bytes"),
        ({"cache_folder": 3}, TypeError, "`cache_folder` = 3 is a int; pass the path of a folder"),
        ({"refresh": 0}, ValueError, "`refresh` = 0"),
        ({"nets": [nets(dtype=F64)[0], Stateful(2, hidden=8, depth=1).double()]}, ValueError,
         r"`backward_net` has a state beside its tensors, of itself \(Stateful.get_extra_state\)"),
        ({"callback": True}, TypeError, "`callback` is a bool; pass a function of a BridgeState"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_a_folder_is_begun(changes, error, message, tmp_path):
    out = {} if changes.keys() & {"resume", "plots"} else {"out": tmp_path / "run"}
    with pytest.raises(error, match=message):
        small(**out, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda out: out[:, :1], r"shape \(1, 1\) for a state of shape \(1, 2\) \(from `backward_net`\)"),
        (lambda out: (out, out), r"returned a tuple \(from `backward_net`\)"),
        (lambda out: out.float(), r"dtype torch.float32 for a state of dtype torch.float64 \(from `backward_net`\)"),
    ],
)
def test_a_network_whose_output_is_not_like_the_state_is_refused_before_anything_is_written(tmp_path, output, message):
    good, bad = nets(dtype=F64)
    bad.register_forward_hook(lambda module, given, out: output(out))
    with pytest.raises(FieldOutputError, match=message):
        small(nets=[good, bad], out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    chain = ReferenceChain(ONE, 3)
    with pytest.raises(FieldOutputError):  # and in the loss: nothing is broadcast
        NetworkRegressor(good, bad, cache_paths=8, settings=Settings(steps=1)).fit(
            reference_iterate(NEAR0, NEAR1, chain).half_bridge
        )


def test_data_stays_where_it_is_and_what_is_sampled_goes_to_the_networks():
    data = NEAR0.sample(9, 0).float()
    both = ends(data, data, dict(zip(("forward_net", "backward_net"), (net.to("meta") for net in nets()), strict=True)))
    for law in both:
        assert law.data is data
        assert law.sample(3, 0).device.type == "meta"
    assert torch.equal(Examples(data).sample(5, 1), Examples(data, device="cpu").sample(5, 1))
