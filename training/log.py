"""A run's log: log.csv, and TensorBoard's event files where they are asked for."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from halfbridge.training.durable import cannot_write, write_file

__all__ = ["SMOOTHED", "Log", "Row", "read"]

SMOOTHED = 100
"""The steps that a smoothed loss is the mean of."""


class Row(NamedTuple):
    """A line of log.csv."""

    step: int
    """Steps done."""
    loss: float
    """Mean loss of the step's batch."""
    smoothed: float
    """Mean of the last SMOOTHED losses."""
    gradient_norm: float
    """Of the whole gradient, before clipping."""
    lr: float
    """Learning rate of the step."""
    seconds: float
    """Time in training, over all the parts of a resumed run; the work lost in between is not counted."""
    examples: int
    """Examples seen."""


class Log:
    """Appends rows to log.csv, and to TensorBoard's files in tensorboard/ if asked to.

    after: the step of the state that training goes on from. Lines of later steps are removed first, in one rename, so that
    a resumed run leaves the lines of one never interrupted (but for their seconds).
    Raises ImportError, naming the extra, where TensorBoard is asked for and not installed; OSError, naming the folder, when
    there is no space.
    """

    def __init__(self, folder: Path, *, after: int, tensorboard: bool = False) -> None:
        self.path = folder / "log.csv"
        kept = [row for row in read(self.path) if row.step <= after] if self.path.exists() else []
        self.seconds = kept[-1].seconds if kept else 0.0
        text = "".join(map(_line, (Row._fields, *kept)))
        with self._writing(len(text)):
            write_file(self.path, text.encode())
        self._board = _board(folder / "tensorboard", after) if tensorboard else None
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def row(self, row: Row) -> None:
        """Append a line; it survives the process as soon as this returns."""
        line = _line(row)
        with self._writing(len(line)):
            self._file.write(line)
            self._file.flush()
        if self._board is not None:
            for name in ("loss", "smoothed", "gradient_norm", "lr"):
                self._board.add_scalar(f"train/{name}", getattr(row, name), row.step)

    def picture(self, name: str, pixels: Any, step: int) -> None:
        """An image (height, width, 3), uint8, for TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def sync(self) -> None:
        """The lines survive the machine too: before a checkpoint, which must not be ahead of them."""
        with self._writing(0):
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a line that could not be written, which was told then
            self._file.close()
        if self._board is not None:
            self._board.close()

    @contextlib.contextmanager
    def _writing(self, size: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(error, "log.csv", self.path.parent, size, "the checkpoints there are whole") from error


def _line(values: tuple[Any, ...]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def read(path: Path) -> list[Row]:
    """The rows of a log.csv; what a killed process left of a last line is passed over. ValueError for another file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = list(csv.reader(line for line in lines if line.endswith("\n")))
    if rows and tuple(rows[0]) != Row._fields:
        raise ValueError(
            f"{path} begins {','.join(rows[0])!r}, not {','.join(Row._fields)!r}: it is not a log of training"
        )
    return [_row(values, f"{path}, line {k}") for k, values in enumerate(rows[1:], 2)]


def _row(values: list[str], where: str) -> Row:
    try:
        step, loss, smoothed, norm, lr, seconds, examples = values
        return Row(int(step), float(loss), float(smoothed), float(norm), float(lr), float(seconds), int(examples))
    except ValueError:
        raise ValueError(f"{where} is {','.join(values)!r}, no line of a log of training; delete that line") from None


def _board(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard = True needs TensorBoard: pip install 'halfbridge[train]', or pass tensorboard=False"
        ) from error
    return SummaryWriter(str(folder), purge_step=after + 1)
