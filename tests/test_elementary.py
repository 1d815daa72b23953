"""Elementary functions against mpmath at 50 digits."""

import math

import mpmath
import numpy as np
import pytest
import torch

from halfbridge.solvers import elementary

mpmath.mp.dps = 50

SIGNED = np.concatenate([-np.geomspace(1e-9, 30, 301), np.geomspace(1e-9, 30, 301), np.linspace(-2, 2, 200)])
POSITIVE = np.concatenate([np.geomspace(1e-12, 600, 400), np.linspace(0.6, 0.8, 50)])


def relative_error(value, exact):
    return float(abs((mpmath.mpf(value) - exact) / exact))


def worst(function, reference, points):
    return max(relative_error(function(float(x)), reference(mpmath.mpf(float(x)))) for x in points)


def phi(k):
    """phi_k by its recursion; 60 digits more than it can lose."""

    def value(z):
        if z == 0:
            return 1 / mpmath.factorial(k)
        with mpmath.workdps(110):
            return (mpmath.exp(z) - sum(z**j / mpmath.factorial(j) for j in range(k))) / z**k

    return value


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_keeps_all_digits_up_to_30_on_both_sides(k):
    assert worst(getattr(elementary, f"phi_{k}"), phi(k), SIGNED) < 2e-14


@pytest.mark.parametrize("k", [1, 2, 3])
def test_phi_at_zero_is_one_over_k_factorial(k):
    assert getattr(elementary, f"phi_{k}")(0.0) == 1 / math.factorial(k)


def on_tensor(function):
    return lambda x: function(torch.tensor(x, dtype=torch.float64)).item()


@pytest.mark.parametrize("convert", [lambda f: f, on_tensor], ids=["float", "tensor"])
@pytest.mark.parametrize(
    ("function", "reference", "points", "tolerance"),
    [
        (elementary.softplus, lambda x: mpmath.log1p(mpmath.exp(x)), np.linspace(-600, 600, 801), 1e-15),
        (elementary.logistic, lambda x: 1 / (1 + mpmath.exp(-x)), np.linspace(-600, 600, 801), 1e-15),
        (elementary.exp, mpmath.exp, SIGNED, 1e-15),
        (elementary.expm1, mpmath.expm1, SIGNED, 1e-15),
        (elementary.log, mpmath.log, POSITIVE, 1e-15),
        (elementary.sqrt, mpmath.sqrt, POSITIVE, 1e-15),
        (elementary.sin, mpmath.sin, SIGNED, 1e-15),
        (elementary.asinh, mpmath.asinh, SIGNED, 1e-15),
    ],
    ids=["softplus", "logistic", "exp", "expm1", "log", "sqrt", "sin", "asinh"],
)
def test_elementary_function_keeps_all_digits(convert, function, reference, points, tolerance):
    assert worst(convert(function), reference, points) < tolerance


@pytest.mark.parametrize("convert", [lambda f: f, on_tensor], ids=["float", "tensor"])
def test_log_expm1_keeps_all_digits_but_where_it_crosses_zero(convert):
    function = convert(elementary.log_expm1)
    for x in map(float, POSITIVE):
        exact = mpmath.log(mpmath.expm1(mpmath.mpf(x)))
        assert abs(function(x) - exact) <= 1e-15 * max(1, abs(exact))


@pytest.mark.parametrize("convert", [lambda f: f, on_tensor], ids=["float", "tensor"])
def test_limits_at_zero_and_infinity_are_values_not_errors(convert):
    assert convert(elementary.log)(0.0) == -math.inf
    assert convert(elementary.log_expm1)(0.0) == -math.inf
    assert convert(elementary.softplus)(-math.inf) == 0.0
    assert convert(elementary.logistic)(-math.inf) == 0.0
    assert convert(elementary.logistic)(math.inf) == 1.0


def test_atan2_has_the_quadrant():
    assert elementary.atan2(1.0, -1.0) == pytest.approx(3 * math.pi / 4, rel=1e-15)
    y, x = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 0.5])
    assert torch.equal(elementary.atan2(y, x), torch.atan2(y, x))


def test_softplus_has_the_slope_one_half_at_zero():
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(elementary.softplus(x), x)
    assert slope.item() == 0.5
