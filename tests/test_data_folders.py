"""Folders of images: their order, classes and parts, colours and sizes, and what is refused by name."""

import weakref

import numpy as np
import pytest
import torch

from halfbridge.training import data
from halfbridge.training.data import folder

PIL = pytest.importorskip("PIL.Image")

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, size=(12, 5, 4), dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.fromarray(array).save(path, **options)


def same_pixels(loaded, expected):
    """As read, and mapped to [-1, 1] with the ends exact."""
    assert torch.equal(loaded.pixels, torch.as_tensor(expected))
    assert torch.equal(loaded.examples, (loaded.pixels.double() / 127.5 - 1).float())
    assert (loaded.levels, loaded.range) == (256, (-1.0, 1.0))


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
