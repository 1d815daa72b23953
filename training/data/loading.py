"""A data set by its name or its path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from halfbridge.solvers.nearest import nearest
from halfbridge.training.data import order
from halfbridge.training.data.arrays import SUFFIXES, read_arrays
from halfbridge.training.data.dataset import Dataset
from halfbridge.training.data.digits import digits
from halfbridge.training.data.folder import read_folder, resized_rows
from halfbridge.training.data.idx import find_idx, read_idx
from halfbridge.training.data.points import Points, labelled_checkerboard, labelled_moons, labelled_ring, swiss_roll
from halfbridge.training.data.raw import Raw

__all__ = ["NAMES", "load", "rows"]

Size = int | tuple[int, int] | list[int] | None

NAMES = ("digits", "moons", "8gaussians", "checkerboard", "swiss_roll")
"""What `load` knows by name."""
EIGHT = tuple("01234567")
ALIASES = {"halfmoons": "moons", "ring": "8gaussians", "eightgaussians": "8gaussians"}
POINTS: dict[str, Callable[[int, int], Points | torch.Tensor]] = {
    "moons": labelled_moons,
    "8gaussians": labelled_ring,
    "checkerboard": labelled_checkerboard,
    "swiss_roll": swiss_roll,
}


def load(
    name_or_path: str | Path,
    *,
    n: int | None = None,
    n_per_class: int | None = None,
    seed: int = 0,
    split: str | None = None,
    holdout: float | None = None,
    holdout_seed: int = 0,
    size: Size = None,
    gray: bool | None = None,
    dequantise: bool = False,
    classes: list[int | str] | None = None,
) -> Dataset:
    """The data set of that name, or the one at that path, in memory.

    Names: "digits" (scikit-learn's 1797 images of 8x8), and laws in the plane "moons" (or "half-moons"), "8gaussians" (or
    "ring"), "checkerboard", "swiss_roll". A name wins over a path; write "./digits" for a folder of that name. Paths:

    - MNIST's idx files, gzipped or not: their folder (or one that has them in raw/ or MNIST/raw/), or a file of images,
      whose labels are read from the file beside it where there is one. Fashion-MNIST and KMNIST are the same.
    - .npz: arrays x_train, y_train, x_test, y_test (Keras' mnist.npz), or images and labels, or a single array; .npy.
      uint8 is images, (n, height, width), (n, height, width, channels) or (n, channels, height, width), 1 or 3 channels;
      floats, (n, *shape), are not scaled, only made float32. Pickled objects are refused.
    - A folder of images: one sub-folder for each class, or images alone (no classes); or such folders named train, test
      and val. Read with Pillow, in sorted order; hidden files and those that are no images are passed over. All become
      RGB unless all are gray; `gray` = True or False asks for one of the two.

    Images are float32, (n, channels, height, width), in [-1, 1]: see `Dataset` for the mapping and for what bits per
    dimension need, `dequantise=True`, which spreads each pixel over its bin with the noise of `seed`; `fit_score`, given the
    Dataset, spreads it anew each time that it sees an example.

    n: points to draw from a law in the plane, 10000 unless told; of other data a random subset (by `seed`, rows kept in
    order), all unless told. n_per_class: that many of each class instead.
    split: "train" (which is the default) or "test", or "val", of data that come in such parts. Of other data holdout = 0.1
    makes a random tenth the "test" split, by `holdout_seed` alone: whatever n and `seed` are, no row of it is trained on.
    Draw another `seed` for fresh points of a law.
    classes: those alone, by number or name: [3, 8] of the digits. They keep their numbers and names. n and n_per_class count
    what is left then.
    size: resize images to (height, width), or to a square, by Pillow's Lanczos filter after cutting the middle that has
    the new proportions. Images of different sizes need it.

    Raises ValueError or FileNotFoundError, naming what and where: an unknown name (with the nearest known one), a missing
    path, a damaged file, more rows asked for than there are, options that the data cannot take; ImportError without the
    package that reads them.
    """
    asked: dict[str, Any] = {
        "n": n,
        "n_per_class": n_per_class,
        "split": split,
        "holdout": holdout,
        "holdout_seed": None if holdout is None and holdout_seed == 0 else holdout_seed,
        "size": list(size) if isinstance(size, tuple) else size,
        "gray": gray,
        "dequantise": dequantise or None,
        "classes": None if classes is None else list(classes),
    }
    asked = {key: value for key, value in asked.items() if value is not None}
    if n is not None and n_per_class is not None:
        raise ValueError(f"n = {n} and n_per_class = {n_per_class} exclude each other; pass one")
    name = _known(name_or_path)
    if name in POINTS:
        for key in asked:
            if key != "n":
                fresh = key in ("split", "holdout", "holdout_seed")
                hint = "a fresh sample is another seed" if fresh else "pass n and seed alone"
                raise ValueError(f"{key} = {asked[key]!r}: {name!r} is a law in the plane, not a set of images; {hint}")
        return _draw(name, 10_000 if n is None else n, seed)
    raw = _read(name, name_or_path, split, size, gray)
    raw = _subset(_of_classes(_part(raw, split, holdout, holdout_seed), classes), n, n_per_class, seed, classes)
    where = name or str(Path(name_or_path).expanduser().resolve())
    config = {"name_or_path": where, "seed": seed, **asked}
    return raw.dataset(name or Path(where).name, config, noise=seed if dequantise else None)


def rows(path: str | Path, *, split: str | None = None, size: Size = None, gray: bool | None = None) -> torch.Tensor:
    """What is at a path, as `load` reads it: (n, *shape), of which there may be a single row, to be given to a trained model."""
    where = Path(path).expanduser()
    examples = _read_path(where, split, _height_and_width(size), gray).examples()
    bad = int((~torch.isfinite(examples)).sum())
    if bad:
        raise ValueError(f"{where} must be finite, but {bad} of its {examples.numel()} numbers are NaN or infinite")
    return examples


def _known(name_or_path: str | Path) -> str | None:
    """The name in NAMES that is meant, None for a path; unknown names are refused with the nearest."""
    if isinstance(name_or_path, Path):
        return None
    if not name_or_path.strip():
        raise ValueError(f"name_or_path = {name_or_path!r} is empty; pass a name or a path ('.' is the current folder)")
    folded = {_fold(name): name for name in NAMES} | ALIASES
    asked = _fold(name_or_path)
    if asked in folded:
        return folded[asked]
    path = Path(name_or_path).expanduser()
    if path.exists() or len(path.parts) != 1 or path.suffix or name_or_path.startswith("~"):
        return None
    elsewhere = asked.endswith("mnist") or asked.startswith("cifar")
    hint = "nothing is downloaded, pass the path of its files" if elsewhere else nearest(asked, NAMES)
    raise ValueError(
        f"there is no data {name_or_path!r}, neither by name nor as a path; {hint} (A path is one of a folder of MNIST's idx "
        "files or of images, or of an .npz or .npy file.)"
    )


def _fold(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")


def _draw(name: str, n: int, seed: int) -> Dataset:
    drawn = POINTS[name](n, seed)
    points, classes = drawn if isinstance(drawn, Points) else (drawn, None)
    parts = {"moons": ("upper", "lower"), "8gaussians": EIGHT, "checkerboard": EIGHT}
    return Dataset(points, classes, name, parts.get(name), config={"name_or_path": name, "n": n, "seed": seed})


def _read(name: str | None, name_or_path: str | Path, split: str | None, size: Size, gray: bool | None) -> Raw:
    """The whole set, or the part of it that `split` names where it comes in parts."""
    if name is None:
        return _read_path(Path(name_or_path).expanduser(), split, _height_and_width(size), gray)
    for key, value in (("size", size), ("gray", gray)):
        if value is not None:
            raise ValueError(f"{key} = {value!r}: the digits are gray images of 8x8 pixels of 17 levels; leave it out")
    images, labels = digits(dtype=torch.float64)
    return Raw(((images + 1.0) * 8.0).round().to(torch.uint8), labels, tuple("0123456789"), levels=17)


def _read_path(path: Path, split: str | None, size: tuple[int, int] | None, gray: bool | None) -> Raw:
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path} ({path.resolve()})")
    files = find_idx(path, split)
    if files is None and path.is_dir():
        return read_folder(path, split, size, gray)
    if gray is not None:
        raise ValueError(f"gray = {gray}: only folders of images are converted, {path} is kept as it is; leave it out")
    if files is not None:
        images = read_idx(files.images, dims=3)[:, None]
        labels = None if files.labels is None else read_idx(files.labels, dims=1).long()
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{files.images} has {len(images)} images and {files.labels} {len(labels)} labels")
        names = None if labels is None or not len(labels) else tuple(map(str, range(int(labels.max()) + 1)))
        raw = Raw(images, labels, names, own_split=files.own_split)
    elif path.suffix.lower() in SUFFIXES:
        raw = read_arrays(path, split)
    else:
        raise ValueError(
            f"{path} is no data that can be read: pass MNIST's idx files or their folder, an .npz or .npy file, or a folder "
            "of images"
        )
    if raw.values.numel() == 0:
        raise ValueError(f"{path} is empty: its array has shape {tuple(raw.values.shape)}")
    if size is None:
        return raw
    if raw.values.is_floating_point():
        raise ValueError(f"size = {size}: {path} holds floats, and only uint8 images are resized; leave it out")
    return raw._replace(values=resized_rows(raw.values, size))


def _height_and_width(size: Size) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(f"size = {size!r} must be a number of pixels, or (height, width), each at least 1")
    return sides[0], sides[1]


def _part(raw: Raw, split: str | None, holdout: float | None, seed: int) -> Raw:
    """The split that was asked for."""
    if holdout is None and seed:
        raise ValueError(f"holdout_seed = {seed}: nothing is held out; pass holdout=0.1 too to keep a tenth for tests")
    if raw.own_split:
        if holdout is not None:
            raise ValueError(f"holdout = {holdout}: this data has a test split of its own; pass split='test' for it")
        return raw
    if holdout is None:
        if split is not None:
            raise ValueError(
                f"split = {split!r}: this data comes in one piece; pass holdout=0.1 too to keep a tenth for tests"
            )
        return raw
    if split not in (None, "train", "test"):
        raise ValueError(f"split = {split!r} must be 'train' or 'test' with a holdout")
    dealt = order.split(len(raw.values), holdout, seed)
    for part, rows in zip(("train", "test"), dealt, strict=True):
        if len(rows) < 2:
            raise ValueError(
                f"holdout = {holdout}: of {len(raw.values)} rows it leaves {len(rows)} to the {part} split; each needs at "
                "least 2"
            )
    return raw.rows(dealt.holdout if split == "test" else dealt.train)


def _subset(raw: Raw, n: int | None, n_per_class: int | None, seed: int, classes: list[int | str] | None) -> Raw:
    rows = len(raw.values)
    if n_per_class is not None:
        return raw.rows(_of_each_class(raw, n_per_class, seed, classes))
    if n is None:
        return raw
    if not 1 <= n <= rows:
        raise ValueError(f"n = {n}: there are {rows} examples; pass 1 to {rows}, or leave it out for all")
    return raw.rows(order.pick(rows, n, seed))


def _of_classes(raw: Raw, wanted: list[int | str] | None) -> Raw:
    if wanted is None:
        return raw
    numbers, classes = _numbers(raw, wanted), torch.as_tensor(raw.classes)
    kept = torch.isin(classes, torch.tensor(numbers)).nonzero()[:, 0]
    if not len(kept):
        raise ValueError(f"classes = {wanted!r}: there is no example of them")
    return raw.rows(kept)


def _numbers(raw: Raw, wanted: list[int | str]) -> list[int]:
    """Of the classes that are named by number or name."""
    if raw.classes is None or raw.names is None:
        raise ValueError(f"classes = {wanted!r}: this data has no classes; leave it out")
    if not wanted:
        raise ValueError("classes = [] leaves nothing; name at least one, or leave it out for all")
    numbers = {name: k for k, name in enumerate(raw.names)}
    found = [one if type(one) is int else numbers.get(str(one), -1) for one in wanted]
    for one, k in zip(wanted, found, strict=True):
        if not 0 <= k < len(raw.names):
            raise ValueError(f"classes = {wanted!r}: there is no class {one!r}; {nearest(one, raw.names)}")
    return found


def _of_each_class(raw: Raw, count: int, seed: int, wanted: list[int | str] | None) -> torch.Tensor:
    """Row numbers, ascending: of each class the first `count` rows of a shuffled pass."""
    if raw.classes is None or raw.names is None:
        raise ValueError(f"n_per_class = {count}: this data has no classes; pass n")
    shuffled = order.shuffled(len(raw.values), seed, 0, len(raw.values))
    parts = []
    for k in range(len(raw.names)) if wanted is None else sorted({*_numbers(raw, wanted)}):
        name, members = raw.names[k], shuffled[raw.classes[shuffled] == k]
        if not 1 <= count <= len(members):
            raise ValueError(f"n_per_class = {count}: class {name!r} has {len(members)} examples")
        parts.append(members[:count])
    return torch.cat(parts).sort().values
