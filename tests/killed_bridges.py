"""Run as a program, `killed_bridges.py folder`: a bridge trained in child processes that are killed, and one that was not.

Matched full covariances and a cache on the disk. As in killed_runs, whose children these are. Prints a line of JSON.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import torch
from bridge_nets import NEAR0, NEAR1, ONE
from killed_runs import attempt, child, die, rows, same_bits

from halfbridge.nets import MLP
from halfbridge.training import checkpoint, jsontext
from halfbridge.training.bridge import ReferenceChain, fit_bridge

STEPS, HALF_BRIDGES = 5, 4


class Net(MLP):
    """With dropout and a buffer that training changes."""

    def __init__(self):
        super().__init__(2, hidden=8, depth=1)
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x, t):
        return super().forward(torch.nn.functional.dropout(self.norm(x), 0.2, self.training), t)


def train(out, resume, callback=None):
    torch.manual_seed(3)
    both = [Net().double() for _ in range(2)]
    torch.seed()
    return fit_bridge(
        *both, NEAR0, NEAR1, ReferenceChain(ONE, 3), variance="matched", form="full", iterations=HALF_BRIDGES // 2,
        steps=STEPS, batch_size=16, accumulate=2, refresh=2, cache_paths=16, cache="disk", cache_folder=out.parent / "cache",
        covariance_paths=40, monitor_paths=16, ema_decay=(0.9, 0.5), save_every=3, log_every=2, seed=5, out=out, resume=resume,
        callback=callback,
    )  # fmt: skip


def attempt_until(out, name, count=1):
    """Train until just before the count-th file of that name is renamed into its place."""

    def act():
        replace, left = os.replace, [count]

        def replaced(source, path):
            left[0] -= Path(path).name == name
            if not left[0]:
                die()
            replace(source, path)

        os.replace = replaced
        train(out, "auto")

    return child(act)


def attempt_until_reserved(out):
    """Train until just before the cache's file is given its blocks: it is there then, and nothing of it later."""

    def act():
        os.posix_fallocate = lambda *arguments: die()
        train(out, "auto")

    return child(act)


def monitors(folder):
    return rows(folder, "monitors.csv")


def main(folder):
    out, between = folder / "killed", []
    statuses = [
        attempt(train, out, kind, count) for kind, count in [("write", 2), ("write", 8), ("step", 2), ("step", 5)]
    ]
    for done in (1, 3):  # half-bridges
        statuses.append(attempt_until(out, "monitors.csv", 2))
        between.append(len(monitors(out)))  # not the line of the half-bridge that ended
        statuses.append(attempt_until(out, f"step-{done * STEPS:09d}.json"))
        between.append(len(monitors(out)))  # its line, and no checkpoint yet
        between.append(checkpoint.steps(out / "checkpoints")[-1])
        statuses.append(attempt(train, out, "step", 4 if done == 1 else 3))
    statuses.append(attempt_until_reserved(out))
    cache = [path.name for path in (folder / "cache").iterdir()]
    statuses.append(attempt(train, out, "SIGTERM", 1))
    step = checkpoint.steps(out / "checkpoints")[-1]
    statuses.append(attempt(train, out, None, 0))
    statuses.append(child(lambda: train(folder / "whole", False) and 0))
    whole, killed = (checkpoint.read(folder / name / "checkpoints") for name in ("whole", "killed"))
    records = [dict(found.record["state"]) for found in (whole, killed)]
    for record in records:
        record["rows"] = [row[:-1] for row in record["rows"]]  # seconds
    print(
        json.dumps(
            {
                "statuses": statuses,
                "between": between,
                "killed_at": step,
                "steps": [whole.step, killed.step],
                "names": sorted(whole.tensors) == sorted(killed.tensors),
                "tensors": len(whole.tensors),
                "different": [n for n, tensor in whole.tensors.items() if not same_bits(tensor, killed.tensors[n])],
                "state": jsontext.dumps(records[0]) == jsontext.dumps(records[1]),
                "log": rows(folder / "whole") == rows(out),
                "monitors": monitors(folder / "whole") == monitors(out),
                "rows": [len(rows(out)), len(monitors(out))],
                "cache": cache,
            }
        )
    )


if __name__ == "__main__":
    importlib.import_module("ot")  # the children would each do it
    main(Path(sys.argv[1]))
