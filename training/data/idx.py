"""MNIST's files: idx, gzipped or not (LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998).

A big-endian header, bytes 0, 0, type, number of dimensions, then each dimension as a 32-bit number; then the values,
the last dimension fastest. Images and labels are unsigned bytes, type 8.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["IdxFiles", "find_idx", "read_idx"]

UNSIGNED_BYTE = 8
NAME = "idx3-ubyte"
PREFIXES = {"train": "train", "test": "t10k"}
PLACES = (".", "raw", "MNIST/raw")  # the last two are torchvision's


class IdxFiles(NamedTuple):
    images: Path
    labels: Path | None
    own_split: bool
    """Whether the folder has a train and a test part."""


def find_idx(path: Path, split: str | None) -> IdxFiles | None:
    """The files of a split ("train" unless told) under the folder `path`, or of the file of images `path`; None if none.

    A folder that has only the train part comes in one piece. Raises ValueError for a split that MNIST has not and
    FileNotFoundError where the folder holds other idx files than those needed.
    """
    if path.is_file():
        return IdxFiles(path, _beside(path), False) if NAME in path.name else None
    for folder in (path / place for place in PLACES):
        found = sorted(folder.glob(f"[!.]*{NAME}*"))
        if not found:
            continue
        parts = {part: [f for f in found if f.name.startswith(prefix)] for part, prefix in PREFIXES.items()}
        own_split = all(parts.values())
        if own_split and split not in (None, *PREFIXES):
            raise ValueError(f"split = {split!r}: {folder} has MNIST's 'train' and 'test'")
        chosen = parts[split or "train"] if own_split else parts["train"]
        if not chosen:
            raise FileNotFoundError(
                f"{folder} has {', '.join(file.name for file in found)} but no train-images-idx3-ubyte[.gz]; "
                "pass the file of images itself"
            )
        images = chosen[0]  # sorted: the unpacked file before its .gz
        labels = _beside(images)
        if labels is None:
            raise FileNotFoundError(f"{images} has no labels beside it; pass the file of images itself to do without")
        return IdxFiles(images, labels, own_split)
    return None


def _beside(images: Path) -> Path | None:
    """The file of labels of a file of images, packed or not, or None."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    plain = name.removesuffix(".gz")
    return next((images.with_name(n) for n in (name, plain, plain + ".gz") if images.with_name(n).is_file()), None)


def read_idx(path: Path, dims: int) -> torch.Tensor:
    """The file's bytes, uint8, of shape (rows,) for dims = 1 or (rows, height, width) for dims = 3.

    Raises ValueError, naming the file, for another kind of file or one that is cut short or too long.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not whole gzip data ({error}); download it again") from error
    magic = bytes((0, 0, UNSIGNED_BYTE, dims))
    start = 4 + 4 * dims
    if content[:4] != magic or len(content) < start:
        raise ValueError(
            f"{path} begins with the bytes {content[:4].hex(' ')}, not {magic.hex(' ')}: no idx file of unsigned bytes "
            f"in {dims} dimension{'s' * (dims > 1)}"
        )
    shape = struct.unpack(f">{dims}I", content[4:start])
    expected, got = math.prod(shape), len(content) - start
    if got != expected:
        raise ValueError(
            f"{path} says that it holds {' x '.join(map(str, shape))} = {expected} values but has {got}: "
            f"it is {'cut short' if got < expected else 'too long'}; download it again"
        )
    if expected == 0:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
