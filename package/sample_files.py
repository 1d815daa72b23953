"""Samples in files: pictures, numpy's arrays, safetensors. No pickle."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfbridge.training import pictures
from halfbridge.training.durable import write_file

__all__ = ["check", "write"]

SUFFIXES = (".png", ".npz", ".npy", ".safetensors")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def check(path: Path) -> None:
    """Raise ValueError for a file that `write` cannot write, before there is anything to write."""
    if path.suffix in PICKLES:
        raise ValueError(
            f"--out {path}: {path.suffix} files are pickles, which can run code when they are read; pass "
            f"{path.with_suffix('.safetensors').name} or {path.with_suffix('.npz').name}"
        )
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--out {path} must end in one of {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder; pass a file in it, such as {path / 'samples.png'}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ValueError(f"--out {path}: {above} is a file, not a folder; pass another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--out {path}: {above} cannot be written to; pass another folder")


def write(
    path: Path,
    samples: torch.Tensor,
    classes: torch.Tensor | None,
    facts: Mapping[str, Any],
    *,
    data: torch.Tensor | None,
    range: tuple[float, float],
    columns: int | None,
    more: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write samples (n, *shape) whole or not at all.

    .png: see `pictures.draw`, which data, range and columns are for. .npy: the samples. .npz and .safetensors: arrays `samples`
    and, where there are any, `classes` (n,), -1 for none, and those of `more`; .safetensors has `facts` as its metadata.
    """
    samples = samples.cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        pictures.draw(samples, path, data=data, range=range, columns=columns)
        return
    arrays = {"samples": samples} | ({} if classes is None else {"classes": classes.cpu()})
    arrays |= {name: array.cpu().contiguous() for name, array in (more or {}).items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        write_file(path, save(arrays, metadata={key: json.dumps(value) for key, value in facts.items()}))
        return
    file = io.BytesIO()
    if path.suffix == ".npy":
        np.save(file, samples.numpy(), allow_pickle=False)
    else:
        plain: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
        np.savez(file, **plain)
    write_file(path, file.getvalue())
