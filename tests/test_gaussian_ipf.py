"""gaussian_ipf: against disintegration of whole chains, the static recursion, the closed-form bridge, and DSB's recursion."""

import itertools
import math

import numpy as np
import pytest
import torch
from bridges import PROCESSES, gaussian

import halfbridge as hb
from halfbridge.solvers.reference.gaussian_bridge import GaussianBridge
from halfbridge.solvers.reference.gaussian_chain import AffineKernels, GaussianChain
from halfbridge.solvers.reference.gaussian_ipf import gaussian_ipf

P0, P1 = gaussian(2, 0), gaussian(2, 1)
NEAR0 = hb.reference.Gaussian([0.5, -1.0], [[0.8, 0.3], [0.3, 0.5]])  # EQUATIONS.md H.3's experiment: T = 1, f = -x/2
NEAR1 = hb.reference.Gaussian([-0.6, 0.4], [[0.6, -0.2], [-0.2, 1.0]])
ONE = hb.OU(0.5, 1.0, 1.0)
by_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def close(ours, theirs, tol):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tol * max(1.0, np.abs(theirs).max()))


def project(mean, cov, end, law):
    """The Gaussian with this law of x_end (a slice) and the conditional law of the rest kept: by Schur complements."""
    mean, cov = np.asarray(mean), np.asarray(cov)
    gain = cov[:, end] @ np.linalg.inv(cov[end, end])  # of E[x | x_end]; the identity on x_end itself
    return mean + gain @ (np.asarray(law.mean) - mean[end]), cov + gain @ (np.asarray(law.cov) - cov[end, end]) @ gain.T


@by_process
def test_every_iterate_is_the_projection_of_the_one_before(process):
    """pi^{n+1} = p1(x_N) pi^n(rest | x_N), or p0(x_0) pi^n(rest | x_0), on the whole chain."""
    times = process.T * np.array([0.0, 0.1, 0.35, 0.4, 1.0])
    iterates = gaussian_ipf(P0, P1, process, times, 6)
    assert [it.index for it in iterates] == list(range(7))
    assert iterates[3].steps == 4
    np.testing.assert_array_equal(iterates[3].times, times)
    for old, new in itertools.pairwise(iterates):
        end, law = (slice(8, 10), P1) if new.index % 2 else (slice(0, 2), P0)
        mean, cov = project(old.law.mean, old.law.cov, end, law)
        close(new.law.mean, mean, 1e-12)
        close(new.law.cov, cov, 1e-12)
        kept = "backward" if new.index % 2 else "forward"
        assert getattr(new, kept) is getattr(old, kept)


@by_process
def test_iterate_0_is_the_reference_from_p0(process):
    law = gaussian_ipf(P0, P1, process, 3, 1)[0].law
    alphas = [process.alpha(k * process.T / 3) for k in range(4)]
    for j, k in itertools.combinations_with_replacement(range(4), 2):
        s, v = k * process.T / 3, process.sigma(j * process.T / 3) ** 2
        cov = alphas[j] * alphas[k] * np.asarray(P0.cov) + alphas[k] / alphas[j] * v * np.eye(2)
        close(law.cov[2 * j : 2 * j + 2, 2 * k : 2 * k + 2], cov, 1e-12)
        close(law.mean[2 * k : 2 * k + 2], process.alpha(s) * np.asarray(P0.mean), 1e-14)


def test_kernels_laws_and_couplings_of_an_iterate_agree():
    for it in gaussian_ipf(P0, P1, hb.VP(), 5, 4, "fixed"):
        law = it.law
        mean, cov = law.mean.reshape(6, 2), law.cov.reshape(6, 2, 6, 2).permute(0, 2, 1, 3)
        close(it.coupling().cov[:2, 2:], cov[0, 5], 1e-12)
        for k in range(5):
            for kernels, a, b in ((it.forward, k, k + 1), (it.backward, k + 1, k)):
                gain, offset, noise = (part[k] for part in kernels)
                close(gain @ cov[a, a], cov[b, a], 1e-11)
                close(gain @ mean[a] + offset, mean[b], 1e-11)
                close(gain @ cov[a, a] @ gain.mT + noise, cov[b, b], 1e-11)
            assert it.marginal(k).w2(hb.reference.Gaussian(mean[k], cov[k, k])) < 1e-12


@pytest.mark.parametrize("name", ["Brownian", "OU", "VP", "EDM", "CosineVP", "LinearProcess"])
def test_exact_ipf_converges_to_the_closed_form_bridge(name):
    process = PROCESSES[name]
    bridge = GaussianBridge(P0, P1, process)
    rho = float(bridge.correlations[0])
    last = gaussian_ipf(
        P0, P1, process, process.T * np.array([0.0, 0.3, 0.8, 1.0]), 2 * math.ceil(13 / -math.log10(rho**2))
    )[-1]
    close(last.coupling().cov, bridge.coupling().cov, 1e-10)
    close(last.law.cov, bridge.joint(last.times).cov, 1e-10)
    close(last.law.mean, bridge.joint(last.times).mean, 1e-10)
    assert last.kl_to_previous < 1e-20


def test_ends_follow_the_static_recursion():
    """U <- S_0^-1 + k^2 V^-1, V <- S_1^-1 + k^2 U^-1 on the precision [[U, -k I], [-k I, V]] of the ends, k = alpha/sigma^2."""
    process = hb.OU(0.5, 1.3, 2.0)
    k, v = process.alpha(2.0) / process.sigma(2.0) ** 2, process.sigma(2.0) ** 2
    S0, S1 = (np.linalg.inv(np.asarray(p.cov)) for p in (P0, P1))
    U, V = S0 + process.alpha(2.0) ** 2 / v * np.eye(2), np.eye(2) / v  # the reference from p0
    for it in gaussian_ipf(P0, P1, process, 4, 8):
        if it.index % 2:
            V = S1 + k**2 * np.linalg.inv(U)
        elif it.index:
            U = S0 + k**2 * np.linalg.inv(V)
        close(torch.linalg.inv(it.coupling().cov), np.block([[U, -k * np.eye(2)], [-k * np.eye(2), V]]), 1e-11)


def test_the_first_half_bridge_runs_the_exact_posterior_kernels():
    """pi^1 is the score-based model of p0 with the exact score, started from p1: E[x_s | x_t] = (x + v score)/r."""
    process, grid = hb.VP(), np.linspace(0.0, 1.0, 9)
    p0, p1 = hb.reference.Gaussian([0.4], 0.3), hb.reference.Gaussian([0.0], 1.0)
    pi1 = gaussian_ipf(p0, p1, process, grid, 1)[1]
    for k in range(1, 8):
        t, s = grid[k + 1], grid[k]
        r, v = process.transition(s, t)
        S, at = (process.alpha(s) ** 2 * 0.3 + process.sigma(s) ** 2), process.alpha(t)
        assert float(pi1.backward.gain[k]) == pytest.approx(r * S / (r**2 * S + v), rel=1e-12)
        x = torch.tensor([[0.7]], dtype=torch.float64)
        score = -(x - at * 0.4) / (r**2 * S + v)  # Tweedie: E[x_s | x_t] = (x + v score)/r
        assert float(pi1.backward.gain[k] * 0.7 + pi1.backward.offset[k]) == pytest.approx(
            float((x + v * score) / r), rel=1e-12
        )


@pytest.mark.parametrize("variance", ["exact", "fixed"])
def test_kls_are_those_of_the_whole_laws(variance):
    iterates = gaussian_ipf(P0, P1, ONE, 6, 5, variance)
    assert iterates[0].kl_to_previous is iterates[0].kl_from_previous is None
    assert iterates[-1].kl_to_next is iterates[-1].kl_from_next is None
    for old, new in itertools.pairwise(iterates):
        there, back = old.law.kl(new.law), new.law.kl(old.law)
        assert old.kl_to_next == new.kl_from_previous == pytest.approx(there, rel=1e-9)
        assert new.kl_to_previous == old.kl_from_next == pytest.approx(back, rel=1e-9)
        for end in (0, -1):
            assert old.kl(new, end) == pytest.approx(there, rel=1e-9)


@pytest.mark.parametrize("narrow", [0.3, 1e-9, 1e-15, 1e-17, 1e-30])
@pytest.mark.parametrize("end", [0, -1])
def test_kl_of_narrow_kernels_to_wide_ones_keeps_its_digits(narrow, end):
    """The same law at that end, kernels N(x, diag(narrow, 1.3)) against N(x, I): half of v - 1 - log v each, three steps."""
    gain, offset = torch.eye(2, dtype=torch.float64).expand(3, 2, 2), torch.zeros(3, 2, dtype=torch.float64)
    make = GaussianChain.from_start if end == 0 else GaussianChain.from_end
    cov = torch.diag(torch.tensor([narrow, 1.3], dtype=torch.float64)).expand(3, 2, 2)
    ours, wide = (make(P0, AffineKernels(gain, offset, c)) for c in (cov, gain))
    assert ours.kl(wide, end) == pytest.approx(1.5 * sum(v - 1 - math.log(v) for v in (narrow, 1.3)), rel=1e-13)


def problems():
    """Random Gaussians in 1 to 3 dimensions, of scales from 1/4 to 4, and noises from weak to strong."""
    rng = np.random.default_rng(0)
    for seed in range(24):
        d, scales, g = 1 + seed % 3, 4 ** rng.uniform(-1, 1, 2), 4 ** rng.uniform(-1, 1)
        yield gaussian(d, seed, scales[0]), gaussian(d, 100 + seed, scales[1]), hb.Brownian(g)


def test_kls_of_exact_ipf_decrease_as_proposition_4_of_dsb_says():
    """KL(pi^{n+1} || pi^n) <= KL(pi^{n-1} || pi^n), KL(pi^n || pi^{n+1}) <= KL(pi^n || pi^{n-1}); so does their sum."""
    for p0, p1, reference in problems():
        for it in gaussian_ipf(p0, p1, reference, 2, 10)[1:-1]:
            slack = 1e-10 * it.kl_to_previous + 1e-24
            assert it.kl_from_next <= it.kl_from_previous + slack
            assert it.kl_to_next <= it.kl_to_previous + slack
            assert it.kl_to_next + it.kl_from_next <= it.kl_to_previous + it.kl_from_previous + slack


def test_each_projection_brings_the_bridge_nearer_by_its_own_length():
    """Pythagoras: KL(pi* || pi^n) - KL(pi* || pi^{n+1}) = KL(pi^{n+1} || pi^n)."""
    iterates = gaussian_ipf(P0, P1, ONE, 3, 6)
    star = GaussianBridge(P0, P1, ONE).joint(iterates[0].times)
    for old, new in itertools.pairwise(iterates):
        assert star.kl(old.law) - star.kl(new.law) == pytest.approx(new.kl_to_previous, rel=1e-8)


def test_the_inequalities_with_one_side_turned_round_are_false():
    """KL(pi^{n+1} || pi^n) <= KL(pi^n || pi^{n-1}) fails at n = 1 and the other at n = 2 for a wide p0 and weak noise."""
    it = gaussian_ipf(hb.reference.Gaussian([0.0], 100.0), hb.reference.Gaussian([0.0], 0.2), hb.Brownian(0.3), 1, 3)
    assert it[1].kl_from_next > 50 * it[1].kl_to_previous
    assert it[2].kl_to_next > 30 * it[2].kl_from_previous


@pytest.mark.parametrize("name", ["Brownian", "OU", "EDM"])
def test_ipf_contracts_by_the_square_of_the_largest_correlation(name):
    """A sweep shrinks the error of the mean by rho^2 and that of the covariance by rho^4."""
    process = PROCESSES[name]
    bridge = GaussianBridge(P0, P1, process)
    rate = float(bridge.correlations[0]) ** 2
    at = int(3 / -math.log10(rate)) + 2
    ends = [it.marginal(-1) for it in gaussian_ipf(P0, P1, process, 1, 2 * at + 2)[::2]]
    mean, cov = (
        [float((a - b).norm()) for a in part]
        for part, b in (([e.mean for e in ends], P1.mean), ([e.cov for e in ends], P1.cov))
    )
    assert mean[at + 1] / mean[at] == pytest.approx(rate, rel=0.02)
    half = at // 2
    assert cov[half + 1] / cov[half] == pytest.approx(rate**2, rel=0.1)


def dsb_by_scores(p0, p1, gains, noises, sweeps):
    """De Bortoli et al. 2021, section 3.2: b_{k+1} = -f_k + 2 grad log p_{k+1}, f_k <- -b_{k+1} + 2 grad log q_k.

    Affine drifts gamma f(x) = L x + l, kernel variances 2 gamma = noises; nothing but marginals is used.
    """
    d, eye = p0.dim, np.eye(p0.dim)
    f = [((a - 1) * eye, np.zeros(d)) for a in gains]
    for _ in range(sweeps):
        p = [(np.asarray(p0.mean), np.asarray(p0.cov))]
        for (L, c), v in zip(f, noises, strict=True):
            m, P = p[-1]
            p.append((m + L @ m + c, (eye + L) @ P @ (eye + L).T + v * eye))
        b = []
        for (L, c), v, (m, P) in zip(f, noises, p[1:], strict=True):
            score = -v * np.linalg.inv(P)
            b.append((-L + score, -c - score @ m))
        q = [(np.asarray(p1.mean), np.asarray(p1.cov))]
        for (L, c), v in zip(b[::-1], noises[::-1], strict=True):
            m, P = q[0]
            q.insert(0, (m + L @ m + c, (eye + L) @ P @ (eye + L).T + v * eye))
        f = []
        for (L, c), v, (m, P) in zip(b, noises, q[:-1], strict=True):
            score = -v * np.linalg.inv(P)
            f.append((-L + score, -c - score @ m))
    return p, b, q, f


@pytest.mark.parametrize("process", [ONE, hb.VP(0.1, 2.0), hb.EDM(0.002, 2.0)], ids=["OU", "VP", "EDM"])
def test_fixed_variance_ipf_is_dsbs_score_recursion(process):
    times = process.T * np.linspace(0.0, 1.0, 9) ** 1.5
    middle, step = (times[1:] + times[:-1]) / 2, np.diff(times)
    gains = [1 + process.drift_rate(float(m)) * h for m, h in zip(middle, step, strict=True)]
    noises = [process.diffusion(float(m)) ** 2 * h for m, h in zip(middle, step, strict=True)]
    iterates = gaussian_ipf(P0, P1, process, times, 6, "fixed")
    for sweep in (1, 3):
        p, b, q, f = dsb_by_scores(P0, P1, gains, noises, sweep)
        even, odd, last = iterates[2 * sweep - 2], iterates[2 * sweep - 1], iterates[2 * sweep]
        close(even.means, [m for m, _ in p], 1e-11)
        close(even.covs, [P for _, P in p], 1e-11)
        close(odd.means, [m for m, _ in q], 1e-11)
        close(odd.covs, [P for _, P in q], 1e-11)
        close(odd.backward.gain, [np.eye(2) + L for L, _ in b], 1e-11)
        close(odd.backward.offset, [c for _, c in b], 1e-11)
        close(last.forward.gain, [np.eye(2) + L for L, _ in f], 1e-11)
        close(last.forward.offset, [c for _, c in f], 1e-11)
        for it, kernels in ((even, even.forward), (odd, odd.backward), (last, last.forward)):
            close(kernels.cov, [v * np.eye(2) for v in noises], 1e-15)
            assert torch.equal(it.means[0 if it is not odd else -1], (P0 if it is not odd else P1).mean)


def test_mean_matching_is_the_regression_of_dsbs_proposition_3():
    """argmin E|B(X_{k+1}) - (X_{k+1} + F(X_k) - F(X_{k+1}))|^2 by normal equations on the joint law of the pair."""
    even, odd = gaussian_ipf(P0, P1, ONE, 5, 1, "fixed")
    law, k = even.law, 2
    here, there = slice(2 * k, 2 * k + 2), slice(2 * k + 2, 2 * k + 4)
    F = even.forward.gain[k]
    joint = law.cov[there, there]
    target = joint + F @ law.cov[here, there] - F @ joint  # Cov(target, X_{k+1})
    gain = target @ torch.linalg.inv(joint)
    close(odd.backward.gain[k], gain, 1e-13)
    mean = law.mean[there] + F @ (law.mean[here] - law.mean[there])
    close(odd.backward.gain[k] @ law.mean[there] + odd.backward.offset[k], mean, 1e-13)


def test_end_marginals_of_dsb_are_off_by_its_step():
    """After 15 sweeps IPF itself is done; halving gamma halves what is left (the paper's chains carry it too)."""
    errors = []
    for steps in (20, 40, 80):
        *_, odd, even = gaussian_ipf(NEAR0, NEAR1, ONE, steps, 30, "fixed")
        errors.append([
            float((even.marginal(-1).mean - NEAR1.mean).norm()), float((even.marginal(-1).cov - NEAR1.cov).norm()),
            float((odd.marginal(0).mean - NEAR0.mean).norm()), float((odd.marginal(0).cov - NEAR0.cov).norm()),
        ])  # fmt: skip
    assert 0.02 < errors[-1][0] < 0.06  # H.3: 2.9e-2 at N = 80 for its laws
    for coarse, fine in itertools.pairwise(errors):
        np.testing.assert_allclose(np.array(fine) / coarse, 0.5, atol=0.07)


def test_coupling_of_dsb_drifts_from_the_bridge_by_a_step_an_iteration():
    """The exact iteration has converged by then: what moves is the bias, half as fast at half the step, to a common offset."""
    bridge = GaussianBridge(NEAR0, NEAR1, ONE).coupling()
    exact = gaussian_ipf(NEAR0, NEAR1, ONE, 40, 24)[-1]
    assert float((exact.coupling().cov - bridge.cov).abs().max()) < 1e-6

    def error(it):
        return float((it.coupling().cov - bridge.cov)[:2, 2:].abs().max())

    drifts, starts = [], []
    for steps in (80, 160):
        iterates = gaussian_ipf(NEAR0, NEAR1, ONE, steps, 16, "fixed")
        starts.append(error(iterates[6]))
        drifts.append((error(iterates[16]) - error(iterates[8])) / 4)
    assert starts[1] / starts[0] == pytest.approx(0.5, abs=0.05)
    assert drifts[1] / drifts[0] == pytest.approx(0.5, abs=0.12)
    assert 5e-5 < drifts[1] < 1e-3
    coarse, fine = (error(gaussian_ipf(NEAR0, NEAR1, ONE, n, 15 * n, "fixed")[-1]) for n in (10, 20))
    assert 0.7 < fine / coarse < 0.8  # saturated, and not halved: an offset stays
    assert 0.01 < fine < 0.025  # H.3: 1.5e-2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"p0": hb.reference.Gaussian([0, 0], [[1, 1], [1, 1]])},
            ValueError,
            "`p0` has a singular covariance, of rank 1 in 2",
        ),
        ({"p1": hb.reference.Gaussian([0, 0], 0.0)}, ValueError, "`p1` has a singular covariance, of rank 0 in 2"),
        ({"p1": gaussian(3, 0)}, ValueError, "`p1` has dimension 3, but `p0` has 2"),
        ({"p0": 1.0}, ValueError, r"`p0` must be an hb\.reference\.Gaussian, got float"),
        ({"reference": None}, TypeError, "`reference` must be a linear process.*got NoneType"),
        ({"variance": "posterior"}, ValueError, "`variance` = 'posterior' is not 'exact'"),
        ({"iterations": 0}, ValueError, "`iterations` = 0 must be a whole number, at least 1"),
        ({"iterations": 2.0}, ValueError, r"`iterations` = 2\.0"),
        ({"steps": 0}, ValueError, "`steps` = 0 must be a whole number, at least 1"),
        ({"steps": True}, ValueError, "`steps` = True"),
        ({"steps": [0.0, 0.5]}, ValueError, r"`steps` runs from 0\.0 to 0\.5, but .*T = 1\.0"),
        ({"steps": [1.0, 0.5, 0.0]}, ValueError, r"`steps` runs from 1\.0 to 0\.0"),
        ({"steps": [0.0, 0.7, 0.7, 1.0]}, ValueError, "strictly one way"),
    ],
)
def test_bad_input_is_named(change, error, message):
    good = {"p0": P0, "p1": P1, "reference": ONE, "steps": 3, "iterations": 2}
    with pytest.raises(error, match=message):
        gaussian_ipf(**{**good, **change})


def test_chains_of_different_length_have_no_kl():
    with pytest.raises(ValueError, match=r"means of shape \(3, 2\) and this chain \(4, 2\)"):
        gaussian_ipf(P0, P1, ONE, 3, 1)[0].kl(gaussian_ipf(P0, P1, ONE, 2, 1)[0])


@pytest.mark.parametrize("end", [1, 3, -2, 0.5, True, False])
def test_a_kl_from_no_end_of_the_chain_is_refused(end):
    first, second = gaussian_ipf(P0, P1, ONE, 3, 1)
    with pytest.raises(ValueError, match=f"`end` = {end!r} is no end of a chain; pass 0 for x_0, or -1 for x_N"):
        first.kl(second, end)
