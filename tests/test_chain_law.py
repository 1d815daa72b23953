"""The law of chains by quadrature: against exact Gaussian laws, nested integrals and moments; orders without Monte Carlo."""

import math
import warnings

import numpy as np
import pytest
import torch
from grid_problems import F64, MIXTURE, axis, density, gaussian, l1
from scipy.integrate import quad

import halfbridge as hb
from halfbridge.solvers.reference.chain_law import chain_law, chain_law_of, chain_of

VP = hb.VP()
CHAINS = [hb.EulerMaruyama(), hb.ReverseDiffusion(), hb.Ancestral(), hb.Ancestral("transition"), hb.DDIM(0.6)]


def trapezoid(f, x):
    return float(torch.trapezoid(f, x))


@pytest.mark.parametrize("solver", CHAINS, ids=repr)
def test_on_gaussian_data_it_is_the_exact_law(solver):
    data = hb.reference.Gaussian([0.7], [[0.4]])
    grid = hb.grids.half_log_snr(VP, 12, t_end=0.1)
    x = axis(-9, 9, 451)
    p = chain_law_of(solver, data.field(VP), grid, x, density(data.at(VP, 1.0), x))
    for k in (1, 6, 12):
        exact = hb.reference.law_of(solver, VP, grid[: k + 1], data)
        assert l1(p[k - 1], density(exact, x), x) < 1e-10


def test_nonlinear_steps_are_the_nested_integrals():
    """Two steps, the second with a variance that depends on x, against adaptive quadrature at single points."""
    x = axis(-9, 9, 361)
    p = chain_law(
        lambda k, x: torch.sin(2 * x) + 0.3 * k * x,
        [0.3, lambda x: 0.2 + 0.1 * torch.tanh(x)],
        x,
        gaussian(x, 0.4, 0.5),
    )

    def normal(y, mean, var):
        return math.exp(-((y - mean) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)

    def first(y):
        return quad(lambda u: normal(y, math.sin(2 * u), 0.3) * normal(u, 0.4, 0.5), -7, 8, epsabs=1e-13, limit=200)[0]

    def second(y):
        def inner(u):
            return normal(y, math.sin(2 * u) + 0.3 * u, 0.2 + 0.1 * math.tanh(u)) * first(u)

        return quad(inner, -5, 5, epsabs=1e-12, epsrel=1e-12, limit=100)[0]

    for i in (150, 190, 220):
        assert float(p[0][i]) == pytest.approx(first(float(x[i])), abs=1e-11)
    assert float(p[1][190]) == pytest.approx(second(float(x[190])), abs=1e-10)


def test_a_sine_drift_has_its_closed_moments():
    x = axis(-8, 8, 321)
    p = chain_law(lambda k, x: torch.sin(x), [0.25], x, gaussian(x, 0.6, 0.8))[0]
    assert trapezoid(p, x) == pytest.approx(1.0, abs=1e-12)
    assert trapezoid(p * x, x) == pytest.approx(math.sin(0.6) * math.exp(-0.4), abs=1e-12)
    assert trapezoid(p * x**2, x) == pytest.approx((1 - math.cos(1.2) * math.exp(-1.6)) / 2 + 0.25, abs=1e-12)


def test_state_dependent_noise_has_the_moments_of_its_recursion():
    """Euler-Maruyama on dX = mu X dt + s sqrt(1 + X^2) dW: E X and E X^2 after each step."""
    mu, s, h, n = -0.4, 0.4, 0.1, 5
    x = axis(-12, 12, 481)
    sde = hb.SDE(lambda t, x: mu * x, lambda t, x: s * (1 + x**2).sqrt(), "diagonal")
    p = chain_law_of(hb.EulerMaruyama(), sde, np.linspace(0, n * h, n + 1), x, gaussian(x, 0.8, 0.2))
    first, second = 0.8, 0.8**2 + 0.2
    for k in range(n):
        first, second = first * (1 + mu * h), second * ((1 + mu * h) ** 2 + s * s * h) + s * s * h
        assert trapezoid(p[k] * x, x) == pytest.approx(first, abs=1e-9)
        assert trapezoid(p[k] * x**2, x) == pytest.approx(second, abs=1e-9)


@pytest.mark.parametrize("solver", CHAINS, ids=repr)
def test_weak_order_is_one_on_a_mixture_without_monte_carlo(solver):
    x, t_end = axis(-7, 7, 281), 0.1
    start, exact = density(MIXTURE.at(VP, 1.0), x), density(MIXTURE.at(VP, t_end), x)
    field, errors = MIXTURE.field(VP), []
    for n in (24, 48):
        p = chain_law_of(solver, field, hb.grids.half_log_snr(VP, n, t_end=t_end), x, start, tol=1e-7)[-1]
        errors.append(l1(p, exact, x))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.1)


def test_a_chain_is_the_solver_itself():
    """Its mean and variance are those of `solve` with a normal of 0 and of 1, at any step."""
    field, grid = MIXTURE.field(VP), hb.grids.uniform(VP, 6, t_end=0.1)
    x = torch.tensor([[-1.3], [0.2], [1.1]], dtype=F64)
    for solver in CHAINS:
        chain = chain_of(solver, field, grid)
        for k in (0, 4):
            still = hb.solve(
                field, solver, x, grid=grid[k : k + 2], seed=lambda draw, t, s, like: torch.zeros_like(like)
            ).x
            moved = hb.solve(
                field, solver, x, grid=grid[k : k + 2], seed=lambda draw, t, s, like: torch.ones_like(like)
            ).x
            torch.testing.assert_close(chain.drift(k, x), still, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(chain.variances[k](x).sqrt(), moved - still, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ratio", [2.4, 2.0, 1.5, 1.2, 1.0])
def test_error_is_measured_and_not_below_the_truth(ratio):
    """delta/std of the kernel from hopeless to fine: a tol below the error raises, one well above it does not.

    The estimate extrapolates from rules twice and four times as coarse, on the safe side: up to 300 times too large.
    """
    std, n = 0.25, 3
    x = ratio * std * torch.arange(-40, 41, dtype=F64)
    p0 = gaussian(x, 0.1, 2 * std**2 + 1.0)
    exact = gaussian(x, 0.1 * 0.9**n, (2 * std**2 + 1.0) * 0.81**n + std**2 * (1 + 0.81 + 0.81**2))
    run = {"drift": lambda k, x: 0.9 * x, "variances": [std**2] * n, "x": x, "p0": p0}
    error = l1(chain_law(**run, tol=0.9)[-1], exact, x)
    with pytest.raises(ValueError, match=r"too coarse in step \d: .*pass more nodes"):
        chain_law(**run, tol=max(error / (3 * n), 1e-15))
    chain_law(**run, tol=min(0.9, 1000 * error))


def test_a_kink_is_seen_in_the_measured_error():
    x = axis(-6, 6, 241)
    run = {"drift": lambda k, x: x.abs() - 0.02, "variances": [0.3], "x": x, "p0": gaussian(x, 0.3, 0.5)}
    with pytest.raises(ValueError, match="converges only as the spacing squared"):
        chain_law(**run)
    fine = axis(-6, 6, 3841)
    exact = chain_law(run["drift"], [0.3], fine, gaussian(fine, 0.3, 0.5), tol=1e-5)[0, ::16]
    error = l1(chain_law(**run, tol=1e-2)[0], exact, x)
    with pytest.raises(ValueError, match="too coarse"):
        chain_law(**run, tol=error / 3)
    chain_law(**run, tol=10 * error)


def test_many_nodes_are_computed_in_blocks():
    """More nodes than a block holds, and a kernel much narrower than the box: the same law."""
    x = axis(-12, 12, 2401)
    p = chain_law(lambda k, x: 0.8 * x, [0.01] * 2, x, gaussian(x, 0.5, 0.3))[-1]
    exact = gaussian(x, 0.5 * 0.64, 0.3 * 0.64**2 + 0.01 * 1.64)
    assert l1(p, exact, x) < 1e-12
    inside = x.abs() < 7  # where the tail of 1e-77 still comes from inside the box
    assert float((p / exact - 1)[inside].abs().max()) < 1e-9  # the tails too


def test_mass_that_leaves_the_box_is_told():
    x = axis(-2, 2, 81)
    with pytest.warns(UserWarning, match=r"step 0 carries a mass of 0\.\d+ out of it, most above 2"):
        chain_law(lambda k, x: x + 1, [0.2], x, gaussian(x, 0.3, 0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chain_law(lambda k, x: x / 8, [0.05], x, gaussian(x, 0.0, 0.05))


X = axis(-6, 6, 121)
P0 = gaussian(X, 0.0, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variances": [0.5, 0.0]}, r"variances\[1\] is 0 at x = .*needs a positive variance"),
        ({"variances": [torch.ones(7)]}, r"`variances\[0\]` has shape \(7,\)"),
        ({"variances": []}, "`variances` is empty"),
        ({"drift": lambda k, x: x.T.expand(2, -1)}, r"`drift\(0, x\)` has shape \(2, 121\)"),
        ({"drift": lambda k, x: x / 0}, r"`drift\(0, x\)` must be finite"),
        ({"x": X**3 + X}, "`x` must be uniform"),
        ({"x": (X, X), "p0": torch.outer(P0, P0)}, "for one dimension"),
        ({"p0": 3 * P0}, "its integral .* is 3"),
        ({"tol": 2.0}, "tol = 2.0"),
    ],
    ids=lambda v: "" if isinstance(v, str) else next(iter(v)),
)
def test_bad_arguments_are_named(arguments, message):
    given = {"drift": lambda k, x: 0.8 * x, "variances": [0.4], "x": X, "p0": P0, **arguments}
    with pytest.raises(ValueError, match=message):
        chain_law(**given)


@pytest.mark.parametrize(
    ("solver", "end", "message"),
    [
        (hb.DPMSolverPP(2), 0.1, "remembers earlier steps"),
        (hb.DDIM(0.0), 0.1, "draws 0 normals in step 0"),
        (hb.PredictorCorrector(hb.ReverseDiffusion(), hb.Langevin(step_size=1e-3)), 0.1, "draws 2 normals"),
        (hb.Ancestral(), 0.0, "draws 0 normals in step 1"),
        (hb.Heun(churn=1.0), 0.1, "not affine in its normal"),
    ],
    ids=repr,
)
def test_solvers_that_make_no_gaussian_chain_are_refused(solver, end, message):
    with pytest.raises(ValueError, match=message):
        chain_law_of(solver, MIXTURE.field(VP), [1.0, 0.4, end], X, density(MIXTURE.at(VP, 1.0), X), tol=0.5)
    with pytest.raises(TypeError, match="must be a Field or an SDE"):
        chain_of(hb.EulerMaruyama(), hb.ODE(lambda t, x: -x), [0.0, 1.0])


@pytest.mark.parametrize("variances", [1.0, torch.tensor(1.0), lambda x: 1.0])
def test_variances_that_are_no_sequence_are_named(variances):
    x = axis(-5, 5, 51)
    with pytest.raises(TypeError, match=r"variances = .* must hold one entry a step; pass \["):
        chain_law(lambda k, x: x, variances, x, gaussian(x, 0.0, 1.0))
