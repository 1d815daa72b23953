"""What is said of a bridge in training: a line a half-bridge, and warnings of one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from halfbridge.training.bridge.monitors import Monitor

__all__ = ["MonitorTable", "one_line_warnings"]

HEAD = (
    f"{'half-bridge':12}{'loss':>10} |{'energy distance':>24} |{'sliced W2':>22} |{'KL, nats':>22} |{'path energy':>12} |"
    f"{'seconds':>8}\n{'':22} |{'at start':>12}{'at end':>12} |{'at start':>11}{'at end':>11} |{'':22} |{'':12} |"
)


class MonitorTable:
    """Says the lines of `monitors.csv` as they come: a callback of `fit_bridge`, and `rest` for the last ones."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.said = say, 0

    def __call__(self, state: Any) -> None:
        self.lines(state.monitors)

    def lines(self, rows: list[Monitor]) -> None:
        """Those that have not been said."""
        for row in rows[self.said :]:
            if not self.said:
                self.say(HEAD)
            self.said += 1
            name, kl = f"{row.iterate} {row.direction}", _number(row.kl)
            if row.kl == row.kl:
                kl += f" +- {row.kl_error:.2g}"
            self.say(
                f"{name:12}{_number(row.loss):>10} |"
                f"{_number(row.start_energy_distance):>12}{_number(row.end_energy_distance):>12} |"
                f"{_number(row.start_sliced_w2):>11}{_number(row.end_sliced_w2):>11} |{kl:>22} |"
                f"{_number(row.path_energy):>12} |{row.seconds:>8.1f}"
            )

    def rest(self, rows: list[Monitor], floors: Mapping[str, float]) -> None:
        """The last lines, and what the errors of a perfect bridge would be."""
        self.lines(rows)
        if floors:
            energy, sliced = ([floors[f"{end}_{name}"] for end in ("start", "end")] for name in NAMES)
            self.say(
                f"{'two samples':22} |{_number(energy[0]):>12}{_number(energy[1]):>12} |"
                f"{_number(sliced[0]):>11}{_number(sliced[1]):>11} |"
            )


NAMES = ("energy_distance", "sliced_w2")


@contextmanager
def one_line_warnings(silent: str | None = None) -> Iterator[None]:
    """Warnings are a line on stderr, as errors are; not those that `silent` matches, which are said otherwise."""

    def show(message: Warning | str, *others: Any, **more: Any) -> None:
        print(f"halfbridge: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        if silent is not None:
            warnings.filterwarnings("ignore", message=silent)
        warnings.showwarning = show
        yield


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.4g}"
