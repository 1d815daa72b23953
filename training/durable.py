"""Files that are there whole or not at all, whatever stops the process or the machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["PARTIAL", "cannot_write", "sync_folder", "write_file"]

PARTIAL = ".partial"
"""The ending of a file that is being written; one that is left was never finished, and may be deleted."""


def write_file(path: Path, data: bytes) -> None:
    """Make `path` hold `data`: written under another name, synced to the disk, renamed, and the rename synced.

    A process that is killed leaves the old file or the new one, and perhaps one ending in `.partial`. An OSError passes
    through after that one is removed. One process writes to a path at a time.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):  # the error that stopped the write is the one to tell
            partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows offers no such call, and gets none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(error: OSError, what: str, folder: Path, size: int, kept: str) -> OSError:
    """The error in one sentence: what could not be written where, why, the bytes it needs, a remedy, and what is kept."""
    reason = error.strerror or str(error)
    message = (
        f"cannot write {what} in {folder}: {reason}; it needs {size} bytes there: free them, or pass another folder "
        f"that can be written to ({kept})"
    )
    return OSError(error.errno, message)
