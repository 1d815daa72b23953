"""Time grids: their spacing, their ends, and the grids that are refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbridge.solvers import grids
from halfbridge.solvers.processes import EDM, OU, VE, VP, Brownian, CosineVP, DiscreteVP, LinearProcess, SubVP

PROCESSES = [
    VP(),
    CosineVP(),
    SubVP(),
    VE(),
    EDM(),
    OU(),
    Brownian(),
    DiscreteVP(np.linspace(1e-4, 0.02, 1000)),
    LinearProcess(lambda t: torch.exp(-t), lambda t: torch.sqrt(-torch.expm1(-2 * t)), T=3.0, t_min=1e-3),
]
BLURRED = LinearProcess(lambda t: 1.0, lambda t: 0.02 * torch.exp(8 * t), T=1.0, t_min=1e-3)
MAKERS = [grids.uniform, grids.quadratic, grids.half_log_snr, grids.karras]
every_process = pytest.mark.parametrize("p", PROCESSES, ids=repr)
every_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)


@every_process
@every_maker
@pytest.mark.parametrize("n", [1, 2, 17, 60])
def test_grid_has_n_steps_from_exactly_T_to_exactly_its_end(p, make, n):
    for t_end in (None, 0.3 * p.T):
        grid = make(p, n, t_end=t_end)
        assert isinstance(grid, np.ndarray)
        assert grid.dtype == np.float64
        assert grid.shape == (n + 1,)
        assert grid[0] == p.T
        assert grid[-1] == (p.t_min if t_end is None else t_end)
        np.testing.assert_array_equal(grids.check(p, grid), grid)


def assert_even(values, tolerance):
    np.testing.assert_allclose(values, np.linspace(values[0], values[-1], len(values)), rtol=tolerance, atol=tolerance)


@every_process
def test_each_grid_is_even_in_its_own_variable(p):
    n = 40
    assert_even(grids.uniform(p, n), 1e-15 * p.T)
    assert_even(np.sqrt(grids.quadratic(p, n)), 1e-15 * p.T)
    assert_even(p.half_log_snr(grids.half_log_snr(p, n)), 1e-12)
    assert_even(p.nu(grids.karras(p, n)) ** (1 / 7), 1e-12)
    assert_even(p.nu(grids.karras(p, n, rho=3)) ** (1 / 3), 1e-12)
    assert_even(p.nu(grids.karras(p, n, rho=1, t_end=0.1 * p.T)), 1e-11)


def test_first_interior_times_are_the_papers():
    """By hand, with n = 4: a wrong index or power moves each of these."""
    p = VP()
    assert grids.uniform(p, 4)[1] == pytest.approx(1 + (1e-3 - 1) / 4, rel=1e-15)
    assert grids.quadratic(p, 4)[1] == pytest.approx((1 + (math.sqrt(1e-3) - 1) / 4) ** 2, rel=1e-15)
    edm = EDM()
    assert grids.half_log_snr(edm, 4)[1] == pytest.approx(80 * (0.002 / 80) ** 0.25, rel=1e-14)
    assert grids.karras(edm, 4)[1] == pytest.approx(
        (80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 4) ** 7, rel=1e-14
    )


def test_karras_to_zero_is_edms_table():
    """Karras et al. 2022, equation 5: t_i = (s_max^(1/7) + i/(N-1) (s_min^(1/7) - s_max^(1/7)))^7, t_N = 0."""
    N, i = 18, np.arange(18)
    expected = (80 ** (1 / 7) + i / (N - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.karras(EDM(), N, t_end=0), [*expected, 0.0], rtol=1e-13)
    assert grids.karras(EDM(), 18, 7.0, 0.0)[-2] == 0.002
    assert grids.karras(EDM(), 2, t_end=0).tolist() == [80.0, 0.002, 0.0]
    assert grids.karras(EDM(), 1, t_end=0).tolist() == [80.0, 0.0]
    np.testing.assert_array_equal(grids.karras(VP(), 6, rho=5, t_end=0)[:-1], grids.karras(VP(), 5, rho=5))


@every_process
@pytest.mark.parametrize("make", [grids.uniform, grids.quadratic], ids=lambda f: f.__name__)
def test_time_grids_may_end_at_the_data(p, make):
    grid = make(p, 5, 0)
    assert grid[-1] == 0.0
    assert_even(grid if make is grids.uniform else np.sqrt(grid), 1e-15 * p.T)
    np.testing.assert_array_equal(grids.check(p, grid), grid)


@settings(max_examples=60, deadline=None)
@given(
    p=st.sampled_from(PROCESSES[:-1]),
    make=st.sampled_from(MAKERS),
    n=st.integers(1, 60),
    fraction=st.floats(1e-7, 0.999),
)
def test_every_made_grid_passes_the_check(p, make, n, fraction):
    grid = make(p, n, t_end=fraction * p.T)
    np.testing.assert_array_equal(grids.check(p, grid), grid)
    np.testing.assert_array_equal(grids.check_times(grid[::-1]), grid[::-1])


@every_maker
@pytest.mark.parametrize("n", [0, -3, 2.0, 2.5, True, "4", None])
def test_number_of_steps_is_a_positive_integer(make, n):
    with pytest.raises(ValueError, match="`n` = "):
        make(VP(), n)


@every_maker
@pytest.mark.parametrize("t_end", [-1e-3, 1.0, 1.5, math.nan, "0"])
def test_end_of_sampling_lies_in_zero_to_T(make, t_end):
    with pytest.raises(ValueError, match=r"`t_end` = .*\[0, T\) with T = 1"):
        make(VP(), 4, t_end=t_end)


@pytest.mark.parametrize("rho", [0.0, -7.0, math.nan, math.inf, "7"])
def test_rho_is_positive(rho):
    with pytest.raises(ValueError, match="`rho` = "):
        grids.karras(VP(), 4, rho)


@every_process
def test_half_log_snr_grid_cannot_end_at_the_data(p):
    with pytest.raises(ValueError, match=r"`t_end` = 0.*t_end > 0.*karras"):
        grids.half_log_snr(p, 4, t_end=0)


@every_maker
def test_no_grid_ends_at_zero_where_noise_is_left(make):
    with pytest.raises(ValueError, match=r"ends at 0, where .* sigma = 0\.02.*t_min = 0\.001"):
        make(BLURRED, 4, t_end=0)
    with pytest.raises(ValueError, match=r"ends at 0, where .* sigma = 0\.02"):
        grids.check(BLURRED, [1.0, 0.5, 0.0])


def test_steps_too_fine_for_float64_are_refused():
    with pytest.raises(ValueError, match=r"1000 steps .* repeat a time"):
        grids.uniform(VP(), 1000, t_end=1 - 1e-14)


ACCEPTED = [1.0, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    "grid",
    [
        ACCEPTED,
        tuple(ACCEPTED),
        np.array(ACCEPTED),
        torch.tensor(ACCEPTED, dtype=torch.float64),
        [1, 0.5, 0.25, 0],
        [np.float64(t) for t in ACCEPTED],
    ],
)
def test_check_returns_a_new_float64_array_for_every_accepted_kind(grid):
    for checked in (grids.check(VP(), grid), grids.check_times(grid)):
        assert checked.dtype == np.float64
        assert checked.tolist() == ACCEPTED
        checked[0] = 7.0
    assert float(grid[0]) == 1.0


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (np.array(ACCEPTED, dtype=np.float32), r"dtype float32.*float64.*1e-3 is 0\.0010000000475"),
        (torch.tensor(ACCEPTED), "dtype float32"),
        (torch.tensor(ACCEPTED, dtype=torch.float16), "dtype float16"),
        (torch.tensor([3, 2, 1]), "dtype int64"),
        (np.array([3, 2, 1]), "dtype int64"),
        ([80, 40, 10], r"integers only, \[80, 40, 10\]; write times as floats: 80\.0"),
        ([np.float32(1.0), np.float32(0.5)], r"grid\[0\] is a float32"),
        ([1.0, "0.5"], r"grid\[1\] is a str"),
        ([1.0, None], r"grid\[1\] is a NoneType"),
        ([[1.0, 0.5], [0.2, 0.1]], r"grid\[0\] is a list"),
        (range(3), "`grid` is a range"),
        (1.0, "`grid` is a float"),
    ],
)
def test_grids_of_a_wrong_kind_are_type_errors(grid, words):
    for check in (lambda: grids.check(VP(), grid), lambda: grids.check_times(grid)):
        with pytest.raises(TypeError, match=words):
            check()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([], r"shape \(0,\); pass at least two times"),
        ([1.0], r"shape \(1,\); pass at least two times"),
        (np.ones((2, 2)), r"shape \(2, 2\)"),
        (np.array(1.0), r"shape \(\)"),
        ([1.0, math.nan, 0.1], r"grid\[1\] = nan"),
        ([math.inf, 0.1], r"grid\[0\] = inf"),
        (torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True), r"requires grad.*detach"),
        ([1.0, 0.5, 0.5, 0.1], r"grid\[1\] = 0\.5.* grid\[2\] = 0\.5.*repeats"),
        ([1.0, 0.5, 0.6, 0.1], r"grid\[1\] = 0\.5.* grid\[2\] = 0\.6.*sort"),
    ],
)
def test_grids_that_no_problem_can_follow_are_refused(grid, words):
    for check in (lambda: grids.check(VP(), grid), lambda: grids.check_times(grid)):
        with pytest.raises(ValueError, match=words):
            check()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([0.1, 0.5, 1.0], r"decrease from noise to data, but grid\[0\] = 0\.1.* grid\[1\] = 0\.5; pass grid\[::-1\]"),
        ([1.5, 0.5], r"grid\[0\] = 1\.5 is beyond T = 1.0 of VP"),
        ([math.nextafter(1, 2), 0.5], r"grid\[0\] = 1\.0000000000000002 is beyond T = 1.0 of"),
        ([1.0, 0.5, -0.1], r"grid\[2\] = -0\.1.* is negative"),
    ],
)
def test_a_field_cannot_follow_what_a_general_problem_can(grid, words):
    with pytest.raises(ValueError, match=words):
        grids.check(VP(), grid)
    assert grids.check_times(grid).tolist() == grid


def test_general_problems_run_either_way():
    assert grids.check_times([0.0, 1.0, 5.0]).tolist() == [0.0, 1.0, 5.0]
    assert grids.check_times([2.0, 0.0, -3.0]).tolist() == [2.0, 0.0, -3.0]
    with pytest.raises(ValueError, match=r"grid\[2\] = 5.* grid\[3\] = 4"):
        grids.check_times([0.0, 1.0, 5.0, 4.0])
    with pytest.raises(ValueError, match="strictly one way"):
        grids.check_times([1.0, 1.0])
