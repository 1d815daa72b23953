"""Data read from files: what was written comes back, and what is damaged, mixed or unsafe is refused by name."""

import gzip
import pickle
import struct
import weakref

import numpy as np
import pytest
import torch

from halfbridge.training import data
from halfbridge.training.data import folder

PIL = pytest.importorskip("PIL.Image")

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, size=(12, 5, 4), dtype=np.uint8)
PIXELS[0, 0, :2] = 0, 255
LABELS = np.arange(12, dtype=np.uint8) % 10


def idx(array, kind=8):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, suffix=".gz", parts=("train", "t10k")):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    for k, part in enumerate(parts):
        rows = slice(0, 8) if k == 0 else slice(8, 12)
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(PIXELS[rows])))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(LABELS[rows])))
    return folder


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.fromarray(array).save(path, **options)


def same_pixels(loaded, expected):
    """As read, and mapped to [-1, 1] with the ends exact."""
    assert torch.equal(loaded.pixels, torch.as_tensor(expected))
    assert torch.equal(loaded.examples, (loaded.pixels.double() / 127.5 - 1).float())
    assert (loaded.levels, loaded.range) == (256, (-1.0, 1.0))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
def test_idx_files_come_back_as_written(tmp_path, suffix, place):
    write_mnist(tmp_path / place, suffix)
    train, test = data.load(tmp_path), data.load(str(tmp_path), split="test")
    same_pixels(train, PIXELS[:8, None])
    same_pixels(test, PIXELS[8:, None])
    assert train.classes.tolist() == LABELS[:8].tolist()
    assert test.classes.tolist() == LABELS[8:].tolist()
    again = data.load(**test.config)
    assert torch.equal(again.examples, test.examples)


def test_one_idx_file_is_read_with_the_labels_beside_it_or_without(tmp_path):
    file = write_mnist(tmp_path, "") / "t10k-images-idx3-ubyte"
    assert data.load(file).classes.tolist() == LABELS[8:].tolist()
    (tmp_path / "t10k-labels-idx1-ubyte").rename(tmp_path / "away")
    alone = data.load(file)
    assert (alone.classes, alone.names, alone.n_classes) == (None, None, 0)
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte has no labels beside it"):
        data.load(tmp_path, split="test")


def test_a_folder_with_the_training_part_alone_comes_in_one_piece(tmp_path):
    write_mnist(tmp_path, parts=("train",))
    assert len(data.load(tmp_path)) == 8
    assert len(data.load(tmp_path, holdout=0.25, split="test")) == 2
    with pytest.raises(ValueError, match="comes in one piece"):
        data.load(tmp_path, split="test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-7], r"says that it holds 8 x 5 x 4 = 160 values but has 153: it is cut short"),
        (lambda b: b + b"\0", "but has 161: it is too long"),
        (lambda b: b"\0\0\x0d\3" + b[4:], "begins with the bytes 00 00 0d 03, not 00 00 08 03"),
        (lambda b: b"\0\0\x08\1" + b[4:], "not 00 00 08 03: no idx file of unsigned bytes in 3 dimensions"),
        (lambda b: b[:9], "no idx file"),
        (lambda b: b"", "no idx file"),
        (lambda b: idx(PIXELS[:0]), "is empty"),
        (lambda b: idx(PIXELS[:7]), "has 7 images and .* 8 labels"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, damage, message):
    file = write_mnist(tmp_path, "") / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    if message == "is empty":
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:0]))
    with pytest.raises(ValueError, match=message) as caught:
        data.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-12], lambda b: b[:40] + b"\xff" * 20 + b[60:], lambda b: b"none" + b])
def test_damaged_gzip_is_named(tmp_path, damage):
    file = write_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not whole gzip data"):
        data.load(tmp_path)


def test_idx_folders_refuse_what_they_have_not(tmp_path):
    write_mnist(tmp_path / "both")
    with pytest.raises(ValueError, match=r"split = 'val'.*'train' and 'test'"):
        data.load(tmp_path / "both", split="val")
    with pytest.raises(ValueError, match="has a test split of its own"):
        data.load(tmp_path / "both", holdout=0.1)
    with pytest.raises(ValueError, match="gray = True: only folders of images"):
        data.load(tmp_path / "both", gray=True)
    write_mnist(tmp_path / "odd", parts=("t10k",))
    with pytest.raises(FileNotFoundError, match=r"odd has t10k-images-idx3-ubyte\.gz but no train"):
        data.load(tmp_path / "odd")


def test_keras_npz_comes_back_in_its_two_parts(tmp_path):
    file = tmp_path / "mnist.npz"
    np.savez(file, x_train=PIXELS[:8], y_train=LABELS[:8], x_test=PIXELS[8:], y_test=LABELS[8:])
    same_pixels(data.load(file), PIXELS[:8, None])
    test = data.load(file, split="test")
    same_pixels(test, PIXELS[8:, None])
    assert test.classes.tolist() == LABELS[8:].tolist()
    assert data.load(file).n_classes == test.n_classes == 10  # 9 is in the test part, 0 .. 7 in the other
    with pytest.raises(ValueError, match="split = 'val'"):
        data.load(file, split="val")


@pytest.mark.parametrize(
    "layout", [lambda x: x, lambda x: x[..., None], lambda x: x[:, None], lambda x: np.stack([x, x // 2, x // 3], -1)]
)
def test_arrays_of_images_may_have_their_channels_on_either_side(tmp_path, layout):
    array = layout(PIXELS)
    np.savez_compressed(tmp_path / "a.npz", images=array, labels=LABELS.astype(np.int32))
    loaded = data.load(tmp_path / "a.npz")
    rgb = array.shape[-1] == 3
    same_pixels(loaded, np.stack([PIXELS, PIXELS // 2, PIXELS // 3], 1) if rgb else PIXELS[:, None])
    assert loaded.classes.tolist() == LABELS.tolist()


def test_a_single_array_is_read_under_any_name_and_floats_are_not_scaled(tmp_path):
    np.save(tmp_path / "points.npy", np.array([[0.0, 7.0], [250.0, -3.0]]))
    np.savez(tmp_path / "one.npz", whatever=PIXELS)
    points = data.load(tmp_path / "points.npy")
    assert points.examples.tolist() == [[0.0, 7.0], [250.0, -3.0]]
    assert (points.examples.dtype, points.levels, points.range, points.pixels) == (torch.float32, None, None, None)
    same_pixels(data.load(tmp_path / "one.npz"), PIXELS[:, None])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": PIXELS, "b": LABELS}, "holds a, b; name its arrays x_train"),
        ({"images": PIXELS, "labels": LABELS[:5]}, r"labels has shape \(5,\).*pass 12 integers"),
        ({"images": PIXELS, "labels": LABELS / 2}, "dtype float64; pass 12 integers"),
        ({"images": PIXELS, "labels": LABELS.astype(int) - 1}, "integers from 0"),
        ({"images": PIXELS.astype(np.int32)}, "dtype int32; pass uint8 images"),
        ({"images": PIXELS[0]}, r"shape \(5, 4\) and dtype uint8; pass"),
        ({"images": np.zeros((2, 3, 4, 3), np.uint8)}, "both axis 1 and axis 3"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, "neither axis 1 nor axis 3"),
        ({"images": np.array([[0.0, np.nan]] * 2)}, "2 rows that are not finite, the first is row 0"),
        ({"images": np.zeros(4)}, r"shape \(4,\) and dtype float64; floats are examples"),
        ({"images": PIXELS[:0]}, "is empty"),
        ({"images": PIXELS * 0}, "is constant"),
    ],
)
def test_arrays_that_are_no_data_are_refused_by_name(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "bad.npz")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["objects.npz", "objects.npy", "pickle.npz", "pickle.npy"])
def test_pickles_are_never_loaded(tmp_path, name):
    file = tmp_path / name
    objects = np.array([Bomb(), Bomb()], dtype=object)
    if name.startswith("pickle"):
        file.write_bytes(pickle.dumps(Bomb()))
    else:
        (np.savez if name.endswith("z") else np.save)(file, objects)
    with pytest.raises(ValueError, match=f"{name} holds pickled Python objects.*never loaded"):
        data.load(file)


@pytest.mark.parametrize("cut", [10, 200])
def test_damaged_npz_is_named(tmp_path, cut):
    np.savez(tmp_path / "bad.npz", images=PIXELS)
    whole = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[:-cut])
    with pytest.raises(ValueError, match=r"bad\.npz cannot be read as numpy arrays"):
        data.load(tmp_path / "bad.npz")


def test_floats_are_not_resized_or_dequantised(tmp_path):
    np.save(tmp_path / "x.npy", rng.normal(size=(4, 1, 8, 8)))
    with pytest.raises(ValueError, match="holds floats, and only uint8 images are resized"):
        data.load(tmp_path / "x.npy", size=4)
    with pytest.raises(ValueError, match=r"dequantise = True: data 'x\.npy' has no grey levels.*leave it out"):
        data.load(tmp_path / "x.npy", dequantise=True)


def test_sub_folders_are_classes_and_paths_are_sorted(tmp_path):
    for k, name in enumerate(["b/2.png", "b/10.png", "a/x.png", "a/deep/y.PNG", "c/z.png"]):
        save(tmp_path / name, PIXELS[k])
    for ignored in ("a/.hidden.png", ".git/x.png", "b/notes.txt", "README.md"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_bytes(b"no image")
    loaded = data.load(tmp_path)
    same_pixels(loaded, PIXELS[[3, 2, 1, 0, 4], None])
    assert loaded.classes.tolist() == [0, 0, 1, 1, 2]
    assert loaded.names == ("a", "b", "c")
    assert torch.equal(data.load(**loaded.config).examples, loaded.examples)


def test_images_alone_have_no_classes_and_splits_are_found(tmp_path):
    for k in range(4):
        save(tmp_path / f"flat/{k}.png", PIXELS[k])
    for part, k in (("train", 0), ("train", 1), ("test", 2), ("test", 3)):
        save(tmp_path / f"parts/{part}/{'ab'[k % 2]}/{k}.png", PIXELS[k])
    flat = data.load(tmp_path / "flat")
    assert (flat.classes, flat.names, len(flat)) == (None, None, 4)
    same_pixels(data.load(tmp_path / "parts"), PIXELS[:2, None])
    same_pixels(data.load(tmp_path / "parts", split="test"), PIXELS[2:4, None])
    assert data.load(tmp_path / "parts").names == ("a", "b")
    with pytest.raises(ValueError, match=r"split = 'val': .*parts has train, test"):
        data.load(tmp_path / "parts", split="val")
    with pytest.raises(ValueError, match="n_per_class = 1: this data has no classes"):
        data.load(tmp_path / "flat", n_per_class=1)


def test_images_become_rgb_unless_all_are_gray(tmp_path):
    colour = np.stack([PIXELS[0], PIXELS[1], PIXELS[2]], -1)
    save(tmp_path / "0.png", PIXELS[3])
    save(tmp_path / "1.png", PIXELS[4] // 128 * 255 > 0)  # one bit a pixel
    same_pixels(data.load(tmp_path), np.stack([PIXELS[3], PIXELS[4] // 128 * 255])[:, None])
    same_pixels(data.load(tmp_path, gray=False), np.stack([PIXELS[3], PIXELS[4] // 128 * 255])[:, None].repeat(3, 1))
    save(tmp_path / "2.png", colour)
    save(tmp_path / "3.png", np.concatenate([colour, np.full((5, 4, 1), 255, np.uint8)], -1))  # opaque
    mixed = data.load(tmp_path)
    assert mixed.shape == (3, 5, 4)
    same_pixels(data.load(tmp_path, n=4), mixed.pixels)
    assert torch.equal(mixed.pixels[2], torch.as_tensor(colour).permute(2, 0, 1))
    assert torch.equal(mixed.pixels[3], mixed.pixels[2])
    luma = data.load(tmp_path, gray=True).pixels[2, 0].double()
    red, green, blue = torch.as_tensor(colour).double().unbind(-1)
    torch.testing.assert_close(luma, 0.299 * red + 0.587 * green + 0.114 * blue, rtol=0, atol=1.0)


def test_images_are_read_one_at_a_time(tmp_path, monkeypatch):
    """Those that came before are gone, but for the first, whose size the others must have; the first in colour comes late."""
    for k in range(12):
        save(tmp_path / f"{k:02}.png", PIXELS[k] if k < 8 else np.stack([PIXELS[k]] * 3, -1))
    seen, alive = [], []

    def reading(file, size, read=folder._read):
        image = read(file, size)
        seen.append(weakref.ref(image))
        alive.append(sum(reference() is not None for reference in seen))
        return image

    monkeypatch.setattr(folder, "_read", reading)
    same_pixels(data.load(tmp_path), PIXELS[:, None].repeat(3, 1))
    assert max(alive) <= 3  # the first, the one before and this one


@pytest.mark.parametrize("link", ["a/up", "a/deep/top", "b", "c/out"])
def test_links_by_which_a_folder_would_be_read_twice_are_refused(tmp_path, link):
    save(tmp_path / "im/a/x.png", PIXELS[0])
    save(tmp_path / "im/a/deep/y.png", PIXELS[1])
    target = {"a/up": "im/a", "a/deep/top": "im", "b": "im/a/deep", "c/out": "."}[link]
    place = tmp_path / "im" / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / target)
    with pytest.raises(ValueError, match=r"leads by a link to .*im.*, whose images are read already; remove the link"):
        data.load(tmp_path / "im")


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    save(tmp_path / "elsewhere/x.png", PIXELS[0])
    save(tmp_path / "im/a/x.png", PIXELS[1])
    (tmp_path / "im/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "im/a/copy.png").symlink_to("x.png")
    same_pixels(data.load(tmp_path / "im"), PIXELS[[1, 1, 0], None])


def test_images_of_mixed_sizes_are_refused_naming_two_and_resized_on_demand(tmp_path):
    save(tmp_path / "a.png", PIXELS[0])
    save(tmp_path / "b.png", PIXELS[1])
    save(tmp_path / "c.png", np.full((6, 12), 77, np.uint8))
    with pytest.raises(
        ValueError, match=r"mixed sizes: .*a\.png is 4x5 and .*c\.png is 12x6 \(width x height\); pass size"
    ):
        data.load(tmp_path)
    resized = data.load(tmp_path, size=(5, 4))
    same_pixels(resized, np.stack([PIXELS[0], PIXELS[1], np.full((5, 4), 77, np.uint8)])[:, None])
    assert resized.config["size"] == [5, 4]
    assert torch.equal(data.load(**resized.config).examples, resized.examples)
    assert data.load(tmp_path, size=8).shape == (1, 8, 8)


def test_resizing_cuts_the_middle_and_does_not_alias(tmp_path):
    """A wide image of stripes one pixel wide, 0 and 200, between black borders: reduced by 8 it is even, 100."""
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, 32:96] = 200 * (np.arange(64) % 2)
    np.savez(tmp_path / "x.npz", images=np.stack([stripes, stripes // 2]))
    small = data.load(tmp_path / "x.npz", size=8)
    assert small.shape == (1, 8, 8)
    assert (small.pixels[0, 0, :, 2:6].int() - 100).abs().max() <= 1  # a sampled stripe is 0 or 200
    assert (small.pixels[0].int() - 100).abs().max() <= 15  # half a stripe at the edge; a border cut in is black
    rgb = np.stack([stripes, stripes // 2, stripes // 4], -1)
    np.savez(tmp_path / "rgb.npz", images=np.stack([rgb, rgb // 2]))
    assert torch.equal(data.load(tmp_path / "rgb.npz", size=8).pixels[:, :1], small.pixels)


def test_a_picture_taken_with_a_turned_camera_stands_upright(tmp_path):
    exif = PIL.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    save(tmp_path / "a.png", PIXELS[0], exif=exif)
    save(tmp_path / "b.png", np.rot90(PIXELS[1], -1).copy())
    same_pixels(data.load(tmp_path), np.rot90(PIXELS[:2], -1, axes=(1, 2)).copy()[:, None])


def folder_of(kind, path):
    save(path / "a/fine.png", PIXELS[0])
    if kind == "corrupt":
        whole = (path / "a/fine.png").read_bytes()
        (path / "a/broken.png").write_bytes(whole[: len(whole) // 2])
    elif kind == "no image":
        (path / "a/text.jpg").write_bytes(b"hello")
    elif kind == "16 bits":
        save(path / "a/deep.png", PIXELS[0].astype(np.uint16) * 257)
    elif kind == "transparent":
        save(path / "a/glass.png", np.concatenate([PIXELS[:1]] * 4).transpose(1, 2, 0).copy())
    elif kind == "both":
        save(path / "loose.png", PIXELS[0])
    elif kind == "empty class":
        (path / "b").mkdir()
    elif kind == "no train":
        (path / "a").rename(path / "test")
    elif kind == "none":
        (path / "a/fine.png").unlink()
        (path / "a").rmdir()
    elif kind == "one":
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("corrupt", r"broken\.png cannot be read as an image"),
        ("no image", r"text\.jpg cannot be read as an image"),
        ("16 bits", r"deep\.png has Pillow's mode 'I;16'"),
        ("transparent", r"glass\.png is not opaque"),
        ("both", r"has images \(loose\.png\) and sub-folders \(a\)"),
        ("empty class", "b has no images, and each sub-folder is a class"),
        ("no train", "has test and no train"),
        ("none", r"has no images \(\.bmp"),
        ("one", "constant: it is a single row"),
    ],
)
def test_folders_that_cannot_be_read_are_refused_by_name(tmp_path, kind, message):
    folder_of(kind, tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path)


@pytest.mark.parametrize("size", [0, (3,), (4, 0), 2.5, True])
def test_a_size_is_one_or_two_numbers_of_pixels(tmp_path, size):
    save(tmp_path / "a.png", PIXELS[0])
    with pytest.raises(ValueError, match=r"size = .* must be a number of pixels"):
        data.load(tmp_path, size=size)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.pt is no data that can be read"):
        data.load(tmp_path / "x.pt")


def test_a_path_with_a_known_name_is_reached_by_writing_it_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        save(tmp_path / f"digits/{k}.png", PIXELS[k])
        save(tmp_path / f"pictures/{k}.png", PIXELS[k])
    assert data.load("digits", n=5).shape == (1, 8, 8)
    same_pixels(data.load("./digits"), PIXELS[:2, None])
    loaded = data.load("pictures")
    assert loaded.name == "pictures"
    assert loaded.config["name_or_path"] == str(tmp_path.resolve() / "pictures")


def test_images_without_pillow_name_the_extra(tmp_path, monkeypatch):
    save(tmp_path / "a.png", PIXELS[0])
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"halfbridge\[images\]"):
        data.load(tmp_path)


def test_files_do_not_depend_on_the_default_device(tmp_path):
    write_mnist(tmp_path / "idx")
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    for k in range(3):
        save(tmp_path / f"png/{k}/x.png", PIXELS[k])
    paths = [tmp_path / "idx", tmp_path / "a.npz", tmp_path / "png"]
    expected = [data.load(path) for path in paths]
    with torch.device("meta"):
        got = [data.load(path) for path in paths]
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a.examples, b.examples)
        assert torch.equal(a.classes, b.classes)
