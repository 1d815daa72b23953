"""How much memory there is to be had."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath

import torch

__all__ = ["available"]


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes of memory that could be had on the device now; None where the system does not tell.

    Of a CPU the least of what the system has and of what each control group that the process is in (a container's, a batch
    system's) has left under its limit. root: where /proc and /sys are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    left = [_of_groups(root), _of_system(root)]
    return min((size for size in left if size is not None), default=None)


def _of_system(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_groups(root: Path) -> int | None:
    """Of version 2, one tree, and of version 1, whose trees are one a resource. In a container the tree begins at its own group,
    of which the path outside may be told: what is not there is passed over."""
    left: list[int] = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, _, named = line.partition(":")
            kinds, _, path = named.partition(":")
            if kinds and "memory" not in kinds.split(","):
                continue
            tree = root / "sys/fs/cgroup" / ("memory" if kinds else "")
            limit, used = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
            )
            inside = PurePosixPath(path.strip()).relative_to("/") if path.startswith("/") else PurePosixPath()
            for group in (inside, *inside.parents):
                with contextlib.suppress(OSError, ValueError):  # "max", where there is none
                    most = int((tree / group / limit).read_text())
                    left.append(max(0, most - int((tree / group / used).read_text()) + _given_back(tree / group)))
    return min(left, default=None)


def _given_back(group: Path) -> int:
    """What counts as used, but holds files that can be read again."""
    with contextlib.suppress(OSError, ValueError):
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(
            told.get("total_inactive_file", told.get("inactive_file", 0))
        )  # version 1's own is without groups within
    return 0
