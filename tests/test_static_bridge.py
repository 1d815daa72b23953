"""static_bridge: against closed-form bridges on grids, Gaussian IPF, Sinkhorn written again, and the Fokker-Planck equation."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from bridges import gaussian
from scipy.special import logsumexp

import halfbridge as hb
from halfbridge.solvers.reference.gaussian_bridge import GaussianBridge
from halfbridge.solvers.reference.gaussian_ipf import gaussian_ipf
from halfbridge.solvers.reference.static_bridge import static_bridge

F64 = torch.float64
P0, P1 = hb.reference.Gaussian([0.5], 0.8), hb.reference.Gaussian([-0.6], 0.5)
PROCESSES = {
    "Brownian": hb.Brownian(0.9, 1.5),
    "OU": hb.OU(0.5, 1.0, 1.2),
    "VP": hb.VP(0.1, 3.0),
    "EDM": hb.EDM(0.01, 1.2),
}
by_process = pytest.mark.parametrize("name", PROCESSES)
Z = torch.tensor([[-1.1], [0.2], [1.4]], dtype=F64)


def close(ours, theirs, tol):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tol * max(1.0, np.abs(theirs).max()))


def grid_bridge(process, p0=P0, p1=P1):
    """The two densities on 100 nodes out to 8 or more standard deviations: sums over nodes are integrals to rounding."""
    x = np.linspace(-7.5, 7.5, 101)
    weights = [np.asarray(p.log_prob(torch.from_numpy(x)[:, None]).exp()) for p in (p0, p1)]
    return static_bridge(x, x, process, *(w / w.sum() for w in weights), tol=1e-13)


def clouds(d=2, n=7, m=5):
    """A few points with weights, where nothing is Gaussian."""
    rng = np.random.default_rng(4)
    return (
        rng.normal(size=(n, d)),
        0.5 + 1.5 * rng.normal(size=(m, d)),
        rng.dirichlet(np.ones(n)),
        rng.dirichlet(np.ones(m)),
    )


@by_process
def test_gaussians_on_a_grid_have_the_closed_form_bridge(name):
    process = PROCESSES[name]
    exact, ours = GaussianBridge(P0, P1, process), grid_bridge(process)
    x = ours.x0[:, 0]
    cross = ((x[:, None] - 0.5) * (x + 0.6) * ours.coupling).sum()
    assert float(cross) == pytest.approx(float(exact.coupling().cov[0, 1]), abs=1e-9)
    assert max(ours.errors) < 1e-12
    for fraction in (0.25, 0.7):
        t = fraction * process.T
        close(ours.marginal(t).mean, exact.marginal(t).mean, 1e-9)
        close(ours.marginal(t).cov, exact.marginal(t).cov, 1e-9)
        close(ours.marginal(t).log_prob(Z), exact.marginal(t).log_prob(Z), 1e-9)
        close(ours.forward_drift(t, Z), exact.forward_drift(t, Z), 1e-9)
        close(ours.backward_drift(t, Z), exact.backward_drift(t, Z), 1e-9)
    close(ours.backward_drift(process.T, Z), exact.backward_drift(process.T, Z), 1e-9)
    if name != "EDM":  # g(0) = 0 there
        close(ours.forward_drift(0.0, Z), exact.forward_drift(0.0, Z), 1e-9)


def test_gaussians_on_a_grid_have_the_limit_of_gaussian_ipf():
    process = PROCESSES["OU"]
    ours, limit = grid_bridge(process), gaussian_ipf(P0, P1, process, 4, 60)[-1]
    law = limit.coupling()
    close(ours.forward_drift(0.0, Z), GaussianBridge(P0, P1, process).forward_drift(0.0, Z), 1e-9)
    x = torch.stack(torch.meshgrid(ours.x0[40:60, 0], ours.x1[40:60, 0], indexing="ij"), -1).reshape(-1, 2)
    density = law.log_prob(x).exp() * 0.15**2
    close(ours.coupling[40:60, 40:60].reshape(-1) / density, np.ones(400), 1e-7)


@by_process
def test_coupling_is_that_of_sinkhorn_written_again(name):
    """f <- log mu - LSE_j(K + g), g <- log nu - LSE_i(K + f), K_ij = -|y_j - alpha x_i|^2 / (2 sigma^2)."""
    process = PROCESSES[name]
    x, y, mu, nu = clouds()
    alpha, variance = process.alpha(process.T), process.sigma(process.T) ** 2
    K = -np.square(y - alpha * x[:, None]).sum(2) / (2 * variance)
    g = np.zeros(5)
    for _ in range(3000):
        f = np.log(mu) - logsumexp(K + g, axis=1)
        g = np.log(nu) - logsumexp(K + f[:, None], axis=0)
    ours = static_bridge(x, y, process, mu, nu, tol=1e-14)
    close(ours.coupling, np.exp(f[:, None] + g + K), 1e-12)
    shift = np.asarray(ours.potentials[0]) - f
    close(shift, np.full(7, shift[0]), 1e-11)
    close(np.asarray(ours.potentials[1]) - g, np.full(5, -shift[0]), 1e-11)
    close(ours.coupling.sum(1), mu, 1e-13)
    close(ours.coupling.sum(0), nu, 1e-13)


def test_equal_weights_are_the_default_and_single_precision_is_taken():
    x, y, *_ = clouds()
    ours = static_bridge(torch.from_numpy(x).float(), y.tolist(), hb.Brownian())
    assert ours.coupling.dtype == F64
    close(ours.coupling.sum(1), np.full(7, 1 / 7), 1e-9)
    same = static_bridge(x.astype(np.float32).astype(float), y, hb.Brownian(), np.full(7, 1 / 7), np.full(5, 0.2))
    close(ours.coupling, same.coupling, 1e-14)


def test_points_without_weight_change_nothing():
    x, y, mu, nu = clouds()
    ours = static_bridge(
        np.vstack([x, [[9.0, 9.0]]]), np.vstack([[[-9.0, 9.0]], y]), hb.OU(), np.append(mu, 0), np.append(0, nu)
    )
    want = static_bridge(x, y, hb.OU(), mu, nu)
    close(ours.coupling[:7, 1:], want.coupling, 1e-14)
    assert not ours.coupling[7].any()
    assert not ours.coupling[:, 0].any()
    at = torch.tensor([[0.3, -0.2]], dtype=F64)
    close(ours.forward_drift(1.0, at), want.forward_drift(1.0, at), 1e-12)
    close(ours.backward_drift(1.0, at), want.backward_drift(1.0, at), 1e-12)
    assert bool(ours.sample_paths(200, [0.0], 0)[0, :, 0].max() < 9)


@by_process
def test_drifts_move_the_marginals_by_the_fokker_planck_equation(name):
    """d log p/dt = -div f - f . s + g^2/2 (div s + |s|^2), s = grad log p, at points where nothing is Gaussian."""
    process = PROCESSES[name]
    x, y, mu, nu = clouds()
    bridge = static_bridge(x, y, process, mu, nu, tol=1e-13)
    at = torch.tensor([[0.1, -0.3], [1.2, 0.8], [-0.9, 0.4]], dtype=F64)
    for t in (0.3 * process.T, 0.8 * process.T):
        h = 1e-3 * process.T
        p = [bridge.marginal(t + k * h).log_prob(at) for k in (-2, -1, 1, 2)]
        change = (8 * (p[2] - p[1]) - (p[3] - p[0])) / (12 * h)

        def score(z, t=t):
            z = z.detach().requires_grad_() if not z.requires_grad else z
            return torch.autograd.grad(bridge.marginal(t).log_prob(z).sum(), z, create_graph=True)[0]

        def divergence(fn):
            jacobian = torch.autograd.functional.jacobian(lambda z: fn(z).sum(0), at, create_graph=False)
            return sum(jacobian[i, :, i] for i in range(2))

        s, g2 = score(at).detach(), process.diffusion(t) ** 2
        f, b = bridge.forward_drift(t, at), bridge.backward_drift(t, at)
        right = -divergence(lambda z, t=t: bridge.forward_drift(t, z)) - (f * s).sum(1)
        right = right + g2 / 2 * (divergence(score) + s.square().sum(1))
        close(change, right, 1e-7)
        close(f - b, g2 * s, 1e-10)


def test_marginals_end_in_the_weighted_points():
    x, y, mu, nu = clouds()
    bridge = static_bridge(x, y, hb.OU(), mu, nu, tol=1e-13)
    for t, points, weights in ((0.0, x, mu), (5.0, y, nu)):
        law = bridge.marginal(t)
        close(law.mean, weights @ points, 1e-12)
        close(law.cov, (points - weights @ points).T @ np.diag(weights) @ (points - weights @ points), 1e-12)
    assert len(bridge.marginal(1.0)) == 35
    assert float(bridge.marginal(0.0).components[0].cov.abs().max()) == 0


def test_paths_join_the_points_with_the_couplings_frequencies():
    """Frequencies of the 35 pairs within 5 standard errors; the middle is the pinned reference, and bits do not depend on the batch."""
    x, y, mu, nu = clouds()
    bridge, n = static_bridge(x, y, hb.Brownian(0.7), mu, nu), 20_000
    paths = bridge.sample_paths(n, [0.0, 0.4, 1.0], seed=2)
    start = torch.cdist(paths[0], bridge.x0).argmin(1)
    end = torch.cdist(paths[2], bridge.x1).argmin(1)
    assert torch.equal(paths[0], bridge.x0[start])
    assert torch.equal(paths[2], bridge.x1[end])
    share = torch.bincount(5 * start + end, minlength=35).reshape(7, 5) / n
    error = (bridge.coupling * (1 - bridge.coupling) / n).sqrt()
    assert bool(((share - bridge.coupling).abs() < 5 * error + 1e-12).all())
    z = hb.kernels.normal((n, 2), 2, draw=2, dtype=F64)
    close(paths[1], 0.6 * paths[0] + 0.4 * paths[2] + 0.7 * math.sqrt(0.24) * z, 1e-13)
    assert torch.equal(bridge.sample_paths(3, [0.0, 0.4, 1.0], seed=2, first=11), paths[:, 11:14])


def test_sdes_carry_the_points_across():
    """One mode to two: Euler-Maruyama from the start ends at the points with their weights, within 5 standard errors."""
    bridge = static_bridge([[0.0], [0.1]], [[-1.0], [2.0]], hb.Brownian(0.8), None, [0.3, 0.7])
    n, start = 4000, torch.zeros(4000, 1, dtype=F64)
    grid = np.linspace(0.0, 0.99, 101)
    x = hb.solve(bridge.forward_sde(), hb.EulerMaruyama(), start, grid=grid, seed=0).x
    pi = bridge.coupling[0] / bridge.coupling[0].sum()  # from x_0 = 0
    assert float((x > 0.5).double().mean()) == pytest.approx(float(pi[1]), abs=5 * math.sqrt(0.25 / n) + 0.01)
    near = torch.minimum((x + 1).abs(), (x - 2).abs())
    assert float(near.mean()) < 0.12  # 0.8 sqrt(0.01) = 0.08 is left to go
    y = hb.solve(bridge.backward_sde(), hb.EulerMaruyama(), start + 2.0, grid=1 - grid, seed=0).x
    assert float((y - 0.05).abs().mean()) < 0.15


def test_it_says_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"pip install 'halfbridge\[transport\]'"):
        static_bridge([[0.0]], [[1.0]], hb.Brownian())


def test_it_warns_where_sinkhorn_has_not_converged():
    x, y, mu, nu = clouds()
    with pytest.warns(RuntimeWarning, match=r"`max_iterations` = 11 with a marginal error of .*raise max_iterations"):
        early = static_bridge(3 * x, 3 * y, hb.Brownian(0.3), mu, nu, tol=1e-12, max_iterations=11)
    assert early.iterations == 11
    assert early.errors.x0 < 1e-12 < early.errors.x1
    done = static_bridge(x, y, hb.Brownian(), mu, nu)
    assert done.errors.x1 < 1e-8
    assert "7 x 5 points, dim=2" in repr(done)


def test_little_noise_without_convergence_warns_once_and_of_that():
    """POT's e^f and e^g overflow: with the filters open, only this library's warning comes out."""
    x, y, mu, nu = clouds()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        static_bridge(3 * x, 3 * y, hb.Brownian(0.03), mu, nu, max_iterations=11)
    assert [str(w.message).split(" after ")[0] for w in caught] == ["Sinkhorn stopped"]


def test_little_noise_does_not_underflow():
    """exp(-|x - y|^2/(2 V)) is 0 in float64 for V = 1e-5; the log domain leaves the assignment that transport picks."""
    bridge = static_bridge([[0.0], [1.0]], [[1.1], [0.1]], hb.Brownian(3e-3))
    close(bridge.coupling, [[0.0, 0.5], [0.5, 0.0]], 1e-12)
    assert bool(bridge.forward_drift(0.5, torch.tensor([[0.3]], dtype=F64)).isfinite().all())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x0": np.zeros((2, 3, 4))}, ValueError, r"`x0` must have shape \(n, d\).*got \(2, 3, 4\)"),
        ({"x1": np.zeros((0, 2))}, ValueError, "`x1` must have shape"),
        ({"x1": [[1.0, math.nan]]}, ValueError, "`x1` must be finite"),
        ({"x1": [[1.0], [2.0]]}, ValueError, r"`x0` has shape \(7, 2\) and `x1` \(2, 1\)"),
        ({"weights0": [0.5, 0.5]}, ValueError, r"`weights0` must have shape \(7,\), one weight a point, got \(2,\)"),
        ({"weights1": np.ones(5)}, ValueError, "`weights1` must sum to 1, but they sum to 5"),
        ({"weights1": [2.0, -1, 0, 0, 0]}, ValueError, r"`weights1` must be >= 0, but weights1\[1\] = -1"),
        ({"reference": "OU"}, TypeError, "`reference` must be a linear process.*got str"),
        ({"tol": 0.0}, ValueError, r"`tol` = 0\.0"),
        ({"tol": "1e-9"}, ValueError, "`tol` = '1e-9' must be a positive number"),
        ({"max_iterations": 0}, ValueError, "`max_iterations` = 0"),
        ({"max_iterations": "3"}, ValueError, "`max_iterations` = '3' must be a whole number"),
        ({"max_iterations": 2.5}, ValueError, r"`max_iterations` = 2\.5 must be a whole number"),
    ],
)
def test_bad_input_is_named(change, error, message):
    x, y, *_ = clouds()
    with pytest.raises(error, match=message):
        static_bridge(**{"x0": x, "x1": y, "reference": hb.OU(), **change})


def test_drifts_are_refused_where_they_are_infinite():
    bridge = static_bridge([[0.0, 0.0]], [[1.0, 1.0]], hb.OU())
    x = gaussian(2, 0).sample(3, 0)
    with pytest.raises(ValueError, match=r"forward_drift at t = 5 is infinite"):
        bridge.forward_drift(5.0, x)
    with pytest.raises(ValueError, match=r"backward_drift at t = 0 is infinite"):
        bridge.backward_drift(0.0, x)
    with pytest.raises(ValueError, match=r"`t` = 6\.0 "):
        bridge.marginal(6.0)
    A, w = hb.OU().transition(2.0, 5.0)
    close(bridge.forward_drift(2.0, x), -0.5 * x + A / w * (1 - A * x), 1e-13)  # one point: the pinned process
