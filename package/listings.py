"""The names that commands take, with their arguments and defaults, for help: from the signatures of what they make."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from halfbridge import bridge_names, names
from halfbridge.nets.columns import COLUMNS
from halfbridge.solvers import names as solver_names
from halfbridge.solvers.calls import usage
from halfbridge.training import data, objectives
from halfbridge.training.losses import TIMES, WEIGHTINGS, LearnedSchedule
from halfbridge.training.objectives.described import DECODER, TIME_LAWS, WEIGHTS

__all__ = ["bridges", "grids", "processes", "solvers", "trainable"]


def solvers() -> str:
    return _lines("solvers", solver_names.SOLVERS)


def processes() -> str:
    return _lines("processes", solver_names.PROCESSES)


def grids() -> str:
    return _lines("grids", solver_names.GRIDS, solver_names.OF_GRIDS)


def bridges() -> str:
    """Ends, references, step sizes and networks of bridges."""
    return "\n".join(
        [
            *_data("ends"),
            _lines("", bridge_names.ENDS),
            _lines("references", {**solver_names.PROCESSES, **bridge_names.REFERENCES}),
            _lines("gammas", bridge_names.GAMMAS, bridge_names.OF_GAMMAS),
            _lines("networks", names.NETS, names.OF_NETS),
        ]
    )


def trainable() -> str:
    """Data, networks, objectives and their choices."""
    bounds = {"learned": LearnedSchedule, **DECODER.kinds}
    return "\n".join(
        [
            *_data("data"),
            _lines("networks", names.NETS, names.OF_NETS),
            _lines("preconditions", COLUMNS),
            _lines("objectives", objectives.NAMES, names.OF_OBJECTIVES),
            _entry("weightings", _choices(WEIGHTINGS, WEIGHTS.kinds)),
            _entry("times", _choices(TIMES, TIME_LAWS.kinds)),
            _entry("labels", "half_log_snr(), scaled(factor=1000), steps(n=1000); of ncsn: index"),
            _entry("schedule, levels", _choices((), bounds)),
        ]
    )


def _data(head: str) -> list[str]:
    known = f"{', '.join(data.NAMES)}; MNIST's idx files or their folder, an .npz or .npy file, a folder of images"
    return [
        _entry(head, f"{known} (a sub-folder for each class)"),
        _entry("", usage("any", data.load, names.OF_DATA) + "; of laws in the plane: n, seed"),
    ]


def _choices(plain: Iterable[str], kinds: Mapping[str, type]) -> str:
    return ", ".join([*(name for name in plain if name not in kinds), *(usage(*kind) for kind in kinds.items())])


def _lines(head: str, makers: Mapping[str, Callable[..., Any]], without: Collection[str] = ()) -> str:
    """Those with arguments have a line each."""
    told = [usage(name, maker, without) for name, maker in makers.items()]
    plain = ", ".join(one for one in told if "(" not in one)
    lines = [*([plain] if plain else []), *(one for one in told if "(" in one)]
    return "\n".join(_entry(head if k == 0 else "", line) for k, line in enumerate(lines))


def _entry(head: str, text: str) -> str:
    return textwrap.fill(text, 108, initial_indent=f"  {head:16} ", subsequent_indent=" " * 23)
