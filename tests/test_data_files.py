"""Data read from files: what was written comes back, and what is damaged, mixed or unsafe is refused by name."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from halfbridge.training import data

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


def test_rows_for_a_trained_model_are_read_as_examples_are_were_there_one(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS[:1])
    np.savez(tmp_path / "b.npz", samples=np.ones((2, 3), dtype=np.float32), origins=np.zeros((2, 3)))
    whole = tmp_path / "c.npz"
    np.savez(whole, images=PIXELS)
    assert torch.equal(data.rows(tmp_path / "a.npz"), data.load(whole).examples[:1])
    assert torch.equal(data.rows(tmp_path / "b.npz"), torch.ones(2, 3))
    np.save(tmp_path / "bad.npy", np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="must be finite, but 1 of its 2 numbers"):
        data.rows(tmp_path / "bad.npy")
