"""What half-bridges are regressed onto: equal minimisers, labels, and the first half-bridge as a score-based model."""

import math

import numpy as np
import pytest
import torch
from bridges import gaussian
from exact_moments import LAW, PROBE, exact_sample, minimiser

import halfbridge as hb
from halfbridge.training.bridge import (
    TARGETS,
    AffineRegressor,
    AffineTransitions,
    Diagonal,
    Direction,
    Full,
    HalfBridge,
    Isotropic,
    Pair,
    PathLaw,
    ReferenceChain,
    ReferenceTransitions,
    ScoreTransitions,
    Sum,
    Transitions,
    affine_of,
    gaussian_chain,
    reference_iterate,
    residual_covariances,
    simulate,
    variance_ratio,
)
from halfbridge.training.bridge.affine_regressor import least_squares
from halfbridge.training.bridge.targets import check_target
from halfbridge.training.losses import denoising_loss

F64 = torch.float64
CHAIN = ReferenceChain.dsb([0.1, 0.2, 0.4], rate=0.5)
WAYS = pytest.mark.parametrize("direction", Direction, ids=lambda d: d.value)
OU = hb.OU(0.5, 1.0, 2.0)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tol=1e-12):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=tol, atol=tol)


def affine_law(direction, seed=0):
    """A chain with affine means far from symmetric and variances 2 gamma."""
    gain = torch.eye(2, dtype=F64) + 0.3 * random(3, 2, 2, seed=seed)
    return PathLaw(gaussian(2, seed), AffineTransitions(CHAIN, direction, gain, random(3, 2, seed=seed + 1)))


@WAYS
def test_mean_drift_and_score_matching_have_one_minimiser(direction):
    """2 x - M(x) + 2 gamma grad log p(x), with p the marginal at x: the score recursion of De Bortoli et al. 2021."""
    half = HalfBridge(0, affine_law(direction))
    fits = [affine_of(AffineRegressor(target=t).fit(half), 2) for t in ("mean", "drift", "score")]
    chain, x = gaussian_chain(half.law), random(5, 2, seed=8)
    for k in half.direction.leaves(3):
        j = half.direction.interval(k)
        score = -torch.linalg.solve(chain.covs[k], (x - chain.means[k])[..., None])[..., 0]
        want = 2 * x - half.law.transitions.mean(half.direction.arrives(k), x) + 2 * CHAIN.gammas[j] * score
        for fit in fits:
            close(x @ fit.gain[j].mT + fit.offset[j], want)
            close(fit.cov[j], 2 * CHAIN.gammas[j] * torch.eye(2, dtype=F64))


@WAYS
def test_increments_have_the_exact_conditional_mean_as_minimiser(direction):
    half = HalfBridge(0, affine_law(direction))
    fit, chain = affine_of(AffineRegressor(target="increment").fit(half), 2), gaussian_chain(half.law)
    exact = chain.backward if half.direction is Direction.BACKWARD else chain.forward
    close(fit.gain, exact.gain)
    close(fit.offset, exact.offset)


def test_mean_matching_and_increments_differ_by_gamma_squared():
    """By gamma E[m(there) - m(here) | here], M(x) = x + gamma m(x): a quarter at half the step."""
    gaps = []
    for n in (40, 80):
        chain = ReferenceChain(OU, n, "euler")
        half = HalfBridge(0, PathLaw(LAW, ReferenceTransitions(chain)))
        plain, matched = (affine_of(AffineRegressor(target=t).fit(half), 2) for t in ("increment", "mean"))
        gap = matched.gain[n // 2] - plain.gain[n // 2]
        m = (chain.gains[0] - 1) / chain.gammas[0]
        close(gap, chain.gammas[0] * m * (plain.gain[n // 2] - torch.eye(2)))
        gaps.append(float(gap.norm()))
    assert gaps[1] / gaps[0] == pytest.approx(0.25, abs=0.02)


def test_minimisers_agree_on_a_nonlinear_chain_of_a_mixture():
    """One step y = F(x) + sqrt(2 gamma) z in one dimension, E[target | y] by quadrature; grad log p(y) by differences."""
    gamma, x = 0.15, np.linspace(-12, 12, 48_001)
    p = 0.3 * np.exp(-((x + 2) ** 2) / 0.5) / math.sqrt(0.5) + 0.7 * np.exp(-((x - 1) ** 2) / 2.0) / math.sqrt(2.0)

    def F(x):
        return x + gamma * (np.sin(2 * x) - x)

    def density(y):
        return float((p * np.exp(-((y - F(x)) ** 2) / (4 * gamma))).sum())

    for y in (-2.5, -0.4, 0.9, 2.0):
        weights = torch.from_numpy(p * np.exp(-((y - F(x)) ** 2) / (4 * gamma)))
        here, there = torch.full_like(weights, y), torch.from_numpy(x)
        pair = Pair(1, here, there, torch.from_numpy(F(x)), torch.from_numpy(F(y * np.ones(1))).expand_as(here), gamma)
        means = {}
        for name, target in TARGETS.items():
            learned = (weights @ target.value(pair) / weights.sum()).reshape(1)
            vectors, factors = target.mean(
                torch.tensor([y], dtype=F64), learned, Sum([pair.teacher_here[:1]], [1.0]), gamma
            )
            means[name] = sum(c * float(v) for c, v in zip(factors, vectors, strict=True))
        score = (math.log(density(y + 1e-4)) - math.log(density(y - 1e-4))) / 2e-4
        want = 2 * y - F(np.float64(y)) + 2 * gamma * score
        for name in ("mean", "drift", "score"):
            assert means[name] == pytest.approx(want, abs=1e-6)
        assert means["mean"] == pytest.approx(means["score"], abs=1e-12)
        assert means["drift"] == pytest.approx(means["score"], abs=1e-12)
        assert means["increment"] == pytest.approx(float(weights @ there / weights.sum()), abs=1e-12)
        assert abs(means["increment"] - means["mean"]) > 1e-3


class Spy(Transitions):
    """A teacher whose means tell their label: M_k(x) = x + 100 k."""

    def terms(self, k, x):
        return Sum([x + 100.0 * k], [1.0])


@WAYS
def test_the_teacher_is_called_with_the_label_of_the_state_it_left_at_both_points(direction):
    """F_k(X_k) - F_k(X_{k+1}) and B_{k+1}(X_{k+1}) - B_{k+1}(X_k); the new kernel's label is that of `here`."""
    half = HalfBridge(0, PathLaw(gaussian(2, 0), Spy(CHAIN, direction)))
    seen = []
    for pair in half.pairs(3, 0, means=True):
        label = direction.leaves(3)[len(seen)]
        close(pair.teacher_there - pair.there, torch.full((3, 2), 100.0 * label), 1e-9)
        close(pair.teacher_here - pair.here, torch.full((3, 2), 100.0 * label), 1e-9)
        close(TARGETS["drift"].value(pair), (pair.there - pair.here) / pair.gamma, 1e-9)
        seen.append((pair.k, pair.gamma))
    forward = [(1, 0.1), (2, 0.2), (3, 0.4)]
    close(seen, forward if direction is Direction.FORWARD else [(2, 0.4), (1, 0.2), (0, 0.1)])
    assert half.direction is direction.other


# The first half-bridge


def test_the_first_backward_regression_is_denoising_score_matching():
    """The minimiser of `denoising_loss` at the time of x_k, as kernels, is that of mean matching from x_{k-1} to x_k.

    Both are computed: the loss over affine networks on a sample with exact moments, against the regression over one step.
    """
    chain = ReferenceChain(OU, 5)
    fit = affine_of(AffineRegressor(target="mean").fit(HalfBridge(0, PathLaw(LAW, ReferenceTransitions(chain)))), 2)
    x0, z = exact_sample()
    for k in range(1, 6):
        t = torch.full((len(x0),), chain.times[k], dtype=F64)
        score = minimiser(lambda net, t=t: denoising_loss(net, OU, x0, t, z, predicts="score").mean())
        r, gamma = chain.gains[k - 1], chain.gammas[k - 1]
        close(PROBE @ fit.gain[k - 1].mT + fit.offset[k - 1], (2 - r) * PROBE + 2 * gamma * score, 1e-10)


@pytest.mark.parametrize("process", [OU, hb.VP(0.1, 4.0), hb.EDM(0.002, 3.0)], ids=["OU", "VP", "EDM"])
def test_an_sgm_is_the_first_backward_kernels(process):
    """Fixed: mean matching of pi^0, exactly; matched: the exact means of its reversal, with covariances of a second regression."""
    data, chain = gaussian(2, 5), ReferenceChain(process, 6)
    half = reference_iterate(data, gaussian(2, 6), chain).half_bridge
    fixed, matched = (affine_of(AffineRegressor(v).fit(half), 2) for v in ("fixed", "matched"))
    field = data.field(process)
    close(affine_of(ScoreTransitions(chain, field), 2).gain, fixed.gain, 1e-11)
    close(affine_of(ScoreTransitions(chain, field), 2).offset, fixed.offset, 1e-11)
    close(affine_of(ScoreTransitions(chain, field), 2).cov, fixed.cov, 1e-11)
    tied = affine_of(ScoreTransitions(chain, field, [Full(C) for C in matched.cov]), 2)
    for ours, theirs in zip(tied, matched, strict=True):
        close(ours, theirs, 1e-10)


def test_an_sgm_on_a_mixture_is_the_conditional_mean_of_eq_12():
    """E[X_{k+1} + F_k(X_k) - F_k(X_{k+1}) | X_{k+1}] by quadrature over X_k, in one dimension."""
    mixture = hb.reference.GaussianMixture([0.4, 0.6], [[-1.5], [1.0]], 0.2)
    chain = ReferenceChain(OU, 4)
    kernels = ScoreTransitions(chain, mixture.field(OU))
    x = torch.linspace(-12, 12, 24_001, dtype=F64)[:, None]
    for k, y in ((3, -0.7), (2, 1.4)):
        r, v = chain.gains[k - 1], 2 * chain.gammas[k - 1]
        weights = (mixture.at(OU, chain.times[k - 1]).log_prob(x) - (y - r * x[:, 0]) ** 2 / (2 * v)).exp()
        target = y + r * x[:, 0] - r * y
        got = float(kernels.mean(k, torch.tensor([[y]], dtype=F64)))
        assert got == pytest.approx(float(weights @ target / weights.sum()), abs=1e-10)


def test_the_first_half_bridge_runs_like_the_reverse_diffusion_sampler():
    """The same steps and the same counted noise as hb.solve with ReverseDiffusion on the chain's times, down to the first."""
    mixture = hb.reference.GaussianMixture([0.4, 0.6], [[-1.5, 0.0], [1.0, 0.3]], 0.2)
    chain = ReferenceChain(hb.VP(), 8)
    x = random(6, 2)
    path = simulate(ScoreTransitions(chain, mixture.field(hb.VP())), x, seed=3, first=5, keep=True)
    grid = torch.tensor(chain.times[:0:-1], dtype=F64)
    theirs = hb.solve(mixture.field(hb.VP()), hb.ReverseDiffusion(), x, grid=grid, seed=3, first=5, save="all")
    close(path.flip(0)[:-1], theirs.trajectory, 1e-10)


# The second regression and least squares


def test_least_squares_on_exact_moments_is_the_regression_in_expectation():
    """Pairs whose sample moments are those of a step's joint law."""
    half = HalfBridge(0, affine_law(Direction.FORWARD))
    chain, k = gaussian_chain(half.law), 2
    d, n = 4, 24
    raw = random(n, d + 1, seed=4)
    raw[:, 0] = 1.0
    white = torch.linalg.qr(raw).Q[:, 1:] * math.sqrt(n)
    law = chain.law
    cov, mean = law.cov[2 * k - 2 : 2 * k + 2, 2 * k - 2 : 2 * k + 2], law.mean[2 * k - 2 : 2 * k + 2]
    joint = mean + white @ torch.linalg.cholesky(cov).mT
    there, here = joint[:, :2], joint[:, 2:]
    values = least_squares(here, there)
    close((values[1:] - values[0]).mT, chain.backward.gain[k - 1], 1e-11)
    close(values[0], chain.backward.offset[k - 1], 1e-11)
    left = there - here @ (values[1:] - values[0]) - values[0]
    close(left.mT @ left / n, chain.backward.cov[k - 1], 1e-11)


@WAYS
def test_regressions_on_samples_come_within_their_standard_errors(direction):
    half, n = HalfBridge(2, affine_law(direction)), 20_000
    exact = AffineRegressor("matched").fit(half)
    fit, want = (
        affine_of(r.fit(half), 2) for r in (AffineRegressor("matched", paths=n, seed=5), AffineRegressor("matched"))
    )
    chain = gaussian_chain(half.law)
    for k in half.direction.leaves(3):
        j = half.direction.interval(k)
        R, P = want.cov[j], chain.covs[k]
        error = torch.sqrt(torch.outer(R.diagonal(), torch.linalg.inv(P).diagonal()) / n)
        assert ((fit.gain[j] - want.gain[j]).abs() < 5 * error).all()
        spread = ((torch.outer(R.diagonal(), R.diagonal()) + R.square()) / n).sqrt()
        assert ((fit.cov[j] - R).abs() < 5 * spread).all()
    spread = math.sqrt(2 / n)
    for form, kind in (("full", Full), ("diagonal", Diagonal), ("scalar", Isotropic)):
        learned = residual_covariances(half, exact, form, n, seed=6, chunk=7000)
        for j, C in enumerate(learned):
            assert isinstance(C, kind)
            R = want.cov[j]
            wanted = {"full": R, "diagonal": R.diagonal().diag(), "scalar": R.diagonal().mean() * torch.eye(2)}[form]
            scale = R.diagonal().sqrt()
            gap = (C.matrix(torch.zeros(1, 2))[0] - wanted) / torch.outer(scale, scale)
            assert float(gap.abs().max()) < 6 * spread


def test_the_second_regression_is_about_the_mean_that_is_used():
    """NPR: with a mean off by b, 2 gamma E[ratio] = Var + b^2, which is the best variance for that mean."""
    x = random(1000)
    x = (x - x.mean()) / x.std(correction=0)
    gamma, b = 0.2, 0.3
    ratio = variance_ratio(1.5 + 0.7 * x, torch.full_like(x, 1.5 + b), gamma)
    assert 2 * gamma * float(ratio.mean()) == pytest.approx(0.7**2 + b**2, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check_target("meen", "fixed"), "`target` = 'meen' is no target of a half-bridge; did you mean 'mean'"),
        (lambda: check_target("mean", "free"), "`variance` = 'free' is no variance of kernels; there are 'fixed', 'matched'"),
        (lambda: AffineRegressor("matched", target="mean"), "with variance='matched' pass target='increment'"),
        (lambda: AffineRegressor("matched", form="diag"), "`form` = 'diag' is no form of a covariance; did you mean 'diagonal'"),
        (lambda: AffineRegressor(paths=0), "`paths` = 0 must be a whole number"),
        (lambda: AffineRegressor(paths=2).fit(HalfBridge(0, affine_law(Direction.FORWARD))), "2 paths do not determine"),
        (lambda: TARGETS["mean"].value(Pair(1, random(1), random(1), None, None, 0.1)), "pairs with means=True"),
        (
            lambda: ScoreTransitions(CHAIN, LAW.field(OU)),
            r"`field` belongs to OU\(theta=0.5, g=1.0, T=2.0\), but the reference is",
        ),
        (
            lambda: ScoreTransitions(ReferenceChain(OU, 3), LAW.field(OU), [Isotropic(1.0)]),
            "`covariances` has 1 entries; pass one a step, 3",
        ),
        (
            lambda: residual_covariances(
                HalfBridge(0, affine_law(Direction.FORWARD)), ReferenceTransitions(CHAIN), "full", 9, 0
            ),
            "`means` are of the forward direction; fit backward ones",
        ),
        (
            lambda: AffineTransitions(CHAIN, Direction.FORWARD, torch.ones(2, 1, 1), torch.ones(3, 1)),
            r"`gain` is \(2, 1, 1\), `offset` \(3, 1\)",
        ),
        (lambda: gaussian_chain(PathLaw(gaussian(2, 0), Bent(CHAIN, Direction.FORWARD))), "mean at x_0 of Bent is not affine"),
        (
            lambda: gaussian_chain(PathLaw(hb.reference.GaussianMixture([1.0], [[0.0]], 1.0), ReferenceTransitions(CHAIN))),
            "the chain starts from GaussianMixture",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Bent(Transitions):
    def terms(self, k, x):
        return Sum([x.square()], [1.0])
