"""The steps of a bridge's run: micro-batches, precision, dropout, what a callback is told, and what pictures are handed."""

import copy
import math
import warnings
from unittest import mock

import pytest
import torch
from bridge_nets import F64, NEAR0, nets
from bridge_runs import STEPS, train

from halfbridge.nets import MLP
from halfbridge.training.bridge import Bridge, Normal
from halfbridge.training.bridge.bridge_plots import plot_monitors
from halfbridge.training.bridge.monitors import Monitor


@pytest.mark.parametrize("options", [{}, {"variance": "matched"}], ids=["mean", "matched"])
def test_micro_batches_are_parts_of_the_batch_that_is_trained_on_at_once(options):
    """To rounding, in float64."""
    whole, parts = (train(accumulate=pieces, **options) for pieces in (1, 4))
    for one, other in zip(whole.losses, parts.losses, strict=True):
        assert len(one) == STEPS
        torch.testing.assert_close(other, one, rtol=1e-9, atol=0.0)


class Spied(MLP):
    """Notes, of each call of it or of a copy, whether it is trained and under which precision; with dropout."""

    def __init__(self):
        super().__init__(2, hidden=8, depth=1)
        self.seen = []

    def __deepcopy__(self, memo):
        memo[id(self.seen)] = self.seen
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made

    def forward(self, x, t):
        self.seen.append((self.training, torch.is_autocast_enabled("cpu")))
        return super().forward(torch.nn.functional.dropout(x, 0.2, self.training), t)


def test_networks_are_trained_in_the_precision_that_is_asked_for_and_simulated_in_their_own():
    float32 = {"start": NEAR0.sample(9, 1).float(), "end": Normal((2,)), "iterations": 1}
    for precision, cast in (("bfloat16", True), ("float32", False)):
        both = [Spied(), Spied()]
        train(both=both, precision=precision, **float32)
        for net in both:
            assert {seen for seen in net.seen if seen[0]} == {(True, cast)}
            assert {seen for seen in net.seen if not seen[0]} == {(False, False)}


def test_what_dropout_draws_follows_from_the_step_whatever_the_generators_are():
    losses = []
    for seed in (1, 2):
        torch.manual_seed(0)
        both = [Spied().double(), Spied().double()]
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        losses.append(torch.cat(train(both=both).losses))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(*losses)


def test_a_callback_can_sample_the_newest_iterate_and_look_at_the_networks_in_training():
    """pi^n as of a run that ends with it; the network is in train mode again whatever mode the callback leaves it in."""
    both, told = nets(dtype=F64), {}

    def look(state):
        assert state.net is both[0 if state.direction == "forward" else 1]
        assert state.net.training
        assert not state.average.training
        assert state.average(NEAR0.sample(1, 0), torch.zeros(1, dtype=F64)).isfinite().all()
        assert state.now.index == state.iterate == len(state.monitors)
        if state.step == 2 * STEPS + 1:
            told["forward"] = state.bridge.translate(NEAR0.sample(5, 0), 1)
        if state.iterate == 0:
            assert state.bridge is None
        else:
            assert isinstance(state.bridge, Bridge)
        state.net.eval()

    train(both=both, callback=look)
    made = train(iterations=1)
    assert torch.equal(told["forward"], made.translate(NEAR0.sample(5, 0), 1))


def test_chains_are_drawn_beside_the_law_that_they_are_to_end_in(tmp_path):
    drawn = {}
    with mock.patch("halfbridge.training.bridge.bridge_loop.plot_samples", lambda *a: drawn.update({a[2].name: a[:2]})):
        train(tmp_path / "run", plots=True, end=Normal((2,), mean=9.0, dtype=F64))
    assert sorted(drawn) == ["001-backward.png", "002-forward.png", "003-backward.png", "004-forward.png"]
    for name, (samples, law) in drawn.items():
        assert samples.shape == law.shape == (16, 2)
        assert (law.mean() > 5.0) == ("forward" in name)


def drawn_monitors(path, rows, losses, floors):
    """The panels of a plot of the monitors, by their titles' first words."""
    canvases = []
    target = "matplotlib.backends.backend_agg.FigureCanvasAgg.print_png"
    with mock.patch(target, lambda canvas, file: canvases.append(canvas)):
        plot_monitors(rows, losses, path / "monitors.png", floors)
    canvases[0].draw()
    return {" ".join(axes.get_title().split()[:2]): axes for axes in canvases[0].figure.axes}


def monitor(n, energy=2.0):
    way = "backward" if n % 2 else "forward"
    return Monitor(n, way, 0.5, 1.0 + n, 10.0 + n, 100.0 + n, 1000.0 + n, 1.0, 0.1, energy, 0.1, 0.0)


FLOORS = {"start_energy_distance": -0.5, "start_sliced_w2": 5.0, "end_energy_distance": 0.5, "end_sliced_w2": 500.0}


def test_the_plot_of_the_monitors_has_each_ends_errors_with_the_chain_that_ends_there(tmp_path):
    """Lines and floors of start and end in both distances, and losses of each direction's half-bridges, by colour and label."""
    losses = [torch.full((3,), float(n), dtype=F64) for n in range(1, 5)]
    panels = drawn_monitors(tmp_path, [monitor(n) for n in range(1, 5)], losses, FLOORS)
    for name, add, more in (("energy distance", 1.0, 100.0), ("sliced W2", 10.0, 1000.0)):
        start, start_floor, end, end_floor = panels[name].get_lines()
        assert (start.get_label(), [*start.get_xdata()], [*start.get_ydata()]) == (
            "at the start, backward chain",
            [1, 3],
            [add + 1, add + 3],
        )
        assert (end.get_label(), [*end.get_xdata()], [*end.get_ydata()]) == (
            "at the end, forward chain",
            [2, 4],
            [more + 2, more + 4],
        )
        column = name.lower().replace(" ", "_")
        floors = start_floor.get_ydata()[0], end_floor.get_ydata()[0]
        assert floors == (FLOORS[f"start_{column}"], FLOORS[f"end_{column}"])
        assert panels[name].get_ylim()[0] <= min(floors)
        assert (start_floor.get_color(), end_floor.get_color()) == (start.get_color(), end.get_color())
    loss = panels["loss"]
    assert [line.get_color() for line in loss.get_lines()] == [start.get_color(), end.get_color()] * 2
    assert [float(line.get_ydata()[0]) for line in loss.get_lines()] == [1.0, 2.0, 3.0, 4.0]


def test_a_plot_of_the_monitors_shows_path_energies_far_apart_and_half_bridges_that_were_not_trained(tmp_path):
    """Of first=, whose half-bridge has no loss and may have a path energy that dwarfs all others; no warning of matplotlib."""
    none = torch.empty(0, dtype=F64)
    for energies, scale in (([16670.0], "linear"), ([16670.0, 3.0, 2.5], "log"), ([4.0, 3.0, 2.5], "linear")):
        rows = [monitor(n, energy) for n, energy in enumerate(energies, start=1)]
        rows[0] = rows[0]._replace(
            loss=math.nan, end_energy_distance=math.nan, end_sliced_w2=math.nan, kl=math.nan, kl_error=math.nan
        )
        losses = [none, *[torch.ones(3, dtype=F64)] * (len(rows) - 1)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            panels = drawn_monitors(tmp_path, rows, losses, FLOORS)
        assert panels["path energy"].get_yscale() == scale
        assert (panels["loss"].get_legend() is None) == (len(rows) == 1)
