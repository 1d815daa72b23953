"""GaussianBridge: against the papers' formulas, the moment equations, closed forms in one dimension and in the limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from bridges import PROCESSES, Textbook, affine, cross_covariance, gaussian, reference_ends, root
from mpmath import mp, mpf
from scipy.integrate import quad, solve_ivp

import halfbridge as hb
from halfbridge.solvers.reference.gaussian_bridge import GaussianBridge

F64 = torch.float64
P0, P1 = gaussian(3, 0), gaussian(3, 1, spread=1.3)
by_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
smooth = pytest.mark.parametrize("name", ["Brownian", "OU", "VP", "SubVP", "EDM", "LinearProcess"])


def points(n, d, seed=3):
    return torch.from_numpy(2 * np.random.default_rng(seed).normal(size=(n, d)))


def close(ours, theirs, rtol=1e-11):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


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


def test_large_noise_leaves_the_ends_independent_and_little_noise_transports_them():
    many, few = hb.Brownian(1e4), hb.Brownian(1e-4)
    C = GaussianBridge(P0, P1, many).coupling().cov[:3, 3:]
    close(C * 1e8, P0.cov @ P1.cov, rtol=1e-7)  # C = S_0 S_1/s^2 + O(1/s^6)
    bridge = GaussianBridge(P0, P1, few)
    R = root(P0.cov)
    monge = np.linalg.inv(R) @ root(R @ np.asarray(P1.cov) @ R) @ np.linalg.inv(R)
    close(bridge.coupling().cov[:3, 3:], np.asarray(P0.cov) @ monge, rtol=2e-8)  # the difference is -s^2/2 I
    cost = (P0.mean - P1.mean).square().sum() + (P0.cov + P1.cov - 2 * bridge.coupling().cov[:3, 3:]).trace()
    assert math.sqrt(cost) == pytest.approx(P0.w2(P1), rel=1e-7)
    halfway = GaussianBridge(P0, P1, few).marginal(0.5)  # McCann's interpolation
    map_ = (np.eye(3) + monge) / 2
    close(halfway.cov, map_ @ np.asarray(P0.cov) @ map_.T, rtol=1e-7)


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


@by_process
def test_the_path_law_is_markov_and_holds_the_ends(process):
    """Cov(X_u, X_t) = Cov(X_u, X_s) Cov(X_s)^-1 Cov(X_s, X_t) for u < s < t, and the reversed times reverse the blocks."""
    bridge = GaussianBridge(P0, P1, process)
    times = [f * process.T for f in (0.0, 0.2, 0.55, 0.7, 1.0)]
    law = bridge.joint(times)
    block = law.cov.reshape(5, 3, 5, 3).permute(0, 2, 1, 3)
    for u, s, t in itertools.combinations(range(5), 3):
        close(block[u, s] @ torch.linalg.solve(block[s, s], block[s, t]), block[u, t], 1e-10)
    ends = torch.cat([law.cov[:3], law.cov[-3:]])[:, [0, 1, 2, 12, 13, 14]]
    close(ends, bridge.coupling().cov, 1e-14)
    back = bridge.joint(times[::-1])
    close(back.cov.reshape(5, 3, 5, 3).flip(0, 2).reshape(15, 15), law.cov, 1e-15)
    close(back.mean.reshape(5, 3).flip(0).reshape(15), law.mean, 1e-15)


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


def test_kl_vanishes_for_the_references_own_end_and_keeps_its_digits_near_it():
    process = PROCESSES["OU"]
    own = P0.at(process, process.T)
    assert GaussianBridge(P0, own, process).kl() < 1e-28
    shift = torch.tensor([1e-9, 0.0, 0.0], dtype=F64)
    near = GaussianBridge(P0, hb.reference.Gaussian(own.mean + shift, own.cov), process)
    assert near.kl() == pytest.approx(0.5 * float(shift @ torch.linalg.solve(own.cov, shift)), rel=1e-6)
    drift = GaussianBridge(P0, own, process).forward_drift(1.0, points(4, 3))
    close(drift, -0.5 * points(4, 3), 1e-14)


def test_from_a_point_mass_the_bridge_is_foellmers_process():
    """Brownian motion from 0 to N(m, S) at 1: f = grad log E e^{g(x + W_{1-t})}, g = log dN(m, S)/dN(0, I); finite at 0."""
    bridge = GaussianBridge(hb.reference.Gaussian([0, 0, 0], 0.0), P1, hb.Brownian())
    x = points(4, 3)
    S = np.asarray(P1.cov)
    for t in (0.0, 0.4, 1.0):
        cov = t**2 * S + t * (1 - t) * np.eye(3)
        L = np.linalg.inv(S) if t == 1 else np.linalg.inv(t * S + (1 - t) * np.eye(3))  # E[X_1 | X_t]: gain S L
        aim = np.asarray(P1.mean) + (np.asarray(x) - t * np.asarray(P1.mean)) @ (S @ L).T
        if t < 1:
            close(bridge.forward_drift(t, x), (aim - np.asarray(x)) / (1 - t), 1e-12)
        close(bridge.marginal(t).cov, cov if t else np.zeros((3, 3)), 1e-14)
    assert bridge.kl() == pytest.approx(P1.kl(hb.reference.Gaussian([0, 0, 0], 1.0)), rel=1e-12)
    assert not bridge.coupling().cov[:3, 3:].any()
    law = hb.reference.law_of(hb.EulerMaruyama(), bridge.forward_sde(), np.linspace(0.0, 1.0, 401), start=bridge.p0)
    assert law.w2(P1) < 0.02
    with pytest.raises(ValueError, match=r"backward_drift at t = 0 is infinite: `p0` has a covariance of rank 0 in 3"):
        bridge.backward_drift(0.0, x)


@by_process
def test_to_a_point_mass_the_bridge_is_the_pinned_process(process):
    """Doob's h-transform: f = a x + g^2 A/w (y - A x), whatever p0."""
    y, x, t, T = torch.tensor([0.4, -1.0, 2.0], dtype=F64), points(4, 3), 0.6 * process.T, process.T
    bridge = GaussianBridge(P0, hb.reference.Gaussian(y, 0.0), process)
    A, w = process.transition(t, T)
    drift = process.drift_rate(t) * x + process.diffusion(t) ** 2 * A / w * (y - A * x)
    close(bridge.forward_drift(t, x), drift, 1e-12)
    assert bridge.kl() == math.inf
    with pytest.raises(ValueError, match=rf"forward_drift at t = {T:.6g} is infinite: `p1`.*rank 0 in 3"):
        bridge.forward_drift(T, x)
    assert bool(bridge.backward_drift(T, x).isfinite().all())


def test_covariances_of_lower_rank_are_the_limit_of_full_ones():
    line = np.outer([1.0, 2.0], [1.0, 2.0])
    other = hb.reference.Gaussian([0.3, -0.4], [[0.5, -0.2], [-0.2, 0.8]])
    x = points(4, 2)
    thin = hb.reference.Gaussian([1, 0], line)
    full = hb.reference.Gaussian([1, 0], line + 1e-9 * np.eye(2))
    for process in (hb.Brownian(), hb.OU()):
        ours, near = GaussianBridge(thin, other, process), GaussianBridge(full, other, process)
        close(ours.coupling().cov, near.coupling().cov, 1e-8)
        close(ours.forward_drift(0.0, x), near.forward_drift(0.0, x), 1e-7)
        assert ours.kl() == pytest.approx(near.kl(), rel=1e-7)
        ours, near = GaussianBridge(other, thin, process), GaussianBridge(other, full, process)
        close(ours.marginal(0.7).cov, near.marginal(0.7).cov, 1e-8)
        close(ours.backward_drift(process.T, x), near.backward_drift(process.T, x), 1e-7)
        assert ours.kl() == math.inf


def test_a_reference_with_noise_at_0_is_taken_from_its_start_on():
    """sigma(0) > 0: the bridge joins X_0 and X_T by the transition between them, not by the kernel from the data."""
    sigmoid = hb.LinearProcess(
        lambda t: torch.sigmoid(6.0 - 12.0 * t).sqrt(), lambda t: torch.sigmoid(12.0 * t - 6.0).sqrt(), 0.8, 1e-3
    )
    r, v = sigmoid.transition(0.0, 0.8)
    precision = torch.linalg.inv(GaussianBridge(P0, P1, sigmoid).coupling().cov)
    close(precision[:3, 3:], -r / v * np.eye(3), 1e-11)


def test_paths_have_the_moments_of_the_joint_law():
    """Means and covariances of 40 000 paths within 5.5 standard errors, 12 + 78 numbers."""
    n, bridge = 40_000, GaussianBridge(gaussian(2, 0), gaussian(2, 1), PROCESSES["OU"])
    times = [0.1, 0.5, 1.4, 1.9]
    law = bridge.joint([0.0, *times, 2.0])
    x = bridge.sample_paths(n, [0.0, *times, 2.0], seed=7).permute(1, 0, 2).reshape(n, 12)
    assert bool(((x.mean(0) - law.mean).abs() < 5.5 * (law.cov.diagonal() / n).sqrt()).all())
    moment, c = (x - law.mean).mT @ (x - law.mean) / n, law.cov
    error = ((torch.outer(c.diagonal(), c.diagonal()) + c**2) / n).sqrt()
    assert bool(((moment - c).abs() < 5.5 * error).all())


def test_a_path_is_exact_given_its_normals():
    """The path is linear in its normals: with z the generator's, x_k follows the pinned transitions of Brownian motion."""
    bridge = GaussianBridge(P0, P1, hb.Brownian(0.8, 2.0))
    x = bridge.sample_paths(5, [0.0, 0.5, 1.25, 2.0], seed=3)
    ends = bridge.coupling().sample(5, seed=3)
    close(torch.cat([x[0], x[3]], 1), ends, 1e-15)
    z = [hb.kernels.normal((5, 3), 3, draw=k, dtype=F64) for k in range(1, 4)]
    close(x[1], x[0] + 0.25 * (x[3] - x[0]) + 0.8 * math.sqrt(0.5 * 1.5 / 2) * z[1], 1e-14)
    close(x[2], x[1] + 0.5 * (x[3] - x[1]) + 0.8 * math.sqrt(0.75 * 0.75 / 1.5) * z[2], 1e-14)


def test_a_path_has_the_same_bits_whatever_the_batch_and_the_direction():
    bridge, times = GaussianBridge(P0, P1, hb.VP()), [0.05, 0.3, 0.31, 1.0]
    whole = bridge.sample_paths(50, times, seed=5)
    assert whole.shape == (4, 50, 3)
    for first, n in ((0, 1), (7, 3), (49, 1)):
        assert torch.equal(bridge.sample_paths(n, times, seed=5, first=first), whole[:, first : first + n])
    assert torch.equal(bridge.sample_paths(50, times[::-1], seed=5), whole.flip(0))
    assert not torch.equal(bridge.sample_paths(50, times, seed=6), whole)


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
