"""The data sets that packages ship or seeds make."""

import json
import math

import numpy as np
import pytest
import torch
from largest_tensor import NewMemory

import halfbridge as hb
from halfbridge.training import data
from halfbridge.training.data import dataset, order
from halfbridge.training.data.points import labelled_checkerboard, labelled_moons, labelled_ring
from halfbridge.training.data.raw import Raw


def test_digits_are_the_1797_images_between_minus_one_and_one():
    pytest.importorskip("sklearn")
    images, labels = data.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min().item(), images.max().item()) == (-1.0, 1.0)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.dtype == torch.float32


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"halfbridge\[demo\]"):
        data.digits()


def test_noiseless_moons_lie_on_their_two_half_circles():
    points = data.moons(400, seed=3, noise=0.0, dtype=torch.float64)
    upper = (points - torch.tensor([-0.5, -0.25])).norm(dim=1).sub(1.0).abs() < 1e-12
    lower = (points - torch.tensor([0.5, 0.25])).norm(dim=1).sub(1.0).abs() < 1e-12
    assert bool((upper | lower).all())
    assert abs(int(upper.sum()) - 200) < 5.5 * math.sqrt(400 * 0.25)
    assert bool((points[upper, 1] >= -0.25).all())
    assert bool((points[lower, 1] <= 0.25).all())
    assert torch.equal(points, data.moons(400, seed=3, noise=0.0, dtype=torch.float64))


def test_the_ring_has_the_covariance_of_its_circle():
    law = data.ring(6, radius=3.0, std=0.5)
    torch.testing.assert_close(law.mean, torch.zeros(2, dtype=torch.float64), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(law.cov, (9.0 / 2 + 0.25) * torch.eye(2, dtype=torch.float64), rtol=1e-13, atol=1e-13)


def test_the_points_of_moons_and_of_the_ring_are_what_they_were_without_labels():
    labelled = data.load("moons", n=300, seed=4)
    assert torch.equal(labelled.examples, data.moons(300, 4))
    ring = data.load("8gaussians", n=300, seed=4)
    assert torch.equal(ring.examples, data.ring().sample(300, 4).float())


def test_moons_are_labelled_by_their_half_circle():
    points, labels = labelled_moons(500, seed=1, noise=0.0, dtype=torch.float64)
    centres = torch.tensor([[-0.5, -0.25], [0.5, 0.25]])[labels]
    torch.testing.assert_close((points - centres).norm(dim=1), torch.ones(500, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((points - centres)[:, 1] * (1 - 2 * labels) >= -1e-12).all()


def test_points_of_the_ring_are_labelled_by_the_component_they_were_drawn_from():
    """x - m_k over 0.2 is the normal of draw 0, exactly, for the right k and no other."""
    points, labels = labelled_ring(400, seed=2, dtype=torch.float64)
    z = hb.kernels.normal((400, 2), 2, 0, dtype=torch.float64)
    angle = labels * math.pi / 4
    means = 2.0 * torch.stack([angle.cos(), angle.sin()], dim=1)
    torch.testing.assert_close(points, means.double() + 0.2 * z, rtol=0, atol=1e-6)
    expected, se = 400 / 8, math.sqrt(400 * (1 / 8) * (7 / 8))
    assert ((labels.bincount(minlength=8) - expected).abs() < 5 * se).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_point_of_the_checkerboard_lies_inside_the_black_square_of_its_label(dtype):
    points, labels = labelled_checkerboard(20000, seed=0, dtype=dtype)
    column, row = (points.floor() + 2).long().unbind(1)
    assert (points.floor() != points).all()
    assert ((column + row) % 2 == 0).all()
    assert torch.equal(labels, 2 * column + row // 2)
    assert (points.abs() < 2).all()
    assert ((labels.bincount(minlength=8) - 2500).abs() < 5 * math.sqrt(20000 * 7 / 64)).all()
    assert torch.equal(points, data.checkerboard(20000, 0, dtype=dtype))


def test_points_are_uniform_within_a_square_of_the_checkerboard():
    """Kolmogorov-Smirnov in each coordinate: sqrt(n) D passes 2.8 with probability 2 exp(-2 2.8^2) = 3e-7."""
    inside = data.checkerboard(20000, 3, dtype=torch.float64) % 1.0
    for values in inside.sort(dim=0).values.T:
        place = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
        assert (values - place).abs().max() * math.sqrt(20000) < 2.8
    assert abs(torch.corrcoef(inside.T)[0, 1]) < 5 / math.sqrt(20000)


def checkerboard_density():
    """Midpoints and weights of a product rule of 64 cells a square, exact for moments up to 1 and 1e-5 for second ones."""
    grid = (torch.arange(256, dtype=torch.float64) + 0.5) / 64 - 2
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    black = (x.floor() + y.floor()) % 2 == 0
    points = torch.stack([x[black], y[black]], dim=1)
    return points, torch.full((len(points),), 1.0 / len(points), dtype=torch.float64)


def spiral_density():
    """Gauss-Legendre nodes of the spiral's angle; the noise of 0.2 is added to the covariance."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    angle = torch.as_tensor((nodes + 2) * 1.5 * math.pi)
    points = (angle / 5)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return points, torch.as_tensor(weights / 2)


@pytest.mark.parametrize(
    ("draw", "rule", "noise"), [(data.checkerboard, checkerboard_density, 0.0), (data.swiss_roll, spiral_density, 0.2)]
)
def test_means_and_covariances_are_those_of_the_law(draw, rule, noise):
    """Within 5 standard errors of 40000 draws; those of the covariance from the sample's own fourth moments."""
    n = 40000
    nodes, weights = rule()
    mean = weights @ nodes
    cov = (nodes - mean).T @ (weights[:, None] * (nodes - mean)) + noise**2 * torch.eye(2)
    x = draw(n, 6, dtype=torch.float64) - mean
    products = torch.stack([x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1]], dim=1)
    assert (x.mean(0).abs() < 5 * x.std(0) / math.sqrt(n)).all()
    expected = torch.stack([cov[0, 0], cov[1, 1], cov[0, 1]])
    assert ((products.mean(0) - expected).abs() < 5 * products.std(0) / math.sqrt(n)).all()
    if draw is data.checkerboard:
        torch.testing.assert_close(cov, torch.tensor([[4 / 3, 1 / 4], [1 / 4, 4 / 3]]).double(), rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(mean, torch.tensor([2 / 5, 2 / (15 * math.pi)]).double(), rtol=1e-6, atol=1e-6)


def test_a_noiseless_swiss_roll_lies_on_its_spiral():
    points = data.swiss_roll(1000, 0, noise=0.0, dtype=torch.float64)
    angle = 5 * points.norm(dim=1)
    assert ((angle >= 1.5 * math.pi - 1e-12) & (angle <= 4.5 * math.pi + 1e-12)).all()
    spiral = points.norm(dim=1)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    torch.testing.assert_close(points, spiral, rtol=0, atol=1e-12)
    middle = (angle < 3 * math.pi).sum().item()
    assert abs(middle - 500) < 5 * math.sqrt(1000 / 4)


def test_the_noise_of_the_swiss_roll_is_a_fifth():
    """Against the same seed without noise: 8000 normals of standard deviation 0.2, within 5 standard errors."""
    z = data.swiss_roll(4000, 2, dtype=torch.float64) - data.swiss_roll(4000, 2, noise=0.0, dtype=torch.float64)
    assert abs(z.square().mean().sqrt().item() - 0.2) < 5 * 0.2 / math.sqrt(2 * 8000)


@pytest.mark.parametrize("draw", [data.moons, data.checkerboard, data.swiss_roll, labelled_ring])
def test_laws_need_at_least_one_point(draw):
    with pytest.raises(ValueError, match="n = 0 must be at least 1"):
        draw(0, 0)


@pytest.mark.parametrize(
    "spelling", ["moons", "Half-Moons", "half_moons", "ring", "8 Gaussians", "swiss-roll", "digits"]
)
def test_names_are_known_in_their_usual_spellings_and_configs_load_the_same_again(spelling):
    loaded = data.load(spelling, n=20, seed=7)
    again = data.load(**json.loads(json.dumps(loaded.config)))
    assert torch.equal(loaded.examples, again.examples)
    assert again.config == loaded.config
    assert loaded.name in data.NAMES
    assert len(loaded) == 20
    if loaded.classes is not None:
        assert torch.equal(loaded.classes, again.classes)
        assert loaded.n_classes == len(loaded.names)


def test_loaded_digits_are_the_digits_and_know_their_grey_levels():
    loaded = data.load("digits")
    assert torch.equal(loaded.examples, data.digits().images)
    assert torch.equal(loaded.classes, data.digits().labels)
    assert torch.equal(loaded.pixels, ((data.digits().images + 1) * 8).byte())
    assert (loaded.levels, loaded.range, loaded.n_classes, loaded.shape) == (17, (-1.0, 1.0), 10, (1, 8, 8))


def test_a_level_lies_in_its_bin_and_shrunk_by_one_level_in_the_middle_of_it():
    """The documented relation of the two mappings, and that dequantised pixels fall into the bins of their levels."""
    loaded = data.load("digits", n=200, seed=1)
    k, points = loaded.pixels.double(), loaded.examples.double()
    torch.testing.assert_close(points * (1 - 1 / 17), -1 + 2 * (k + 0.5) / 17, rtol=0, atol=1e-7)
    spread = loaded.dequantised(5, dtype=torch.float64)
    assert torch.equal(((spread + 1) / 2 * 17).floor(), k)
    assert torch.equal(spread, hb.dequantise(loaded.pixels, 5, levels=17, dtype=torch.float64))
    noisy = data.load("digits", n=200, seed=1, dequantise=True)
    assert torch.equal(noisy.examples, loaded.dequantised(1))
    assert torch.equal(noisy.pixels, loaded.pixels)
    assert noisy.config == {**loaded.config, "dequantise": True}


def test_subsets_are_random_rows_of_the_whole_in_its_order():
    whole, part = data.load("digits"), data.load("digits", n=100, seed=3)
    rows = order.pick(1797, 100, 3)
    assert torch.equal(part.pixels, whole.pixels[rows])
    assert torch.equal(part.classes, whole.classes[rows])
    assert not torch.equal(part.pixels, data.load("digits", n=100, seed=4).pixels)


def test_classes_keep_their_numbers_and_names_and_leave_the_others_out():
    whole = data.load("digits")
    some = data.load("digits", classes=[8, "3"])
    assert torch.equal(some.pixels, whole.pixels[(whole.classes == 3) | (whole.classes == 8)])
    assert set(some.classes.tolist()) == {3, 8}
    assert (some.names, some.config["classes"]) == (whole.names, [8, "3"])
    assert torch.equal(data.load(**some.config).pixels, some.pixels)
    for subset in ({"n": 20}, {"n_per_class": 10}, {"n_per_class": 10, "holdout": 0.1}):
        few = data.load("digits", classes=[3, 8], **subset)
        assert len(few) == 20
        assert set(few.classes.tolist()) == {3, 8}
    held, kept = (data.load("digits", classes=[3], holdout=0.2, split=split) for split in ("test", "train"))
    assert len(held) + len(kept) == int((whole.classes == 3).sum())
    whole_test = data.load("digits", holdout=0.2, split="test")
    assert torch.equal(held.pixels, whole_test.pixels[whole_test.classes == 3])


def test_n_per_class_takes_as_many_of_each_class():
    few = data.load("digits", n_per_class=10, seed=2)
    assert few.classes.bincount().tolist() == [10] * 10
    assert len(few.pixels.flatten(1).unique(dim=0)) == 100  # no row twice
    assert not torch.equal(few.pixels, data.load("digits", n_per_class=10, seed=3).pixels)


def test_a_holdout_and_its_training_rows_share_nothing_whatever_n():
    train = data.load("digits", holdout=0.2, seed=5)
    test = data.load("digits", holdout=0.2, seed=5, split="test")
    assert (len(train), len(test)) == (1797 - 359, 359)
    both = torch.cat([train.pixels, test.pixels]).flatten(1)
    assert torch.equal(both.unique(dim=0), data.load("digits").pixels.flatten(1).unique(dim=0))
    assert len(both.unique(dim=0)) == 1797
    part = data.load("digits", holdout=0.2, seed=5, n=50).pixels.flatten(1)
    assert len(torch.cat([part, test.pixels.flatten(1)]).unique(dim=0)) == 50 + 359


def test_another_seed_never_trains_on_a_row_held_out():
    def rows(**arguments):
        return {tuple(row) for row in data.load("digits", holdout=0.1, **arguments).pixels.flatten(1).tolist()}

    test = rows(split="test", seed=0)
    assert rows(split="test", seed=1) == test
    for subset in ({}, {"n": 300}, {"n_per_class": 30}):
        assert not test & rows(seed=1, **subset)
    assert test != rows(split="test", holdout_seed=1)
    assert not rows(split="test", holdout_seed=1) & rows(holdout_seed=1, seed=2)
    config = data.load("digits", holdout=0.1, holdout_seed=1, split="test", seed=2).config
    assert rows(**{k: v for k, v in config.items() if k not in ("name_or_path", "holdout")}) == rows(
        split="test", holdout_seed=1
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("chekerboard", {}), ValueError, "no data 'chekerboard'.*did you mean 'checkerboard'"),
        (("moon", {}), ValueError, "did you mean 'moons'"),
        (("zebra", {}), ValueError, "there are 'digits', 'moons', '8gaussians', 'checkerboard', 'swiss_roll'"),
        (("mnist", {}), ValueError, "nothing is downloaded, pass the path of its files"),
        (("Half-Moon", {}), ValueError, "did you mean 'moons'"),
        (("", {}), ValueError, "name_or_path = '' is empty; pass a name or a path"),
        ((" ", {}), ValueError, "name_or_path = ' ' is empty"),
        (("no/such/place", {}), FileNotFoundError, "no file or folder no/such/place"),
        (("digits", {"n": 1798}), ValueError, "n = 1798: there are 1797 examples"),
        (("digits", {"n": 0}), ValueError, "n = 0: there are 1797"),
        (("digits", {"n": 1}), ValueError, "data 'digits' is constant: it is a single row; pass at least 2"),
        (("digits", {"n_per_class": 175}), ValueError, "class '8' has 174 examples"),
        (("digits", {"classes": [10]}), ValueError, "there is no class 10"),
        (("digits", {"classes": ["eight"]}), ValueError, "there is no class 'eight'; there are '0', '1'"),
        (("digits", {"classes": []}), ValueError, "name at least one, or leave it out for all"),
        (("swiss_roll", {"classes": [0]}), ValueError, "is a law in the plane"),
        (("digits", {"classes": [3], "n": 184}), ValueError, "there are 183 examples"),
        (("digits", {"n": 5, "n_per_class": 5}), ValueError, "n = 5 and n_per_class = 5 exclude"),
        (("digits", {"split": "test"}), ValueError, r"split = 'test': .*pass holdout=0\.1"),
        (("digits", {"split": "val", "holdout": 0.1}), ValueError, "split = 'val' must be 'train' or 'test'"),
        (("digits", {"holdout": 1.5}), ValueError, r"fraction = 1\.5"),
        (("digits", {"holdout": 1e-9}), ValueError, "holdout = 1e-09: of 1797 rows it leaves 1 to the test split"),
        (("digits", {"holdout": 1e-9, "split": "test"}), ValueError, "it leaves 1 to the test split; each needs"),
        (("digits", {"holdout": 0.9999}), ValueError, "it leaves 1 to the train split; each needs at least 2"),
        (("digits", {"holdout_seed": 3}), ValueError, "holdout_seed = 3: nothing is held out; pass holdout"),
        (("moons", {"holdout_seed": 3}), ValueError, "holdout_seed = 3: 'moons' is a law.*another seed"),
        (("digits", {"size": 16}), ValueError, "size = 16: the digits are"),
        (("digits", {"gray": True}), ValueError, "gray = True: the digits are"),
        (("moons", {"split": "test"}), ValueError, "split = 'test': 'moons' is a law.*another seed"),
        (("moons", {"n_per_class": 3}), ValueError, "n_per_class = 3: 'moons' is a law"),
        (("moons", {"dequantise": True}), ValueError, "dequantise = True: 'moons' is a law"),
    ],
)
def test_bad_requests_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        data.load(arguments[0], **arguments[1])


X = torch.tensor([[0.0, 1.0], [2.0, 3.0]])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"examples": X[:0]}, r"data has shape \(0, 2\)"),
        ({"examples": X[:, 0]}, r"shape \(2,\)"),
        ({"examples": X * 0}, "data is constant"),
        ({"examples": X / 0, "name": "mine"}, "data 'mine' has 2 rows that are not finite, the first is row 0"),
        ({"examples": X.int()}, "int32; scale it"),
        ({"classes": torch.tensor([0, 1, 1])}, r"classes has shape \(3,\)"),
        ({"classes": torch.tensor([0.0, 1.0])}, r"float32; pass int64 of shape \(2,\)"),
        ({"classes": torch.tensor([-1, 1])}, "from -1 to 1; number them from 0"),
        ({"classes": torch.tensor([0, 2]), "names": ("a", "b")}, "from 0 to 2; number them from 0 to 1"),
        ({"levels": 256}, "pixels, levels and range go together"),
        ({"levels": 9, "range": (-1.0, 1.0), "pixels": X.byte()[:1]}, r"pixels has shape \(1, 2\)"),
        ({"levels": 9, "range": (-1.0, 1.0), "pixels": X.byte() * 0}, "data 'data' is constant: its 2 rows"),
        ({"examples": X[:1], "name": "mine"}, "data 'mine' is constant: it is a single row; pass at least 2"),
    ],
)
def test_a_data_set_of_your_own_is_checked(members, message):
    with pytest.raises(ValueError, match=message):
        data.Dataset(**{"examples": X, **members})


def test_what_is_wrong_is_found_in_every_piece_of_the_data(monkeypatch):
    monkeypatch.setattr(dataset, "ELEMENTS", 6)
    rows = torch.zeros(10, 2)
    with pytest.raises(ValueError, match="constant: its 10 rows"):
        data.check_examples(rows)
    for k in range(10):
        rows[k] = 1.0
        data.check_examples(rows)
        rows[k, 1] = math.nan
        with pytest.raises(ValueError, match=f"has 1 rows that are not finite, the first is row {k}"):
            data.check_examples(rows)
        rows[k] = 0.0


@pytest.mark.parametrize("noise", [None, 3])
def test_images_are_converted_and_checked_without_a_second_copy(noise, monkeypatch):
    """4096 pixels at a time in float64 and int64, beside float32 examples of 1 MB; in pieces they are what they are whole."""
    pixels = torch.arange(2**18).reshape(64, 1, 64, 64).remainder(251).byte()
    whole = Raw(pixels).dataset("x", {}, noise)
    monkeypatch.setattr(dataset, "ELEMENTS", 4096)
    with NewMemory() as made:
        loaded = Raw(pixels).dataset("x", {}, noise)
    *pieces, largest = sorted(made.bytes)
    assert largest == loaded.examples.nbytes == 2**20
    assert pieces[-1] <= 4 * 8 * 4096  # Philox's four words side by side
    assert torch.equal(loaded.examples, whole.examples)
    expected = pixels.double() / 127.5 - 1 if noise is None else hb.dequantise(pixels, noise, dtype=torch.float64)
    assert torch.equal(loaded.examples, expected.float())


def test_a_data_set_of_your_own_has_what_networks_need():
    mine = data.Dataset(X, torch.tensor([0, 3]))
    assert (len(mine), mine.shape, mine.n_classes, mine.config) == (2, (2,), 4, None)
    assert data.Dataset(X).n_classes == 0
    with pytest.raises(ValueError, match="has no grey levels"):
        data.Dataset(X).dequantised(0)


def test_loading_does_not_depend_on_the_default_device():
    names = ["moons", "8gaussians", "checkerboard", "swiss_roll", "digits"]
    expected = [data.load(name, n=30, seed=2) for name in names]
    with torch.device("meta"):
        got = [data.load(name, n=30, seed=2) for name in names]
        spread = got[-1].dequantised(3)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a.examples, b.examples)
    assert torch.equal(spread, expected[-1].dequantised(3))
