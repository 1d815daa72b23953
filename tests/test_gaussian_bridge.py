"""GaussianBridge: against the papers' formulas, the moment equations, closed forms in one dimension."""

import math

import numpy as np
import pytest
import torch
from bridges import (
    P0,
    P1,
    PROCESSES,
    Textbook,
    affine,
    by_process,
    close,
    cross_covariance,
    gaussian,
    points,
    reference_ends,
    root,
)
from mpmath import mp, mpf
from scipy.integrate import quad, solve_ivp

import halfbridge as hb
from halfbridge.solvers.reference.gaussian_bridge import GaussianBridge

F64 = torch.float64
smooth = pytest.mark.parametrize("name", ["Brownian", "OU", "VP", "SubVP", "EDM", "LinearProcess"])


@by_process
@pytest.mark.parametrize("d", [1, 2, 5])
def test_coupling_is_that_of_the_papers_and_keeps_the_marginals(process, d):
    p0, p1 = gaussian(d, 5), gaussian(d, 6, spread=0.7)
    law = GaussianBridge(p0, p1, process).coupling()
    s2 = process.sigma(process.T) ** 2 / process.alpha(process.T)
    theirs = cross_covariance(p0.cov, p1.cov, s2)
    np.testing.assert_allclose(law.cov[:d, d:], theirs, rtol=0, atol=1e-13 * max(1.0, s2))  # what theirs loses
    assert torch.equal(law.cov[:d, :d], p0.cov)
    assert torch.equal(law.cov[d:, d:], p1.cov)
    assert torch.equal(law.mean, torch.cat([p0.mean, p1.mean]))


@by_process
def test_density_of_the_coupling_is_the_kernel_times_functions_of_one_end(process):
    """Schrödinger's form: the cross block of the precision is that of the kernel, -alpha/V I. It characterises the bridge."""
    bridge = GaussianBridge(P0, P1, process)
    precision = torch.linalg.inv(bridge.coupling().cov)
    k = process.alpha(process.T) / process.sigma(process.T) ** 2
    close(precision[:3, 3:], -k * np.eye(3), rtol=1e-12)


@pytest.mark.parametrize("log_s2", range(-12, 13, 3))
def test_coupling_in_one_dimension_keeps_its_digits_at_any_noise(log_s2):
    v0, v1, s2 = 0.7, 2.3, 10.0**log_s2
    bridge = GaussianBridge(
        hb.reference.Gaussian([0.3], v0), hb.reference.Gaussian([-1.0], v1), hb.Brownian(math.sqrt(s2))
    )
    with mp.workdps(60):
        g2 = mpf(hb.Brownian(math.sqrt(s2)).sigma(1.0)) ** 2
        exact = float((mp.sqrt(4 * mpf(v0) * mpf(v1) + g2**2) - g2) / 2)
        left_over = float(1 - mpf(exact) ** 2 / (mpf(v0) * mpf(v1))) if log_s2 >= 0 else None
    assert float(bridge.coupling().cov[0, 1]) == pytest.approx(exact, rel=1e-14)
    assert float(bridge.correlations[0]) == pytest.approx(exact / math.sqrt(v0 * v1), rel=1e-14)
    if left_over is not None:
        slope = affine(bridge.forward_drift, 0.0, 1)[0]
        assert float(slope[0, 0]) == pytest.approx((exact / v0 - 1), rel=1e-13)  # E[X_1 | X_0 = x] - x


@by_process
def test_marginals_and_drifts_are_those_of_the_papers(process):
    bridge, theirs, x = GaussianBridge(P0, P1, process), Textbook(P0, P1, process), points(5, 3)
    for fraction in (0.05, 0.31, 0.77, 0.96):
        t = fraction * process.T
        mean, cov = theirs.marginal(t)
        close(bridge.marginal(t).mean, mean, 1e-12)
        close(bridge.marginal(t).cov, cov, 1e-12)
        close(bridge.forward_drift(t, x), theirs.forward(t, np.asarray(x)), 1e-10)
        close(bridge.backward_drift(t, x), theirs.backward(t, np.asarray(x)), 1e-10)


@by_process
def test_the_two_drifts_differ_by_the_score(process):
    """f - b = g^2 grad log p_t; at 0 too, where g(0) > 0."""
    bridge, x = GaussianBridge(P0, P1, process), points(5, 3)
    noisy = not isinstance(process, (hb.SubVP, hb.EDM, hb.LinearProcess))
    for t in (0.0, 1e-3 * process.T, 0.4 * process.T, process.T) if noisy else (0.01 * process.T, process.T):
        law = bridge.marginal(t)
        score = -torch.linalg.solve(law.cov, (x - law.mean).mT).mT
        close(bridge.forward_drift(t, x) - bridge.backward_drift(t, x), process.diffusion(t) ** 2 * score, 1e-10)


@by_process
def test_drifts_are_gradients(process):
    bridge = GaussianBridge(P0, P1, process)
    for t in (0.2 * process.T, 0.9 * process.T):
        for drift in (bridge.forward_drift, bridge.backward_drift):
            L, _ = affine(drift, t, 3)
            close(L, L.T, 1e-13)


@smooth
def test_moment_equations_of_the_forward_drift_give_the_marginals_and_the_coupling(name):
    """dm = L m + c, dS = L S + S L^T + g^2 I, d Cov(X_0, X_t) = Cov(X_0, X_t) L^T, from p0 at 0 to p1 at T."""
    process = PROCESSES[name]
    bridge = GaussianBridge(P0, P1, process)

    def rate(t, y):
        m, S, X = y[:3], y[3:12].reshape(3, 3), y[12:].reshape(3, 3)
        L, c = affine(bridge.forward_drift, t, 3)
        spread = L @ S + S @ L.T + process.diffusion(t) ** 2 * np.eye(3)
        return np.concatenate([L @ m + c, spread.reshape(-1), (X @ L.T).reshape(-1)])

    first = 1e-7 * process.T  # a LinearProcess has no slope of sigma at 0
    start, times = bridge.joint([0.0, first]), [first, *(f * process.T for f in (0.3, 0.8, 1.0))]
    y0 = np.concatenate([start.mean[3:], start.cov[3:, 3:].reshape(-1), start.cov[:3, 3:].reshape(-1)])
    found = solve_ivp(rate, (first, process.T), y0, "DOP853", t_eval=times, rtol=1e-11, atol=1e-12)
    for t, y in zip(times[1:], found.y.T[1:], strict=True):
        law = bridge.joint([0.0, t])
        close(law.mean[3:], y[:3], 1e-9)
        close(law.cov[3:, 3:], y[3:12].reshape(3, 3), 1e-9)
        close(law.cov[:3, 3:], y[12:].reshape(3, 3), 1e-9)
    close(bridge.marginal(process.T).cov, P1.cov, 1e-13)


@pytest.mark.parametrize("name", ["Brownian", "OU", "VP"])
def test_euler_maruyama_on_either_sde_converges_to_the_coupling(name):
    process = PROCESSES[name]
    bridge = GaussianBridge(P0, P1, process)
    want = bridge.coupling()
    swapped = bridge.joint([process.T, 0.0])
    errors = []
    for n in (50, 100):
        grid = np.linspace(0.0, process.T, n + 1)
        there = hb.reference.law_of(hb.EulerMaruyama(), bridge.forward_sde(), grid, start=P0, joint=True)
        back = hb.reference.law_of(hb.EulerMaruyama(), bridge.backward_sde(), grid[::-1].copy(), start=P1, joint=True)
        errors.append((there.w2(swapped), back.w2(want)))
    for coarse, fine in zip(*errors, strict=True):
        assert 0.42 < fine / coarse < 0.58
        assert fine < 0.1


def test_the_probability_flow_carries_the_marginals_both_ways():
    bridge = GaussianBridge(P0, P1, PROCESSES["OU"])
    for start, end, way in ((P0, P1, 1), (P1, P0, -1)):
        errors = []
        for n in (40, 80):
            grid = np.linspace(0.0, bridge.reference.T, n + 1)[::way].copy()
            errors.append(hb.reference.law_of(hb.Heun(), bridge.probability_flow(), grid, start=start).w2(end))
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


@by_process
def test_kl_is_that_of_the_ends(process):
    bridge = GaussianBridge(P0, P1, process)
    assert bridge.kl() == pytest.approx(bridge.coupling().kl(reference_ends(P0, process)), rel=1e-12)


@pytest.mark.parametrize("name", ["Brownian", "OU", "VP", "EDM", "LinearProcess"])
def test_kl_is_the_control_energy(name):
    """Girsanov: KL = E int |f - a x|^2 / (2 g^2) dt, by quadrature over the exact marginals."""
    process = PROCESSES[name]
    bridge = GaussianBridge(P0, P1, process)

    def power(t):
        law, (L, c) = bridge.marginal(t), affine(bridge.forward_drift, t, 3)
        L = L - process.drift_rate(t) * np.eye(3)
        u = L @ np.asarray(law.mean) + c
        return float(u @ u + np.trace(L @ np.asarray(law.cov) @ L.T)) / (2 * process.diffusion(t) ** 2)

    energy = quad(power, 1e-9 * process.T, process.T, epsabs=1e-11, epsrel=1e-11)[0]
    assert bridge.kl() == pytest.approx(energy, rel=1e-7 if name in ("EDM", "LinearProcess") else 1e-9)


def test_kl_by_the_value_of_entropic_transport():
    """min E|x - y|^2 + 2 s^2 KL(pi || p0 x p1) in closed form (Mallasto et al. 2022), turned into KL(pi || p0 N(y; x, s^2))."""
    g2, d = 0.8**2 * 2.0, 3
    R = root(P0.cov)
    D = root(4 * R @ np.asarray(P1.cov) @ R + g2**2 * np.eye(d))
    square = float((P0.mean - P1.mean).square().sum())
    value = square + float(P0.cov.trace() + P1.cov.trace()) - np.trace(D) + d * g2 * (1 - math.log(2 * g2))
    value += g2 * np.linalg.slogdet(D + g2 * np.eye(d))[1]
    entropy = 0.5 * (d * math.log(2 * math.pi * math.e) + np.linalg.slogdet(P1.cov)[1])
    kl = value / (2 * g2) - entropy + d / 2 * math.log(2 * math.pi * g2)
    assert GaussianBridge(P0, P1, hb.Brownian(0.8, 2.0)).kl() == pytest.approx(kl, rel=1e-12)


def test_drifts_take_any_shape_and_dtype_and_pass_gradients():
    bridge = GaussianBridge(gaussian(4, 0), gaussian(4, 1), hb.OU())
    x = points(3, 4)
    want = bridge.forward_drift(1.3, x)
    image = bridge.forward_drift(torch.tensor(1.3, dtype=F64), x.float().reshape(3, 1, 2, 2))
    assert image.dtype == torch.float32
    torch.testing.assert_close(image.reshape(3, 4).double(), want, rtol=1e-5, atol=1e-5)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(bridge.forward_drift(1.3, x)[:, 0].sum(), x)
    close(slope, np.tile(affine(bridge.forward_drift, 1.3, 4)[0][0], (3, 1)), 1e-12)


def test_results_do_not_depend_on_the_default_device():
    x = points(2, 3)

    def results():
        bridge = GaussianBridge(P0, P1, hb.OU())
        laws = [bridge.coupling(), bridge.joint([0.5, 2.0])]
        return [
            *(a for law in laws for a in (law.mean, law.cov)),
            bridge.forward_drift(1.0, x),
            bridge.sample_paths(3, [1.0], 0),
        ]

    want = results()
    with torch.device("meta"):
        got = results()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianBridge(P0, [0.0], hb.OU()), ValueError, r"`p1` must be an hb\.reference\.Gaussian, got list.*static_bridge"),
        (lambda: GaussianBridge(P0, gaussian(2, 0), hb.OU()), ValueError, "`p1` has dimension 2, but `p0` has 3"),
        (lambda: GaussianBridge(P0, P1, 1.0), TypeError, "`reference` must be a linear process.*got float"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).marginal(5.1), ValueError, r"`t` = 5\.1 .*T = 5"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).forward_drift(math.nan, points(1, 3)), ValueError, "`t` = nan"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).forward_drift(1.0, points(1, 2)), ValueError, r"prod\(shape\) = 3"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).joint([]), ValueError, r"`times` has shape \(0,\)"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).joint(np.zeros(2, np.float32)), ValueError, "dtype float32"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).joint([0.0, -1.0]), ValueError, r"times\[1\] = -1\.0 lies outside"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).joint([0.0, 1.0, 1.0]), ValueError, r"strictly one way, but times\[1\] = 1\.0 and"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).sample_paths(1, [0.0, 2.0, 1.0], 0), ValueError, r"times\[1\] = 2\.0 and"),
        (lambda: GaussianBridge(P0, P1, hb.OU()).sample_paths(1, [0.0], -1), ValueError, "`seed`"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
