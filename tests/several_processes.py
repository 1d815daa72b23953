"""Run as a program, `several_processes.py folder`: what 1, 2 and 3 processes train and sample, and how they fail together.

The processes are forked from here and find each other as those of a launcher do, so that torch is imported once. With
`--launched` it is itself one of the processes of `accelerate launch`. What each did is written to folder/<case>-<index>.pt, as
a dict of tensors and strings.
"""

import importlib
import math
import os
import signal
import socket
import sys
from pathlib import Path

import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import checkpoint, data, fit_score
from halfbridge.training.sampling import sample_rows
from halfbridge.training.workers import current

torch.set_num_threads(1)

PROCESS = hb.VP()


class Dropped(MLP):
    """Drops out inputs, in train mode."""

    def forward(self, x, t):
        return super().forward(torch.nn.functional.dropout(x, 0.25, self.training), t)


def network(kind=MLP, **options):
    torch.manual_seed(1 + current().index)  # the others take the first one's
    return kind(2, hidden=8, depth=1, **options).double()


def train(net, **changes):
    x = data.moons(100, 0).double()
    classes = (x[:, 0] > 0).long() if net.classes else None
    options = {
        "steps": 20,
        "batch_size": 24,
        "lr": 1e-2,
        "clip": 0.5,
        "ema_decay": (0.9, 0.5),
        "accumulate": 2,
        **changes,
    }
    return fit_score(net, x, PROCESS, classes=classes, **options)


def tensors(fit):
    found = {"losses": fit.losses, "step": torch.tensor(fit.step)}
    for decay, net in fit.nets.items():
        found |= {f"{decay} {name}": value for name, value in net.state_dict().items()}
    return found


def samples():
    torch.manual_seed(7)
    net = MLP(2, hidden=32)
    torch.nn.init.normal_(net.last.weight, std=0.3)
    field, seen = hb.nets.as_field(net, PROCESS), []
    grid = hb.grids.half_log_snr(PROCESS, 4)
    options = {"grid": grid, "shape": (2,), "seed": 3, "chunk": 8}
    found = {
        f"{first} {n}": sample_rows(field, hb.Ancestral(), n=n, first=first, progress=seen.append, **options)
        for first, n in ((0, 43), (5, 20), (0, 3), (14, 2))
    }
    return {**found, "seen": torch.tensor(seen)}


def breaks(folder):
    class Breaks(MLP):
        calls = 0

        def forward(self, x, t):
            self.calls += self.training
            bad = self.calls == 4 and current().index == current().count - 1
            return super().forward(x, t) * (math.nan if bad else 1.0)

    return train(network(Breaks), accumulate=1, out=folder / f"nan-{current().count}")


def stopped(folder, resume):
    def callback(state):
        if state.step == 5 and current().index == 1 and not resume:
            os.kill(os.getpid(), signal.SIGTERM)

    out = folder / "stopped"
    return train(network(), out=out, resume=resume, callback=callback, sample_every=7, sample_count=5, progress=True)


def ended():
    return train(network(), callback=lambda state: state.step == 5 and current().index == 1)


CASES = {
    "samples": lambda folder: samples(),
    "classes": lambda folder: tensors(train(network(classes=2), class_dropout=0.3)),
    "dropout": lambda folder: tensors(train(network(Dropped), batch_size=12, accumulate=6 // current().count)),
    "nan": lambda folder: tensors(breaks(folder)),
    "exists": lambda folder: tensors(train(network(), out=folder)),
    "uneven": lambda folder: tensors(train(network(), batch_size=10)),
    "stopped": lambda folder: tensors(stopped(folder, False)),
    "resumed": lambda folder: tensors(stopped(folder, True)),
    "ended": lambda folder: tensors(ended()),
}


def act(cases, folder, name, known=CASES):
    for case in cases:
        try:
            found = known[case](folder)
        except BaseException as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        torch.save(found, folder / f"{case}-{name}-{current().index}.pt")


def results(folder, case, name, count):
    """What each of `count` processes saved."""
    return [torch.load(folder / f"{case}-{name}-{index}.pt") for index in range(count)]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def group(count, cases, folder, known=CASES):
    """Fork `count` processes that do the cases, functions of the folder, and wait for them."""
    port, children = free_port(), []
    for index in range(count):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            if count > 1:
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
                os.environ.update({name: str(value) for name, value in place.items()})
            try:
                act(cases, folder, str(count), known)
            finally:
                sys.stderr.flush()
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    folder = Path(sys.argv[-1])
    if "--launched" in sys.argv:
        act(["samples", "classes"], folder, "launched")
    else:
        for name in ("accelerate", "safetensors.torch", "torch._dynamo"):
            importlib.import_module(name)  # the children would each do it
        group(1, ["samples", "classes", "dropout"], folder)
        group(2, ["samples", "classes", "dropout", "nan", "exists", "uneven", "stopped", "resumed", "ended"], folder)
        group(3, ["samples", "classes", "dropout"], folder)
        print(checkpoint.steps(folder / "nan-2" / "checkpoints"))
