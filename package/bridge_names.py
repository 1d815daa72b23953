"""What bridges are made of, written as text: ends `digits(classes=[3])`, `normal(std=2)`; references `ou(theta=1)`; step sizes
`symmetric(least=1, most=10)`.

See `halfbridge.solvers.calls`, and `halfbridge.names` for the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfbridge import names
from halfbridge.solvers import names as solver_names
from halfbridge.solvers.calls import Call, bind, call, find
from halfbridge.solvers.nearest import fold
from halfbridge.solvers.processes import Process
from halfbridge.training import data as data_sets
from halfbridge.training.bridge import Normal, ReferenceChain, gammas
from halfbridge.training.data import Dataset

__all__ = ["ENDS", "GAMMAS", "OF_GAMMAS", "REFERENCES", "check_end", "check_net", "ends", "reference", "rows"]

GAMMAS: Mapping[str, Callable[..., Tensor]] = {
    "constant": gammas.constant,
    "geometric": gammas.geometric,
    "symmetric": gammas.symmetric,
}
OF_GAMMAS = ("n",)
"""Arguments that their text does not give, but the command."""


def _normal(mean: float = 0.0, std: float = 1.0) -> dict[str, float]:
    return {"mean": float(mean), "std": float(std)}


def _dsb(rate: float = 0.0) -> float:
    return float(rate)


ENDS: Mapping[str, Callable[..., Any]] = {"normal": _normal}
REFERENCES: Mapping[str, Callable[..., Any]] = {"dsb": _dsb}
"""Beside the processes of `solvers.names`."""


def check_end(text: str) -> Call | None:
    """The call of a normal law, None for data."""
    given = call(text, "end")
    if fold(given.name) != "normal" or Path(text).expanduser().exists():
        return None
    return given._replace(name="normal", arguments=bind(_normal, given._replace(name="normal"), "end"), values=())


def ends(start: str, end: str, dtype: torch.dtype, device: torch.device) -> tuple[Dataset | Normal, Dataset | Normal]:
    """The two laws: data, named as in `names.data`, or 'normal(mean=0, std=1)', which takes the shape of the other."""
    laws = [check_end(text) or names.data(text) for text in (start, end)]
    shape = next((law.shape for law in laws if isinstance(law, Dataset)), None)
    if shape is None:
        raise ValueError(
            f"start {start!r} and end {end!r} are both normal laws, of no shape; pass data for one of them"
        )

    def made(law: Call | Dataset) -> Dataset | Normal:
        if isinstance(law, Dataset):
            return dataclasses.replace(law, examples=law.examples.to(device, dtype))
        return Normal(shape, dtype=dtype, device=device, **_normal(**law.arguments))

    return made(laws[0]), made(laws[1])


def reference(
    process: str | Process,
    steps: int = 20,
    sizes: str | None = None,
    transitions: str | None = None,
    times: Sequence[float] | None = None,
) -> ReferenceChain:
    """The chain of the process of that name in `steps` steps, of equal length in time, at `times`, or with step sizes in the
    ratios of `sizes`, one of `GAMMAS`; of "dsb(rate=0)" they are the step sizes themselves. transitions: default "exact", and
    "euler" of dsb, which has no others."""
    given = None if isinstance(process, Process) else call(process, "process")
    if given is not None and fold(given.name) == "dsb":
        rate = _dsb(**bind(_dsb, given._replace(name="dsb"), "process"))
        if sizes is None or times is not None:
            raise ValueError(
                f"process {process!r} is made of its step sizes; pass --gammas 'constant(gamma=0.05)', say"
            )
        if transitions == "exact":
            raise ValueError(f"--transitions exact: the steps of {process!r} are those of Euler; leave it out")
        return ReferenceChain.dsb(_gammas(sizes, steps), rate)
    made = process if isinstance(process, Process) else _process(process)
    how = transitions or "exact"
    if sizes is not None:
        return ReferenceChain.spaced(made, _gammas(sizes, steps), how)
    return ReferenceChain(made, steps if times is None else times, how)


def check_net(text: str) -> None:
    """ValueError for a network that no bridge can have."""
    given, _ = names.check_net(text, "none")
    if given.arguments.get("time") == "log_snr":
        raise ValueError(f"net {text!r}: the log-SNR is infinite at time 0, where a bridge begins; leave time out")


def rows(text: str) -> Tensor:
    """States to be given to a trained bridge, (n, *shape): of a data set by its name, or what is at a path, were it one row."""
    given = Call(text, {}) if text.strip() and Path(text).expanduser().exists() else call(text, "input")
    if fold(given.name) in {fold(name) for name in (*data_sets.NAMES, "ring")}:
        return names.data(text).examples
    options = names.plain_arguments(bind(data_sets.rows, given, "input", ("path",)))
    return data_sets.rows(given.name, **options)


def _process(text: str) -> Process:
    known = [*solver_names.PROCESSES, *REFERENCES]
    find(call(text, "process").name, known, "process")
    return solver_names.process(text)


def _gammas(text: str, steps: int) -> Tensor:
    given = call(text, "gammas")
    maker = GAMMAS[find(given.name, GAMMAS, "gammas")]
    return maker(steps, **bind(maker, given, "gammas", OF_GAMMAS))
