"""LinearProcess: a and g by autograd, time_at by root finding, against closed forms; and the schedules it refuses."""

import math

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from halfbridge.solvers.processes import OU, VP, CosineVP, LinearProcess, SubVP

mpmath.mp.dps = 50


def rebuilt(p):
    """The same process from its alpha and sigma alone."""
    return LinearProcess(p.alpha, p.sigma, T=p.T, t_min=p.t_min)


def straight():
    """The straight path of flow matching, alpha = 1 - t, sigma = t."""
    return LinearProcess(lambda t: 1 - t, lambda t: t, T=0.999, t_min=1e-3)


REBUILT = [VP(), CosineVP(), SubVP(), OU(theta=2.0, g=0.3)]
by_closed_form = pytest.mark.parametrize("exact", REBUILT, ids=repr)


def times_of(p):
    return np.unique(np.concatenate([np.geomspace(1e-8, p.T, 25), np.linspace(1e-3, p.T, 25)])).clip(max=p.T)


@by_closed_form
@pytest.mark.parametrize("name", ["alpha", "sigma", "half_log_snr", "nu", "drift_rate", "diffusion"])
def test_functions_agree_with_the_closed_forms_to_1e_12(exact, name):
    p = rebuilt(exact)
    times = times_of(exact)
    expected = [getattr(exact, name)(float(t)) for t in times]
    np.testing.assert_allclose(getattr(p, name)(times), expected, rtol=1e-12, atol=1e-13)
    assert getattr(p, name)(float(times[7])) == pytest.approx(expected[7], rel=1e-12, abs=1e-13)


@by_closed_form
def test_time_at_inverts_half_log_snr_to_1e_12(exact):
    p = rebuilt(exact)
    for t in times_of(exact):
        assert p.time_at(p.half_log_snr(float(t))) == pytest.approx(t, rel=1e-12)
    levels = exact.half_log_snr(torch.tensor([[1e-8, 0.3], [0.5, 0.9]], dtype=torch.float64) * exact.T)
    torch.testing.assert_close(p.time_at(levels), exact.time_at(levels), rtol=1e-12, atol=0)
    beyond = exact.half_log_snr(min(1.2 * exact.T, 0.999 if isinstance(exact, CosineVP) else math.inf))
    assert p.time_at(beyond) == pytest.approx(exact.time_at(beyond), rel=1e-12)


def test_straight_path_has_its_textbook_coefficients():
    """a = -1/(1-t), g^2 = 2t/(1-t), lambda = log((1-t)/t)."""
    p = straight()
    for t in map(mpf, (1e-8, 0.25, 0.5, 0.9, 0.999)):
        assert p.drift_rate(float(t)) == pytest.approx(float(-1 / (1 - t)), rel=1e-12)
        assert p.diffusion(float(t)) == pytest.approx(float(mpmath.sqrt(2 * t / (1 - t))), rel=1e-12)
        assert p.half_log_snr(float(t)) == pytest.approx(float(mpmath.log((1 - t) / t)), rel=1e-12, abs=1e-13)
        level = float(mpmath.log((1 - t) / t))
        assert p.time_at(level) == pytest.approx(float(1 / (1 + mpmath.exp(mpf(level)))), rel=1e-12)
    assert p.prior_std == 0.999
    assert p.diffusion(0.0) == 0.0


def test_straight_path_transition_loses_only_the_digits_the_half_log_snrs_share():
    p = straight()
    for s, gap in [(0.0, 0.1), (0.3, 0.4), (0.3, 1e-3), (0.3, 1e-6), (1e-6, 1e-8)]:
        t = s + gap
        r = (1 - mpf(t)) / (1 - mpf(s))
        v = mpf(t) ** 2 - r**2 * mpf(s) ** 2
        got = p.transition(s, t)
        shared = abs(p.half_log_snr(t)) / (p.half_log_snr(s) - p.half_log_snr(t))
        assert abs(got[0] / r - 1) < 1e-14
        assert abs(got[1] / v - 1) < 1e-14 + 1e-15 * shared


@by_closed_form
def test_gradients_flow_to_times_and_levels(exact):
    p = rebuilt(exact)
    for name in ("alpha", "sigma", "half_log_snr", "nu", "drift_rate", "diffusion"):
        slopes = []
        for q in (p, exact):
            t = torch.tensor([0.1, 0.5], dtype=torch.float64, requires_grad=True)
            slopes.append(torch.autograd.grad(getattr(q, name)(t).sum(), t)[0])
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-12)
    inverses = []
    for q in (p, exact):
        level = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(q.half_log_snr(q.time_at(level)), level, rtol=1e-12, atol=1e-12)
        inverses.append(torch.autograd.grad(q.time_at(level).sum(), level)[0])
    torch.testing.assert_close(inverses[0], inverses[1], rtol=1e-10, atol=0)


def test_constant_coefficients_may_be_numbers_or_tensors_without_gradient():
    for one in (lambda t: 1.0, torch.ones_like, lambda t: 1):
        p = LinearProcess(one, lambda t: 2 * t, T=4.0, t_min=0.1)
        assert p.alpha(3.0) == 1.0
        assert p.drift_rate(3.0) == 0.0
        assert p.diffusion(3.0) == pytest.approx(math.sqrt(2 * 6 * 2), rel=1e-14)
        assert p.time_at(-math.log(5.0)) == pytest.approx(2.5, rel=1e-12)


def test_data_end_is_whatever_the_functions_say():
    p = rebuilt(VP())
    assert (p.alpha(0.0), p.sigma(0.0), p.half_log_snr(0.0), p.time_at(math.inf)) == (1.0, 0.0, math.inf, 0.0)
    with pytest.raises(ValueError, match=r"g\^2 = nan at t = 0.*use a later time"):
        p.diffusion(0.0)
    blurred = LinearProcess(lambda t: 1.0, lambda t: 0.02 * torch.exp(8 * t), T=1.0, t_min=1e-3)
    assert blurred.half_log_snr(0.0) == pytest.approx(-math.log(0.02))
    assert blurred.time_at(-math.log(0.02)) == 0.0
    assert blurred.time_at(blurred.half_log_snr(1e-6)) == pytest.approx(1e-6, rel=1e-8)
    with pytest.raises(ValueError, match=r"`half_log_snr` = 4.0 exceeds 3\.9.*t = 0"):
        blurred.time_at(4.0)
    open_end = LinearProcess(lambda t: 1.0, lambda t: t * torch.log(1 + 1 / t), T=1.0, t_min=1e-3)
    assert open_end.time_at(open_end.half_log_snr(1e-7)) == pytest.approx(1e-7, rel=1e-12)
    with pytest.raises(ValueError, match=r"sigma\(0\) = nan must be positive and finite"):
        open_end.sigma(0.0)


def test_levels_that_no_time_has_are_refused():
    with pytest.raises(ValueError, match=r"`half_log_snr` = -60.0 is below -6\.9"):
        straight().time_at(-60.0)
    with pytest.raises(ValueError, match=r"`half_log_snr` = -1.0 is below .*not reached after T"):
        LinearProcess(lambda t: 1.0, torch.tanh, T=3.0, t_min=0.1).time_at(-1.0)


def root(t):
    return torch.sqrt(t)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # what a schedule in `math` provokes
@pytest.mark.parametrize(
    ("alpha", "sigma", "words"),
    [
        (lambda t: 1 - t, root, r"alpha\(1\) = 0 must be positive"),
        (lambda t: torch.cos(3 * t), root, r"alpha\(0\.5\d*\) = -\d\.\d+ must be positive"),
        (torch.ones_like, lambda t: torch.relu(t - 0.5), r"sigma\(0\.001\) = 0 must be positive"),
        (torch.ones_like, lambda t: torch.log(t), r"sigma\(0\.001\) = -6\.9"),
        (torch.ones_like, lambda t: t / (t - t), r"sigma\(0\.001\) = inf"),
        (torch.ones_like, lambda t: t * (1.2 - t), r"log\(alpha/sigma\) must decrease.*at t = 0\.\d+ and"),
        (torch.ones_like, torch.ones_like, r"log\(alpha/sigma\) must decrease"),
        (lambda t: 2.0, root, r"sigma\(0\) = 0 but alpha\(0\) = 2"),
        (lambda t: math.exp(-t), root, "`alpha` changes with t but carries no gradient"),
        (torch.ones_like, lambda t: torch.tensor(math.sqrt(t), dtype=torch.float64), "`sigma` changes with t"),
        (torch.ones_like, lambda t: root(t).float(), r"`sigma` gave a torch\.float32 \(\)"),
        (torch.ones_like, lambda t: root(t)[None], r"`sigma` gave a torch\.float64 \(1,\)"),
        (lambda t: None, root, "`alpha` gave a NoneType"),
    ],
)
def test_schedules_that_are_no_process_are_refused(alpha, sigma, words):
    with pytest.raises(ValueError, match=words):
        LinearProcess(alpha, sigma, T=1.0, t_min=1e-3)


def test_arguments_of_the_wrong_kind_are_refused():
    with pytest.raises(TypeError, match=r"`sigma` is a float; pass a function"):
        LinearProcess(torch.ones_like, 1.0, T=1.0, t_min=1e-3)
    with pytest.raises(ValueError, match=r"`T` = 1 must exceed t_min = 1"):
        LinearProcess(torch.ones_like, root, T=1.0, t_min=1.0)
    with pytest.raises(ValueError, match="`t_min` = 0"):
        LinearProcess(torch.ones_like, root, T=1.0, t_min=0)


def test_repr_names_the_functions():
    assert (
        repr(LinearProcess(torch.ones_like, root, T=1, t_min=1e-3))
        == "LinearProcess(ones_like, root, T=1, t_min=0.001)"
    )


def test_scipy_is_loaded_only_by_the_inverse():
    import subprocess
    import sys

    code = (
        "import sys, torch\n"
        "from halfbridge.solvers.processes import LinearProcess\n"
        "LinearProcess(lambda t: 1 - t, lambda t: t, 0.9, 1e-3).diffusion(0.5)\n"
        "sys.exit('scipy.optimize' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_floats_and_arrays_stay_on_the_cpu_whatever_the_default_device():
    names = ["alpha", "sigma", "half_log_snr", "nu", "drift_rate", "diffusion"]

    def values():
        p = LinearProcess(lambda t: 1 - t, lambda t: t, T=0.999, t_min=1e-3)
        constant = LinearProcess(lambda t: 1.0, lambda t: t, T=2.0, t_min=1e-3)
        times = np.array([0.1, 0.6])
        found = [getattr(p, name)(t) for name in names for t in (0.3, times)]
        return [*found, p.time_at(0.7), p.time_at(times), p.transition(0.2, 0.4), constant.diffusion(0.5)]

    expected = values()
    with torch.device("meta"):
        got = values()
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)
