"""Folders of images, read with Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfbridge.training.data.raw import Raw

__all__ = ["read_folder", "resized", "resized_rows"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = ("train", "test", "val")
GRAY = ("1", "L", "LA")
COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB")


class _Listed(NamedTuple):
    files: list[Path]
    classes: list[int] | None
    names: tuple[str, ...] | None


def read_folder(path: Path, split: str | None, size: tuple[int, int] | None, gray: bool | None) -> Raw:
    """All images under the folder, in the order of their paths, with a class for each sub-folder.

    Images alone have no classes. Sub-folders all named train, test or val are splits (train alone is the whole), "train"
    unless told. Hidden files and those whose suffix is no image's are passed over. Camera turns are undone (EXIF); of an
    animation the first frame counts; a palette counts as colour. size: (height, width), see `resized`. gray: True
    converts to gray by Pillow's luma (ITU-R 601), False to RGB, None to RGB unless all are gray.

    Raises ValueError, naming the file: damaged, of 16 bits or floats, not opaque, of another size than the first (without
    `size`); and for a folder without images, with images both in it and in sub-folders, with an empty class, or with links
    by which a folder would be read twice (links to folders elsewhere are followed). ImportError, naming the extra, without
    Pillow.
    """
    parts = _splits(path)
    if parts and "train" not in parts:
        raise ValueError(f"{path} has {' and '.join(parts)} and no train; pass the path of one of them")
    own_split = len(parts) > 1
    if own_split and split not in (None, *parts):
        raise ValueError(f"split = {split!r}: {path} has {', '.join(parts)}")
    if parts:
        path = path / (split if own_split and split else "train")
    listed = _listed(path)
    classes = None if listed.classes is None else torch.tensor(listed.classes, dtype=torch.int64, device="cpu")
    return Raw(_pixels(listed.files, size, gray), classes, listed.names, own_split=own_split)


def resized(image: Any, size: tuple[int, int]) -> Any:
    """The Pillow image, cut about its middle to the proportions of size = (height, width) and resized to it.

    Lanczos' filter, widened for reductions so that it does not alias. An image of that size already is left as it is.
    """
    image_module, ops = _pillow()
    height, width = size
    return image if image.size == (width, height) else ops.fit(image, (width, height), image_module.Resampling.LANCZOS)


def resized_rows(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`resized` for each of the images (n, 1 or 3, height, width), uint8."""
    image_module, _ = _pillow()
    rows = values[:, 0] if values.shape[1] == 1 else values.permute(0, 2, 3, 1)
    return torch.stack([_tensor(resized(image_module.fromarray(row.numpy()), size)) for row in rows])


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 'halfbridge[images]'") from error
    return Image, ImageOps


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _images(folder: Path, read: set[Path] | None = None) -> list[Path]:
    """The image files in the folder; with `read`, the folders read so far, in its visible sub-folders too."""
    if read is not None:
        real = folder.resolve()
        if real in read:
            raise ValueError(f"{folder} leads by a link to {real}, whose images are read already; remove the link")
        read.add(real)
    found = []
    for entry in _visible(folder):
        if entry.is_dir() and read is not None:
            found += _images(entry, read)
        elif entry.is_file() and entry.suffix.lower() in SUFFIXES:
            found.append(entry)
    return found


def _pixels(files: list[Path], size: tuple[int, int] | None, gray: bool | None) -> torch.Tensor:
    """The images, (n, 1 or 3, height, width), each written there as it is read: many do not fit in memory twice."""
    first = _read(files[0], size)
    width, height = first.size
    values = torch.empty((len(files), 3 if gray is False else 1, height, width), dtype=torch.uint8, device="cpu")
    for k, file in enumerate(files):
        image = _read(file, size) if k else first
        if image.size != first.size:
            raise ValueError(
                f"images of mixed sizes: {files[0]} is {width}x{height} and {file} is {image.width}x{image.height} (width x "
                "height); pass size=(height, width), or size=32 for a square, to cut and resize them all"
            )
        if gray is None and image.mode == "RGB" and values.shape[1] == 1:
            values = values.repeat(1, 3, 1, 1)  # the first in colour: the gray ones before it become RGB
        values[k] = _tensor(image.convert("L" if values.shape[1] == 1 else "RGB"))
    return values


def _splits(path: Path) -> list[str]:
    """The names of the splits that the folder consists of, none if it does not."""
    folders = [entry.name for entry in _visible(path) if entry.is_dir()]
    return [name for name in SPLITS if name in folders] if folders and set(folders) <= set(SPLITS) else []


def _listed(path: Path) -> _Listed:
    flat = _images(path)
    folders = [entry for entry in _visible(path) if entry.is_dir()]
    if not folders:
        if not flat:
            raise ValueError(f"{path} has no images ({', '.join(sorted(SUFFIXES))}), no sub-folders and no idx files")
        return _Listed(flat, None, None)
    if flat:
        raise ValueError(
            f"{path} has images ({flat[0].name}) and sub-folders ({folders[0].name}); pass a folder of images alone, or of "
            "one sub-folder for each class"
        )
    files, classes, read = [], [], {path.resolve()}
    for k, folder in enumerate(folders):
        inside = _images(folder, read)
        if not inside:
            raise ValueError(
                f"{folder} has no images, and each sub-folder is a class; remove it, or pass another folder"
            )
        files += inside
        classes += [k] * len(inside)
    return _Listed(files, classes, tuple(folder.name for folder in folders))


def _read(file: Path, size: tuple[int, int] | None) -> Any:
    """The image in mode "L" if it is gray, else "RGB"."""
    image_module, ops = _pillow()
    try:
        with image_module.open(file) as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # notes on odd metadata
            opened.load()
            image = ops.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:  # unknown kinds: OSError
        raise ValueError(f"{file} cannot be read as an image ({error}); replace it or remove it") from error
    if image.mode not in GRAY + COLOUR:
        raise ValueError(
            f"{file} has Pillow's mode {image.mode!r}, not gray or colour of 8 bits a channel; convert it to that"
        )
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] < 255:
            raise ValueError(f"{file} is not opaque: its colours depend on what is behind; flatten it on a background")
    image = image.convert("L" if image.mode in GRAY else "RGB")
    return image if size is None else resized(image, size)


def _tensor(image: Any) -> torch.Tensor:
    """(channels, height, width), uint8."""
    width, height = image.size
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(height, width, -1).permute(2, 0, 1).contiguous()
