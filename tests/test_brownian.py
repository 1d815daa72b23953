"""BrownianPath: the law is exact on any grid, every grid follows one path, and a sample depends on seed and index only."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from halfbridge.kernels import normal, philox
from halfbridge.solvers import brownian
from halfbridge.solvers.brownian import BrownianPath, key_of, nodes, place

LIKE = torch.empty(3, 2, dtype=torch.float64)
times = st.floats(-2000.0, 2000.0, allow_subnormal=False)


def coefficients(t, depth=16):
    """W(t) - W(0) as {(side, octave, draw): coefficient} of independent standard normals."""
    at = place(t)
    found = {(at.side, at.octave, draw): c for draw, c in nodes(at, depth)}
    for octave in range(brownian.FLOOR, at.octave):
        found[at.side, octave, 0] = math.sqrt(brownian.Place(at.side, octave, 0.0).width)
    return found


def in_one_cell(t, s, depth=16):
    a, b = place(t), place(s)
    (k, v), (m, w) = a.cell(depth), b.cell(depth)
    return (a.side, a.octave, k) == (b.side, b.octave, m) and v > 0.0 and w > 0.0


@settings(max_examples=300, deadline=None)
@given(t=times, s=times)
def test_the_covariance_of_two_times_is_that_of_brownian_motion(t, s):
    assume(not in_one_cell(t, s))
    a, b = coefficients(t), coefficients(s)
    covariance = sum(c * b[node] for node, c in a.items() if node in b)
    assert math.isclose(covariance, min(abs(t), abs(s)) if t * s > 0 else 0.0, rel_tol=1e-13, abs_tol=1e-300)
    assert math.isclose(sum(c * c for c in a.values()), abs(t), rel_tol=1e-13)


@pytest.mark.parametrize("depth", [1, 3, 31])
def test_the_covariance_holds_at_any_depth(depth):
    """Every pair of ends and quarters of cells near the start of an octave, and in the lowest octave."""
    for low, width in ((4.0, 4.0), (0.0, 2.0**-31)):
        grid = [low + width * 2.0**-depth * k / 4 for k in range(1, 8)]
        for t, s in itertools.product(grid, grid):
            if t == s or not in_one_cell(t, s, depth):
                a, b = coefficients(t, depth), coefficients(s, depth)
                assert math.isclose(sum(c * b.get(n, 0.0) for n, c in a.items()), min(t, s), rel_tol=1e-14)


def test_the_normals_of_a_path_are_independent_and_standard():
    """Increments over one grid through negative times, 0, octaves and the lowest octave; and the plain stream's draws."""
    grid = [-3.7, -1.0, -0.31, -1e-12, 0.0, 3e-11, 2e-4, 0.11, 0.113, 0.5, 0.93, 1.0, 2.2, 80.0, 1000.0]
    n, path = 20_000, BrownianPath(5)
    like = torch.empty(n, 1, dtype=torch.float64)
    z = [path(k + 1, t, s, like) for k, (t, s) in enumerate(itertools.pairwise(grid))]
    z += [normal((n, 1), 5, k, dtype=torch.float64) for k in range(4)]
    z = torch.cat(z, dim=1)
    m = z.shape[1]
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(n)  # 5 standard errors, here and below; 189 numbers in all
    errors = (z.T @ z / n - torch.eye(m)).abs() * math.sqrt(n) / (1.0 + torch.eye(m)).sqrt()
    assert float(errors.max()) < 5
    fourth = ((z**4).mean(0) - 3.0).abs() * math.sqrt(n / 96.0)
    assert float(fourth.max()) < 5


def test_a_path_is_levys_construction_written_out():
    """W(t) - W(2) for t in [2, 4) by displacing midpoints, the normals asked for one by one under the octave's key."""
    path, t, depth = BrownianPath(7, 11), 2.0 + 2.0 * 0.7251, 16
    key = key_of(7, 0, 1)

    def z(draw):
        return normal((3, 2), key, draw, 11, dtype=torch.float64)

    low, high, left, right, node = 2.0, 4.0, torch.zeros(3, 2), math.sqrt(2.0) * z(0), 1
    for _ in range(depth):
        middle = (left + right) / 2 + math.sqrt(high - low) / 2 * z(node)
        if t < (low + high) / 2:
            high, right, node = (low + high) / 2, middle, 2 * node
        else:
            low, left, node = (low + high) / 2, middle, 2 * node + 1
    v = (t - low) / (high - low)
    want = (1 - v) * left + v * right + math.sqrt(v * (1 - v) * (high - low)) * z(node)
    torch.testing.assert_close(path.increment(2.0, t, LIKE), want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("side", "octave"), [(0, 0), (1, 5), (0, -32)])
def test_an_octaves_key_is_two_words_of_the_documented_counter(side, octave):
    seed = 2**63 + 12345
    counter = [torch.tensor(w) for w in (octave % 2**32, side, 0x42726F77, 0x6E69616E)]
    low, high, *_ = philox.words(counter[0], counter[1], (counter[2], counter[3]), seed)
    assert key_of(seed, side, octave) == int(low) + int(high) * 2**32
    assert len({key_of(seed, a, b) for a in (0, 1) for b in range(-32, 40)}) == 144


@settings(max_examples=60, deadline=None)
@given(points=st.lists(times, min_size=3, max_size=6, unique=True), seed=st.integers(0, 2**64 - 1))
def test_increments_add_up_whatever_was_asked_before(points, seed):
    assume(not any(in_one_cell(t, s) for t, s in itertools.combinations(points, 2)))
    path = BrownianPath(seed)
    steps = [path.increment(t, s, LIKE) for t, s in itertools.pairwise(points)]
    whole = BrownianPath(seed).increment(points[0], points[-1], LIKE)
    torch.testing.assert_close(sum(steps), whole, rtol=0, atol=1e-14 * math.sqrt(max(abs(t) for t in points)) * 20)
    fresh = [BrownianPath(seed).increment(t, s, LIKE) for t, s in itertools.pairwise(points)]
    assert all(torch.equal(a, b) for a, b in zip(steps, fresh, strict=True))
    torch.testing.assert_close(path.increment(points[1], points[0], LIKE), -steps[0], rtol=1e-12, atol=1e-13)


def test_a_float32_run_follows_the_float64_path():
    for dtype, atol in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        for t, s in itertools.pairwise(np.linspace(0.0, 1.0, 30)):
            z = BrownianPath(2)(1, t, s, LIKE.to(dtype))
            assert z.dtype == dtype
            torch.testing.assert_close(z.double(), BrownianPath(2)(1, t, s, LIKE), rtol=0, atol=5 * atol)


def test_one_path_serves_states_of_any_shape_and_dtype_in_turn():
    """Each goes on from the time that another reached, whose value the path has kept."""
    path, wide = BrownianPath(2), torch.empty(3, 5, dtype=torch.float64)
    likes = (LIKE, LIKE.float(), LIKE[:2], LIKE.half(), wide, LIKE, wide.float(), LIKE.float())
    for like, t, s in zip(
        likes, *zip(*itertools.pairwise(torch.linspace(0.1, 0.9, 9).tolist()), strict=True), strict=True
    ):
        assert torch.equal(path(1, t, s, like), BrownianPath(2)(1, t, s, like))
        assert torch.equal(BrownianPath(2)(1, t, s, wide)[:, :2], BrownianPath(2)(1, t, s, LIKE))


def test_deeper_paths_agree_on_ends_and_middles_of_cells():
    shallow, deep = BrownianPath(6, depth=4), BrownianPath(6, depth=31)
    for k in range(33):
        end = 0.5 + k / 64
        torch.testing.assert_close(
            shallow.increment(0.25, end, LIKE), deep.increment(0.25, end, LIKE), rtol=0, atol=1e-14
        )


@pytest.mark.parametrize("like", [LIKE, LIKE.float()], ids=["float64", "float32"])
def test_a_path_is_continuous(like):
    """At cells' and octaves' ends, 1e-14 away: six standard deviations."""
    path = BrownianPath(6, depth=3)
    for t in (0.5, 0.5625, 1.0, 2.0**-31):
        for near in (t * (1 - 1e-14), t * (1 + 1e-14)):
            assert float(path.increment(near, t, like).abs().max()) < 6e-7 * math.sqrt(t)


def test_a_path_is_a_value():
    path = BrownianPath(3, 4, depth=20)
    path.increment(0.1, 0.7, LIKE)
    assert path == BrownianPath(3, 4, depth=20) != BrownianPath(3, 4)
    assert repr(path) == "BrownianPath(seed=3, first=4, depth=20)"
    for other in (copy.deepcopy(path), pickle.loads(pickle.dumps(path)), path.shifted(0)):
        assert other == path
        assert torch.equal(other.increment(0.7, 0.9, LIKE), path.increment(0.7, 0.9, LIKE))


def test_a_step_inside_one_cell_is_refused_and_a_deeper_path_takes_it():
    cell = 2.0**-17
    for t, s in ((0.7, 0.7 + cell / 4), (-0.7, -0.7 - cell / 4), (1e-11, 1e-11 + 1e-15)):
        with pytest.raises(ValueError, match=r"t = .*s = .*depth = 16\); pass BrownianPath\(1, depth=\d+\)") as error:
            BrownianPath(1).increment(t, s, LIKE)
        depth = int(str(error.value).split("depth=")[1].split(")")[0])
        BrownianPath(1, depth=depth).increment(t, s, LIKE)
        assert depth < 23
    end = 0.5 + 3 * cell
    BrownianPath(1).increment(end, end + cell / 9, LIKE)  # a cell's end shares no cell
    with pytest.raises(ValueError, match="rescale the time"):
        BrownianPath(1).increment(1e9, 1e9 + 1e-3, LIKE)
    for n in (1 << 15, 1000):  # grids of steps of at least 2^-16 of the time
        for t, s in itertools.pairwise(np.linspace(1.0, 1e-3, n)[:50]):
            BrownianPath(1)._check_cells(t, s, place(t), place(s))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BrownianPath(1.5), TypeError, r"seed.*1\.5"),
        (lambda: BrownianPath(-1), ValueError, r"seed.*-1"),
        (lambda: BrownianPath(True), TypeError, "seed"),
        (lambda: BrownianPath(1, -2), ValueError, r"first.*-2"),
        (lambda: BrownianPath(1, 2**64 - 1).increment(0.0, 1.0, LIKE), ValueError, "first"),
        (lambda: BrownianPath(1, depth=0), ValueError, r"depth.*0"),
        (lambda: BrownianPath(1, depth=32), ValueError, r"depth.*32"),
        (lambda: BrownianPath(1, depth=4.0), TypeError, r"depth.*4\.0"),
        (lambda: BrownianPath(1).increment(math.nan, 1.0, LIKE), ValueError, "t = nan"),
        (lambda: BrownianPath(1).increment(0.0, math.inf, LIKE), ValueError, "s = inf"),
        (lambda: BrownianPath(1).increment(0.0, "later", LIKE), TypeError, "s = 'later'"),
        (lambda: BrownianPath(1).increment(0.0, 1.0, (3, 2)), TypeError, "like.*tuple"),
        (lambda: BrownianPath(1).increment(0.0, 1.0, torch.empty(())), ValueError, "batch"),
        (lambda: BrownianPath(1)(1, 0.0, 1.0, torch.ones(2, 2, dtype=torch.long)), ValueError, "int64"),
        (lambda: BrownianPath(1)(-1, 0.5, 0.5, LIKE), ValueError, "draw"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_empty_batch_has_an_empty_path():
    assert BrownianPath(1)(1, 0.1, 0.7, torch.empty(0, 3)).shape == (0, 3)
    assert BrownianPath(1)(1, 0.1, 0.7, torch.empty(3, 0)).shape == (3, 0)
    assert BrownianPath(1)(1, 0.1, 0.7, torch.empty(3)).shape == (3,)


def test_a_seed_of_numpy_is_the_number():
    want = BrownianPath(3, first=5)(1, 0.1, 0.7, LIKE)
    assert torch.equal(BrownianPath(np.int64(3), first=np.int64(5))(1, 0.1, 0.7, LIKE), want)
