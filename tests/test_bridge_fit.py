"""fit_bridge: what it finds, how it ends, and what it writes."""

import csv
import math

import pytest
import torch
from bridge_nets import F64, NEAR0, ONE, awake, coupling_of, nets, small

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training.bridge import (
    ReferenceChain,
    fit_bridge,
)
from halfbridge.training.bridge.network import VarianceHead


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
