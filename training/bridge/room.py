"""Where a large buffer goes: memory while there is room, else a file mapped into memory."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from halfbridge.solvers.nearest import nearest
from halfbridge.training.bridge.memory import available
from halfbridge.training.notices import notice

__all__ = ["WHERE", "buffer", "check_place"]

WHERE = ("auto", "memory", "disk")
SHARE = 0.5  # of the memory that is free: the rest is for networks and their work


def buffer(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    where: str = "auto",
    limit: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    among: int = 1,
) -> torch.Tensor:
    """An uninitialised tensor in memory on `device`, or on the CPU: there, or on the disk.

    where: "memory", "disk", or "auto": the first that has room for it of the device's memory, the CPU's and the disk. Memory
    has, where the tensor is no larger than half of what is free (on a CPU shared `among` processes), or than `limit` bytes.
    A RuntimeWarning says so where it goes to the disk. folder: of the file, default the system's for temporary files. The
    file's space is reserved at once, and it has no name (where the file system makes no such files, one for a moment): the space
    is given back with the tensor, even by a process that is killed.

    ValueError as of `check_place`, OSError where the disk has no room.
    """
    check_place(where, limit, folder)
    size = math.prod(shape) * dtype.itemsize
    if where == "memory":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    cpu = torch.device("cpu")
    if where == "auto":
        most = {place: _most(place, limit, among) for place in (device, cpu)}
        for place, bytes_ in most.items():
            if bytes_ is None or size <= bytes_:
                return torch.empty(tuple(shape), dtype=dtype, device=place)
        what = f"cache_limit = {limit}" if limit is not None else f"{most[cpu]}, its share of the free memory"
        notice(
            f"the cache of trajectories has {size} bytes, more than {what}: it goes to the disk, in "
            f"{folder or tempfile.gettempdir()}; pass fewer cache_paths to keep it in memory"
        )
    return _mapped(shape, dtype, size, Path(folder or tempfile.gettempdir()))


def check_place(where: object, limit: object, folder: object) -> None:
    """ValueError for another place than WHERE and a limit that is not positive, TypeError for a folder that is no path."""
    if where not in WHERE:
        raise ValueError(f"`cache` = {where!r} is no place for a cache; {nearest(where, WHERE)}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"`cache_limit` = {limit!r} must be a number of bytes, at least 1, or None")
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"`cache_folder` = {folder!r} is a {type(folder).__name__}; pass the path of a folder, or None")


def _most(place: torch.device, limit: int | None, among: int) -> int | None:
    """Bytes that may be taken there, of which the host's are for all processes; None where that is not known."""
    if limit is not None:
        return limit
    free = available(place)
    return None if free is None else int(SHARE * free / (among if place.type == "cpu" else 1))


def _mapped(shape: Sequence[int], dtype: torch.dtype, size: int, folder: Path) -> torch.Tensor:
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(prefix="trajectories-", suffix=".cache", dir=folder))
        except OSError as error:
            why = f"no cache of trajectories can be made in {folder}: {error.strerror}; pass another cache_folder"
            raise OSError(error.errno, why) from error
        _reserve(file.fileno(), size, folder)
        mapped = mmap.mmap(file.fileno(), size)  # has the file open by itself, as the tensor has the map
    return torch.frombuffer(mapped, dtype=dtype).view(tuple(shape))


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    """Give the file its blocks: a mapped file that runs out of them kills the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
    except OSError as error:
        free = shutil.disk_usage(folder).free
        raise OSError(
            error.errno,
            f"cannot reserve {size} bytes for the cache of trajectories in {folder}, which has {free} free: {error.strerror}; "
            "pass another cache_folder, or fewer cache_paths",
        ) from error
