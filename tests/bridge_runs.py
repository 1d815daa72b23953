"""A bridge's run of a few steps in a folder, stopped where a test asks for it, and what it leaves."""

import csv
from unittest import mock

from bridge_nets import F64, NEAR0, NEAR1, ONE, nets

from halfbridge.training import checkpoint, jsontext
from halfbridge.training.bridge import ReferenceChain, fit_bridge
from halfbridge.training.bridge.half_trainer import HalfBridgeTrainer

STEPS, CHAIN = 5, ReferenceChain(ONE, 3)


class Killed(Exception):
    pass


def train(out=None, resume=False, at=None, how=None, seed_of_nets=0, both=None, **changes):
    """at: the step, over all half-bridges, in which `how` is done: `kill` before anything is written, others by the callback."""

    def callback(state):
        if state.step == at and how is not kill:
            return how()
        return None

    options = {"iterations": 2, "steps": STEPS, "batch_size": 8, "cache_paths": 8, "monitor_paths": 16, "covariance_paths": 40,
               "save_every": 3, "log_every": 2, "callback": callback, "start": NEAR0, "end": NEAR1, "reference": CHAIN}  # fmt: skip
    options |= changes
    start, end, reference = (options.pop(name) for name in ("start", "end", "reference"))
    advance = HalfBridgeTrainer.advance

    def killed(trainer, *asked):
        done = advance(trainer, *asked)
        if trainer.run_step == at:
            raise Killed
        return done

    with mock.patch.object(HalfBridgeTrainer, "advance", killed if how is kill else advance):
        both = both or nets(dtype=F64, seed=seed_of_nets)
        return fit_bridge(*both, start, end, reference, out=out, resume=resume, **options)


def kill():
    """See `train`."""


def fail():
    raise Killed


def state(out):
    """The newest checkpoint but for the clock's column of the monitors."""
    found = checkpoint.read(out / "checkpoints")
    record = dict(found.record["state"])
    record["rows"] = [row[:-1] for row in record["rows"]]
    return found.step, {k: v.numpy().tobytes() for k, v in found.tensors.items()}, jsontext.dumps(record)


def rows(path):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
