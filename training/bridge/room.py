"""Where a large buffer goes: memory while there is room, else a file mapped into memory."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from halfbridge.solvers.nearest import nearest

__all__ = ["WHERE", "available", "buffer"]

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
    """An uninitialised tensor in memory on `device`, or on the disk: then it is on the CPU.

    where: "memory", "disk", or "auto", which takes memory unless the tensor is larger than `limit` bytes (default half of what
    is available, shared `among` processes on a CPU), and says so in a RuntimeWarning where it goes to the disk. folder: of the
    file, default the system's for temporary files. The file's space is reserved at once, and it has no name (where the file
    system makes no such files, one for a moment): the space is given back with the tensor, even by a process that is killed.

    ValueError for another `where` or a limit that is not positive, OSError where the disk has no room.
    """
    if where not in WHERE:
        raise ValueError(f"`cache` = {where!r} is no place for a cache; {nearest(where, WHERE)}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"`cache_limit` = {limit!r} must be a number of bytes, at least 1, or None")
    size = math.prod(shape) * dtype.itemsize
    if where == "auto":
        free = available(device)
        share = SHARE if device.type == "cuda" else SHARE / among
        most = limit if limit is not None else None if free is None else int(share * free)
        if most is not None and size > most:
            what = f"cache_limit = {most}" if limit is not None else f"half of the {free} bytes of free memory"
            warnings.warn(
                f"the cache of trajectories has {size} bytes, more than {what}: it goes to the disk, in "
                f"{folder or tempfile.gettempdir()}; pass fewer cache_paths to keep it in memory",
                RuntimeWarning,
                stacklevel=2,
            )
            where = "disk"
    if where != "disk":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return _mapped(shape, dtype, size, Path(folder or tempfile.gettempdir()))


def available(device: torch.device) -> int | None:
    """Bytes of memory that could be had on the device now; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _mapped(shape: Sequence[int], dtype: torch.dtype, size: int, folder: Path) -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(prefix="trajectories-", suffix=".cache", dir=folder) as file:
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
