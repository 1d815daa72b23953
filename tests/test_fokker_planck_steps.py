"""Time stepping of Fokker-Planck equations: order, error control, mass and sign."""

import math

import numpy as np
import pytest
from grid_problems import axis, gaussian, l1, order
from hypothesis import given, settings
from hypothesis import strategies as st

import halfbridge as hb
from halfbridge.solvers.reference.fluxes import Generator, rates
from halfbridge.solvers.reference.fokker_planck import fokker_planck
from halfbridge.solvers.reference.implicit import Stepper
from halfbridge.solvers.reference.nodes import Nodes


def stepper(n=81, sde=None):
    sde = sde or hb.SDE(lambda t, x: math.sin(4 * t) - x, lambda t: 1.0 + 0.4 * math.cos(3 * t))
    x = axis(-5, 5, n)
    nodes = Nodes(x)
    made = Stepper(Generator(nodes), lambda t: rates(sde, nodes, t, 1.0, False), 1.0, 1.0)
    return made, gaussian(x, 0.6, 0.3).numpy() * nodes.volumes


def test_time_is_second_order_with_coefficients_that_depend_on_it():
    made, start = stepper()

    def run(n):
        m = start
        for i in range(n):
            m = made.step(m, i / n, 1 / n).m
        return m

    exact = (4 * run(256) - run(128)) / 3
    errors = [np.abs(run(n) - exact).sum() for n in (16, 32)]
    assert order(errors) == pytest.approx(2.0, abs=0.15)


def test_estimate_of_a_step_is_of_third_order_and_not_below_its_error():
    made, start = stepper()

    def halved(h, parts):
        m = start
        for i in range(parts):
            m = made.step(m, i * h / parts, h / parts).m
        return m

    estimates = []
    for h in (0.01, 0.005):
        step = made.step(start, 0.0, h)
        error = np.abs(step.m - (4 * halved(h, 8) - halved(h, 4)) / 3).sum()
        assert error < step.error < 12 * error
        estimates.append(step.error)
    assert order(estimates) == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_error_of_time_stepping_is_below_tol(tol):
    x = axis(-5, 5, 81)
    sde = hb.SDE(lambda t, x: math.sin(4 * t) - x, lambda t: 1.0 + 0.4 * math.cos(3 * t))
    start = gaussian(x, 0.6, 0.3)
    fine = fokker_planck(sde, x, start, [0.0, 0.3, 1.0], tol=tol / 30)
    got = fokker_planck(sde, x, start, [0.0, 0.3, 1.0], tol=tol)
    assert 0.01 * tol < l1(got.density[-1], fine.density[-1], x) < tol
    assert got.steps < fine.steps / 4


@settings(max_examples=60, deadline=None)
@given(
    spikes=st.lists(st.integers(1, 59), min_size=1, max_size=4),
    log_h=st.floats(-6, 4),
    drift=st.sampled_from([lambda t, x: -x, lambda t, x: 30 * x - x**3, lambda t, x: 8 + 0 * x]),
)
def test_every_step_keeps_mass_and_sign_whatever_its_size(spikes, log_h, drift):
    made, _ = stepper(61, hb.SDE(drift, 0.7))
    m = np.zeros(61)
    for i in spikes:
        m[i] += 1 / len(spikes)
    for _ in range(3):
        m = made.step(m, 0.0, 10.0**log_h).m
        assert (m >= 0).all()
        assert m.sum() == pytest.approx(1.0, abs=1e-13)


def test_limiter_moves_no_more_mass_than_was_negative():
    """From a spike. Without the limiter the step is R(h A), R(z) = (1 + (sqrt 2 - 1) z)/(1 - (1 - sqrt(1/2)) z)^2."""
    made, _ = stepper(401, hb.SDE(lambda t, x: -x, 1.0))
    x, h = axis(-5, 5, 401), 0.2
    start = gaussian(x, 1.0, 1e-3).numpy() * Nodes(x).volumes
    a = made.generator
    ha = h * np.stack([a.divergence(a.flux(made.rates_at(0.0), e)) for e in np.eye(401)], 1)
    inverse = np.linalg.inv(np.eye(401) - (1 - math.sqrt(0.5)) * ha)
    plain = inverse @ inverse @ (start + (math.sqrt(2) - 1) * ha @ start)
    negative = -plain.clip(max=0).sum()
    assert negative > 1e-3
    step = made.step(start, 0.0, h)
    moved = np.abs(step.m - plain).sum()
    assert (step.m > 0).all()
    assert 2 * negative - 1e-12 < moved < 2.001 * negative
    assert step.error > moved
