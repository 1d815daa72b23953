"""Run as a program, `killed_runs.py folder`: trains in child processes that are killed, and compares with one that was not.

The children are forked from here, so that torch is imported once. Prints a line of JSON.
"""

import csv
import importlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import checkpoint, data, fit_score

torch.set_num_threads(1)
for name in ("safetensors.torch", "torch._dynamo"):
    importlib.import_module(name)  # the children would each do it

STEPS = 45


class Net(MLP):
    """With dropout, classes and a buffer that training changes."""

    def __init__(self):
        super().__init__(2, hidden=16, depth=2, classes=2)
        self.blocks[1] = Dropped()
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x, t, classes):
        return super().forward(self.norm(x), t, classes)


class Dropped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = torch.nn.Dropout(0.3)

    def forward(self, h, time):
        return self.drop(h)


def train(out, resume, callback=None, **changes):
    torch.manual_seed(3)
    net = Net()
    torch.seed()
    x = data.moons(300, 0)
    options = {
        "steps": STEPS, "batch_size": 32, "accumulate": 2, "optimizer": "adamw", "weight_decay": 0.01, "warmup": 9, "lr": 3e-3,
        "schedule": "cosine", "ema_decay": (0.99, 0.9), "class_dropout": 0.2, "save_every": 7, "log_every": 3, "seed": 5,
        "sample_every": 25, "sample_count": 9, "sample_steps": 2,
    }  # fmt: skip
    return fit_score(
        net,
        x,
        hb.VP(),
        classes=(x[:, 0] > 0).long(),
        out=out,
        resume=resume,
        callback=callback,
        **{**options, **changes},
    )


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_write(count):
    """Be killed just before the count-th call that makes a file, or its removal, lasting."""
    left = [count]

    def counted(call):
        def wrapped(*arguments, **keywords):
            left[0] -= 1
            if left[0] == 0:
                die()
            return call(*arguments, **keywords)

        return wrapped

    os.replace, os.fsync, Path.unlink = counted(os.replace), counted(os.fsync), counted(Path.unlink)


def child(act):
    """The exit status of `act` in a child, negative for the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = act() or 0
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            status = 75 if isinstance(error, KeyboardInterrupt) else 70
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attempt(train, out, kind, count):
    """train(out, "auto", callback) until the count-th step of this attempt, or the count-th write."""

    def act():
        seen = [0]

        def callback(state):
            seen[0] += 1
            if kind in ("step", "SIGINT", "SIGTERM") and seen[0] == count:
                os.kill(os.getpid(), signal.SIGKILL if kind == "step" else getattr(signal, kind))

        if kind == "write":
            die_in_write(count)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        train(out, "auto", callback)

    return child(act)


def same_bits(one, other):
    if not isinstance(one, torch.Tensor):
        return one == other
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def rows(folder, name="log.csv"):
    with open(folder / name, newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def main(folder):
    draw = random.Random(1)
    plan = [("write", k) for k in (1, 2, 3, 7)]  # before there is anything, and within the first checkpoint
    plan += [(kind, draw.randint(1, 14 if kind == "step" else 24)) for kind in ["step", "write"] * 5]
    plan += [("SIGINT", 4), ("SIGTERM", 3)]
    statuses = [attempt(train, folder / "killed", kind, count) for kind, count in plan]
    steps = max(checkpoint.steps(folder / "killed" / "checkpoints"), default=0)
    statuses.append(attempt(train, folder / "killed", None, 0))
    statuses.append(child(lambda: train(folder / "whole", False) and 0))
    whole, killed = (checkpoint.read(folder / name / "checkpoints") for name in ("whole", "killed"))
    print(
        json.dumps(
            {
                "statuses": statuses,
                "killed_at": steps,
                "steps": [whole.step, killed.step],
                "names": sorted(whole.tensors) == sorted(killed.tensors),
                "tensors": len(whole.tensors),
                "different": [n for n, tensor in whole.tensors.items() if not same_bits(tensor, killed.tensors[n])],
                "state": whole.record["state"] == killed.record["state"],
                "log": rows(folder / "whole") == rows(folder / "killed"),
                "rows": len(rows(folder / "whole")),
                "pictures": [
                    (folder / "killed" / "samples" / path.name).read_bytes() == path.read_bytes()
                    for path in sorted((folder / "whole" / "samples").iterdir())
                ],
            }
        )
    )


if __name__ == "__main__":
    importlib.import_module("matplotlib.backends.backend_agg")
    main(Path(sys.argv[1]))
