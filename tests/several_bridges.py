"""Run as a program, `several_bridges.py folder`: bridges trained by 1, 2 and 3 processes, and how they fail together.

As several_processes, whose groups these are. What each did is written to folder/<case>-<count>-<index>.pt.
"""

import importlib
import math
import os
import signal
import sys
from pathlib import Path

import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, awake, nets
from several_processes import group

from halfbridge.nets import MLP
from halfbridge.training.bridge import Direction, HalfBridge, PathLaw, ReferenceChain, bridge_loop, fit_bridge
from halfbridge.training.bridge.cache import TrajectoryCache
from halfbridge.training.bridge.monitors import Monitors
from halfbridge.training.bridge.network import NetworkTransitions
from halfbridge.training.bridge.residuals import variance_factors
from halfbridge.training.workers import current

torch.set_num_threads(1)

CHAIN = ReferenceChain(ONE, 4)


def train(both=None, **changes):
    both = both or nets(dtype=F64, seed=current().index)  # the others take the first one's
    options = {"iterations": 2, "steps": 6, "batch_size": 24, "lr": 1e-2, "clip": 0.5, "ema_decay": (0.9, 0.5), "accumulate": 2,
               "cache_paths": 25, "refresh": 2, "monitor_paths": 16, "covariance_paths": 50, **changes}  # fmt: skip
    return fit_bridge(*both, NEAR0, NEAR1, CHAIN, **options)


def tensors(fit):
    x = NEAR0.sample(5, 0)
    return {
        "losses": torch.cat(fit.losses),
        "to end": fit.translate(x, 1),
        "to start": fit.translate(x, 1, to="start"),
        "rows": torch.tensor([row[2:-1] for row in fit.monitors], dtype=F64),
        "index": torch.tensor(fit.iterate.index),
        "stopped": fit.stopped,
    }


class Rowwise(MLP):
    """Whose bits of a row do not depend on the batch; it counts the rows."""

    rows = 0

    def forward(self, x, t):
        self.rows += len(x)
        return torch.cat([super(Rowwise, self).forward(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])


class Far(Rowwise):
    """Sends paths out of the numbers that have come beyond `limit`."""

    limit = math.inf

    def forward(self, x, t):
        return torch.where(x[:, :1] > self.limit, math.nan, super().forward(x, t))


def caches(target, limit=math.inf):
    """Two refreshes of a learned teacher's paths, in chunks of 8: 13 is no multiple of 2 or 3 processes."""
    net = awake(Far(2, hidden=8, depth=1).double())
    net.limit = limit
    half = HalfBridge(3, PathLaw(NEAR1, NetworkTransitions(CHAIN, Direction.BACKWARD, net)))
    cache, found = TrajectoryCache(CHAIN, NEAR0.sample(1, 0), 13, target, chunk=8, workers=current()), {}
    for refresh in (0, 1):
        cache.hold(half, 5, refresh)
        found[f"{target} {refresh}"] = cache.states.clone()
    return {**found, "simulated": torch.tensor([net.rows])}


def factors():
    """Of a learned teacher's kernels, from 13 paths in chunks of 8."""
    both = [awake(Rowwise(2, hidden=8, depth=1).double(), seed=i) for i in range(2)]
    teacher, fitted = (NetworkTransitions(CHAIN, way, net) for way, net in zip(Direction, both, strict=True))
    found = variance_factors(HalfBridge(3, PathLaw(NEAR0, teacher)), fitted, 13, 5, chunk=8, workers=current())
    return {"factors": torch.tensor(found, dtype=F64), "simulated": torch.tensor([net.rows for net in both])}


def far():
    """One of the 13 paths leaves the numbers, so in one process's share."""
    half = HalfBridge(
        3, PathLaw(NEAR1, NetworkTransitions(CHAIN, Direction.BACKWARD, awake(Rowwise(2, hidden=8, depth=1).double())))
    )
    left = half.states(13, 5)[1:, :, 0].amax(0).sort().values  # a step leaves all but x_0
    return caches("increment", float(left[-2:].mean()))


def measured_by_the_first(folder):
    """The third iterate is found to be far out."""
    seen = []

    def measure(monitors, now, *rest):
        seen.append(now.index)
        if now.index == 3:
            raise FloatingPointError("the chain is far out")
        return MEASURE(monitors, now, *rest)

    Monitors.measure = measure
    try:
        fit = train(out=folder / f"far-{current().count}")
    finally:
        Monitors.measure = MEASURE
    return tensors(fit) | {"measured": seen}


MEASURE = Monitors.measure


def broken(folder):
    """The loss is NaN in the last process alone, in the third half-bridge."""

    class Breaks(MLP):
        calls = 0

        def forward(self, x, t):
            self.calls += self.training
            bad = self.calls > 12 + 4 and current().index == current().count - 1
            return super().forward(x, t) * (math.nan if bad else 1.0)

    both = [nets(dtype=F64)[0], Breaks(2, hidden=8, depth=1).double()]
    return train(both, out=folder / f"broken-{current().count}")


def stopped(folder, resume):
    def callback(state):
        if state.step == 8 and current().index == 1 and not resume:
            os.kill(os.getpid(), signal.SIGTERM)

    drawn = []
    bridge_loop.plot_monitors = bridge_loop.plot_samples = lambda *arguments: drawn.append(arguments[-1])
    options = {"plots": True, "variance": "matched", "form": "full"}
    fit = train(out=folder / "stopped", resume=resume, callback=callback, **options)
    return tensors(fit) | {"drawn": torch.tensor(len(drawn))}


CASES = {
    "mean": lambda folder: tensors(train()),
    "full": lambda folder: tensors(train(variance="matched", form="full", cache="disk", cache_folder=folder / "cache")),
    "dsbm": lambda folder: tensors(train(method="dsbm", coupling="ot", coupling_size=5)),
    "caches": lambda folder: caches("mean") | caches("increment"),
    "factors": lambda folder: factors(),
    "far": lambda folder: far(),
    "measured": lambda folder: measured_by_the_first(folder),
    "broken": lambda folder: tensors(broken(folder)),
    "stopped": lambda folder: stopped(folder, False),
    "resumed": lambda folder: stopped(folder, True),
    "ended": lambda folder: tensors(train(callback=lambda state: state.step == 12 and current().index == 1)),
}
ALIKE = ["mean", "full", "dsbm", "caches", "factors", "far"]
ALONE = ["broken", "measured", "stopped", "resumed", "ended"]

if __name__ == "__main__":
    folder = Path(sys.argv[-1])
    for name in ("accelerate", "ot", "safetensors.torch", "torch._dynamo"):
        importlib.import_module(name)  # the children would each do it
    group(1, ALIKE, folder, CASES)
    group(2, [*ALIKE, *ALONE], folder, CASES)
    group(3, ["caches", "factors", "far"], folder, CASES)
