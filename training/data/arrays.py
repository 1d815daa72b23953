"""Arrays in numpy's files, .npz and .npy; pickled objects are never loaded."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from halfbridge.training.data.raw import Raw

__all__ = ["SUFFIXES", "read_arrays"]

SUFFIXES = (".npz", ".npy")
CHANNELS = (1, 3)
SPLITS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}


def read_arrays(path: Path, split: str | None) -> Raw:
    """The images or floats of the file, and their classes, where it has any.

    Keys: x_train, y_train, x_test, y_test (Keras' mnist.npz), of which `split` chooses, "train" unless told; or images
    and, if there, labels; or samples, as `halfbridge sample` writes them; or a single array of any name, without
    classes. Raises ValueError, naming the file and what it holds, for other keys, shapes and types, and for files that are
    damaged or hold pickled objects.
    """
    arrays = _arrays(path)
    own_split = all(key in arrays for key, _ in SPLITS.values())
    if own_split and split not in (None, *SPLITS):
        raise ValueError(f"split = {split!r}: {path} has 'train' and 'test'")
    if SPLITS["train"][0] in arrays:
        image_key, label_key = SPLITS[split or "train"] if own_split else SPLITS["train"]
    elif "images" in arrays:
        image_key, label_key = "images", "labels"
    elif "samples" in arrays:
        image_key, label_key = "samples", "labels"
    elif len(arrays) == 1:
        image_key, label_key = next(iter(arrays)), "labels"
    else:
        raise ValueError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; name its arrays x_train, y_train, x_test, y_test, or images "
            "and labels, or keep a single one"
        )
    where = f"{path}: {image_key}"
    values = _values(arrays[image_key], where)
    if label_key not in arrays:
        return Raw(values, own_split=own_split)
    classes = _classes(arrays[label_key], len(values), f"{path}: {label_key}")
    others = [arrays[key] for _, key in SPLITS.values() if own_split and key in arrays]
    count = 1 + max(int(part.max()) for part in (arrays[label_key], *others) if part.size)
    return Raw(values, classes, tuple(map(str, range(count))), own_split=own_split)


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return {"array": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds pickled Python objects or is no numpy file; pickles are never loaded, for they run code: "
                "save plain arrays with numpy.savez"
            ) from error
        raise ValueError(f"{path} cannot be read as numpy arrays ({error}); save it again with numpy.savez") from error


def _values(array: Any, where: str) -> torch.Tensor:
    kind = f"shape {array.shape} and dtype {array.dtype}"
    if array.dtype.kind == "f":
        if array.ndim < 2:
            raise ValueError(f"{where} has {kind}; floats are examples as they are, of shape (n, *shape)")
        return torch.from_numpy(array.astype("float32", copy=False))
    if array.dtype != "uint8" or array.ndim not in (3, 4):
        raise ValueError(
            f"{where} has {kind}; pass uint8 images, (n, height, width[, channels]), or floats (n, *shape)"
        )
    images = torch.from_numpy(array).contiguous()
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if first == last:
        raise ValueError(
            f"{where} has {kind}; {'both axis 1 and axis 3' if first else 'neither axis 1 nor axis 3'} could be the 1 or 3 "
            "channels" + ("; drop the axis of 1, or save (n, height, width)" if first else "; save gray or RGB images")
        )
    return images if first else images.permute(0, 3, 1, 2).contiguous()


def _classes(array: Any, n: int, where: str) -> torch.Tensor:
    if array.dtype.kind not in "iu" or array.size != n or array.shape[0] != n or (array.size and int(array.min()) < 0):
        raise ValueError(
            f"{where} has shape {array.shape} and dtype {array.dtype}; pass {n} integers from 0, one for each example"
        )
    return torch.from_numpy(array.astype("int64")).flatten()
