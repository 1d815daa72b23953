"""What is measured of iterates, and the rule that stops by it."""

import math
from unittest import mock

import pytest
import torch
from bridge_nets import NEAR0, NEAR1, exact_iterate, small

import halfbridge as hb
from halfbridge.training.bridge import (
    Iterate,
    StopRule,
)
from halfbridge.training.bridge.monitors import Monitor, Monitors


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
