"""GaussianBridge at its limits: much and little noise, point masses, lower rank, the reference itself."""

import math

import numpy as np
import pytest
import torch
from bridges import P0, P1, PROCESSES, by_process, close, points, root

import halfbridge as hb
from halfbridge.solvers.reference.gaussian_bridge import GaussianBridge

F64 = torch.float64


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
