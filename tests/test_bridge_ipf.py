"""IPF through one loop: affine kernels regressed exactly against gaussian_ipf, the closed-form bridge and DSB's recursion."""

import itertools
import math

import numpy as np
import pytest
import torch
from bridges import gaussian

import halfbridge as hb
from halfbridge.solvers.reference.gaussian_chain import AffineKernels, GaussianChain
from halfbridge.training.bridge import (
    AffineRegressor,
    AffineTransitions,
    Direction,
    Examples,
    HalfBridge,
    Normal,
    PathLaw,
    ReferenceChain,
    ReferenceTransitions,
    affine_of,
    gaussian_chain,
    ipf,
    reference_iterate,
)

F64 = torch.float64
ONE = hb.OU(0.5, 1.0, 1.0)  # EQUATIONS.md H.3's experiment: T = 1, f = -x/2
NEAR0 = hb.reference.Gaussian([0.5, -1.0], [[0.8, 0.3], [0.3, 0.5]])
NEAR1 = hb.reference.Gaussian([-0.6, 0.4], [[0.6, -0.2], [-0.2, 1.0]])
DIMENSIONS = pytest.mark.parametrize("d", [1, 5, 20, 50])


def close(ours, theirs, tol):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tol * max(1.0, np.abs(theirs).max()))


def run(p0, p1, chain, regressor, half_bridges):
    return list(ipf(reference_iterate(p0, p1, chain), regressor, half_bridges))


def cross(law):
    d = law.dim // 2
    return law.cov[:d, d:]


def unequal(process, n=6):
    """Times of n steps that grow."""
    return process.T * np.linspace(0.0, 1.0, n + 1) ** 1.4


@DIMENSIONS
@pytest.mark.parametrize("target", ["mean", "score"])
def test_fixed_iterates_are_dsbs_recursion_on_gaussians(d, target):
    p0, p1 = gaussian(d, 0), gaussian(d, 1)
    times = unequal(ONE)
    ours = run(p0, p1, ReferenceChain(ONE, times, "euler"), AffineRegressor("fixed", target), 7)
    theirs = hb.reference.gaussian_ipf(p0, p1, ONE, times, 7, variance="fixed")[1:]
    for mine, its in zip(ours, theirs, strict=True):
        chain = gaussian_chain(mine.law)
        assert mine.index == its.index
        close(chain.means, its.means, 1e-10)
        close(chain.covs, its.covs, 1e-10)
        close(chain.coupling().cov, its.coupling().cov, 1e-10)
        for a, b in zip(
            affine_of(mine.law.transitions, d), its.backward if its.index % 2 else its.forward, strict=True
        ):
            close(a, b, 1e-10)


@DIMENSIONS
@pytest.mark.parametrize("transitions", ["exact", "euler"])
def test_matched_iterates_are_exact_discrete_ipf(d, transitions):
    """Against gaussian_ipf on the process's own transitions, and by its chains from the Euler ones."""
    p0, p1 = gaussian(d, 0), gaussian(d, 1)
    times = unequal(ONE)
    reference = ReferenceChain(ONE, times, transitions)
    ours = run(p0, p1, reference, AffineRegressor("matched"), 7)
    if transitions == "exact":
        theirs = hb.reference.gaussian_ipf(p0, p1, ONE, times, 7)[1:]
    else:
        theirs, last = [], GaussianChain.from_start(p0, affine_of(ReferenceTransitions(reference), d))
        for n in range(1, 8):
            last = GaussianChain.from_end(p1, last.backward) if n % 2 else GaussianChain.from_start(p0, last.forward)
            theirs.append(last)
    for mine, its in zip(ours, theirs, strict=True):
        chain = gaussian_chain(mine.law)
        close(chain.means, its.means, 1e-10)
        close(chain.covs, its.covs, 1e-10)
        close(chain.coupling().cov, its.coupling().cov, 1e-10)


@DIMENSIONS
def test_the_limit_of_matched_ipf_is_the_closed_form_bridge(d):
    """Its coupling, its marginals at the chain's times, and the KL to the reference."""
    p0, p1, process = gaussian(d, 0), gaussian(d, 1), hb.OU(0.5, 1.3, 1.0)
    bridge = hb.reference.GaussianBridge(p0, p1, process)
    count = 2 * math.ceil(10 / -math.log10(float(bridge.correlations[0]) ** 2))
    reference = ReferenceChain.spaced(process, [1.0, 2.0, 1.0])
    last = run(p0, p1, reference, AffineRegressor("matched"), count)[-1]
    chain = gaussian_chain(last.law)
    close(chain.coupling().cov, bridge.coupling().cov, 1e-8)
    close(chain.means[-1], p1.mean, 1e-8)
    for k, t in enumerate(reference.times):
        close(chain.covs[k], bridge.marginal(t).cov, 1e-8)
        close(chain.means[k], bridge.marginal(t).mean, 1e-8)
    started = gaussian_chain(PathLaw(p0, ReferenceTransitions(reference)))
    assert chain.kl(started) == pytest.approx(bridge.kl(), rel=1e-7)


def test_fixed_variances_leave_the_bridge_by_a_step_an_iteration_and_matched_ones_do_not():
    """Begun at the bridge itself, so that all that moves is bias. |C - C*|_F, C the cross-covariance of the ends, at N = 80: 3.4e-3
    after one iteration of DSB, 4.8e-3 after three, 7.6e-3 after ten, each of the last seven 4.6e-4 on average. At half the step
    each of the first three moves half as far. Matched: 1e-9 all along."""
    star = cross(hb.reference.GaussianBridge(NEAR0, NEAR1, ONE).coupling())
    moves = {}
    for n, iterations in ((80, 10), (160, 3)):
        bridge = run(NEAR0, NEAR1, ReferenceChain(ONE, n), AffineRegressor("matched"), 22)[-1]

        def couplings(regressor, bridge=bridge, count=2 * iterations):
            return [star, *(cross(gaussian_chain(it.law).coupling()) for it in ipf(bridge, regressor, count))][::2]

        moves[n] = [float((b - a).norm()) for a, b in itertools.pairwise(couplings(AffineRegressor("fixed")))]
        if n == 80:
            away = [float((C - star).norm()) for C in couplings(AffineRegressor("fixed"))]
            assert max(float((C - star).norm()) for C in couplings(AffineRegressor("matched"))) < 1e-8
    np.testing.assert_allclose([away[1], away[3], away[10]], [3.40e-3, 4.80e-3, 7.55e-3], rtol=0.01)
    assert moves[80][9] > 0.65 * moves[80][2]
    np.testing.assert_allclose(np.divide(moves[160], moves[80][:3]), 0.52, atol=0.03)


def test_end_means_are_exact_with_conditional_means_and_off_by_a_step_with_mean_matching():
    """Matched kernels of any form, and fixed ones regressed on increments; theirs is the coupling that is furthest off (H.3)."""
    plain = AffineRegressor("fixed", "increment")
    for regressor in (*(AffineRegressor("matched", form=f) for f in ("full", "diagonal", "scalar")), plain):
        last = run(NEAR0, NEAR1, ReferenceChain(ONE, 10), regressor, 36)[-1]
        assert float((gaussian_chain(last.law).means[-1] - NEAR1.mean).abs().max()) < 1e-6
    off = []
    for n in (10, 20):
        last = run(NEAR0, NEAR1, ReferenceChain(ONE, n), AffineRegressor("fixed"), 36)[-1]
        off.append(float((gaussian_chain(last.law).means[-1] - NEAR1.mean).abs().max()))
    assert off[0] == pytest.approx(0.21, rel=0.05)
    assert off[1] / off[0] == pytest.approx(0.55, abs=0.05)


def test_a_step_of_matched_kernels_keeps_means_and_its_forms_part_of_the_covariance():
    """Run back from the law of x_N itself: means all along; in the first step the covariance (full), the variances (diagonal),
    their sum (scalar), and no more; after it only full ones keep them, unless the kernels are of their form."""
    law = PathLaw(gaussian(3, 2), ReferenceTransitions(ReferenceChain(ONE, 5, "euler")))
    there = gaussian_chain(law)
    parts = {
        "full": (lambda C: C, lambda C: 0 * C),
        "diagonal": (lambda C: C.diagonal(), lambda C: C),
        "scalar": (lambda C: C.trace(), lambda C: C.diagonal()),
    }
    for form, (kept, lost) in parts.items():
        fit = AffineRegressor("matched", form=form).fit(HalfBridge(0, law))
        back = gaussian_chain(PathLaw(there.marginal(-1), fit))
        close(back.means, there.means, 1e-13)
        close(kept(back.covs[4]), kept(there.covs[4]), 1e-13)
        exact = form == "full"
        assert exact or float((lost(back.covs[4]) - lost(there.covs[4])).abs().max()) > 1e-3
        assert exact or float((kept(back.covs[0]) - kept(there.covs[0])).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("form", "p0", "p1"),
    [
        ("diagonal", torch.diag(torch.tensor([0.3, 2.0])), torch.diag(torch.tensor([1.0, 0.4]))),
        ("scalar", 0.7, 1.6),
    ],
)
def test_smaller_forms_are_exact_where_covariances_are_of_that_form(form, p0, p1):
    p0, p1 = hb.reference.Gaussian([0.5, -1.0], p0), hb.reference.Gaussian([-0.6, 0.4], p1)
    full, small = (run(p0, p1, ReferenceChain(ONE, 5), AffineRegressor("matched", form=f), 8) for f in ("full", form))
    for a, b in zip(full, small, strict=True):
        close(gaussian_chain(a.law).coupling().cov, gaussian_chain(b.law).coupling().cov, 1e-12)


def test_between_correlated_ends_smaller_forms_leave_the_coupling_too():
    """What a scalar or diagonal covariance leaves out is of the order that fixed ones leave out: 4e-3 at N = 40 all three."""
    reference = ReferenceChain(ONE, 40)
    star = hb.reference.GaussianBridge(NEAR0, NEAR1, ONE).coupling()
    bridge = run(NEAR0, NEAR1, reference, AffineRegressor("matched"), 24)[-1]
    for form in ("diagonal", "scalar"):
        last = list(ipf(bridge, AffineRegressor("matched", form=form), 2))[-1]
        error = float((cross(gaussian_chain(last.law).coupling()) - cross(star)).abs().max())
        assert 3.5e-3 < error < 5e-3


def test_least_squares_on_paths_finds_the_iterates_within_their_noise():
    """The loop as a network runs it: from simulated pairs alone. Kernel errors add up over 3 half-bridges of 4 steps; the law's
    mean and covariance come within 6 standard errors of one mean over the paths, sqrt(12/n) of a standard deviation."""
    n, reference = 20_000, ReferenceChain(ONE, 4)
    exact = run(NEAR0, NEAR1, reference, AffineRegressor("matched"), 3)
    sampled = run(NEAR0, NEAR1, reference, AffineRegressor("matched", paths=n, seed=3), 3)
    bound = 6 * math.sqrt(12 / n)
    for a, b in zip(exact, sampled, strict=True):
        a, b = gaussian_chain(a.law), gaussian_chain(b.law)
        assert float((a.means - b.means).abs().max()) < bound
        assert float((a.covs - b.covs).abs().max()) < bound
    other = run(NEAR0, NEAR1, reference, AffineRegressor("matched", paths=n, seed=4), 1)
    assert not torch.equal(affine_of(other[0].backward, 2).gain, affine_of(sampled[0].backward, 2).gain)


def test_covariances_from_few_paths_are_right_in_the_mean():
    """300 fits of 2 + 1 coefficients to 8 paths each: the mean within 5 standard errors of the exact reverse kernel's, where division
    by the paths would leave 5/8 of it. Fewer paths than a form needs are refused before they give a singular matrix."""
    half = reference_iterate(NEAR0, NEAR1, ReferenceChain(ONE, 1)).half_bridge
    fits = [affine_of(AffineRegressor("matched", paths=8, seed=s).fit(half), 2).cov[0] for s in range(300)]
    mean, error = torch.stack(fits).mean(0), torch.stack(fits).std(0) / math.sqrt(300)
    exact = affine_of(AffineRegressor("matched").fit(half), 2).cov[0]
    assert ((mean - exact).abs() < 5 * error).all()
    assert (3 / 8 * exact.diagonal() > 5 * error.diagonal()).all()
    for form, least in (("full", 5), ("diagonal", 4), ("scalar", 4)):
        AffineRegressor("matched", form=form, paths=least).fit(half)
        with pytest.raises(
            ValueError, match=rf"`paths` = {least - 1} do not determine a {form} covariance in 2 .* pass {least} or"
        ):
            AffineRegressor("matched", form=form, paths=least - 1).fit(half)


def test_any_laws_with_samples_can_be_joined():
    """Examples (m, 2, 3), far from normal, to a normal law: affine matched kernels move first and second moments like Gaussians,
    so both ends come out with theirs, within 6 standard errors as above."""
    data = 3 * torch.rand(500, 2, 3, generator=torch.Generator().manual_seed(0)) - 1
    start, end, n = Examples(data), Normal((2, 3), 2.0), 20_000
    begin = reference_iterate(start, end, ReferenceChain.dsb([0.3, 0.4, 0.3]))
    *_, back, forth = ipf(begin, AffineRegressor("matched", paths=n), 10)
    bound = 6 * math.sqrt(12 / n)
    for iterate, mean, std in ((forth, torch.zeros(2, 3), torch.full((2, 3), 2.0)), (back, data.mean(0), data.std(0))):
        made = iterate.law.sample(n, seed=1)
        assert made.shape == (n, 2, 3)
        assert made.dtype == torch.float32
        assert float(((made.mean(0) - mean) / std).abs().max()) < bound
        assert float((made.var(0) / std**2 - 1).abs().max()) < bound


def test_going_on_from_an_iterate_is_the_same_run():
    reference = ReferenceChain(ONE, 4)
    whole = run(NEAR0, NEAR1, reference, AffineRegressor("matched", paths=100), 5)
    rest = list(ipf(whole[1], AffineRegressor("matched", paths=100), 3))
    assert [it.index for it in rest] == [3, 4, 5]
    for a, b in zip(whole[2:], rest, strict=True):
        close(affine_of(a.law.transitions, 2).gain, affine_of(b.law.transitions, 2).gain, 1e-12)  # LAPACK's bits vary


def test_a_regressor_gets_each_teacher_and_the_kernels_to_start_from():
    seen = []

    class Spy:
        def fit(self, half):
            seen.append(half)
            return AffineRegressor().fit(half)

    start = reference_iterate(NEAR0, NEAR1, ReferenceChain(ONE, 3))
    its = [start, *ipf(start, Spy(), 4)]
    assert [half.index for half in seen] == [0, 1, 2, 3]
    assert [half.direction for half in seen] == [Direction.BACKWARD, Direction.FORWARD] * 2
    teachers = [start.forward, its[1].backward, its[2].forward, its[3].backward]
    assert [half.law.transitions for half in seen] == teachers
    assert [half.law.start for half in seen] == [NEAR0, NEAR1, NEAR0, NEAR1]
    assert [half.previous for half in seen] == [None, None, its[1].backward, its[2].forward]
    assert [it.law.start for it in its] == [NEAR0, NEAR1, NEAR0, NEAR1, NEAR0]
    assert its[3].forward is its[2].forward
    assert its[4].backward is its[3].backward


def test_iterates_come_as_they_are_made():
    begun = []

    class Spy:
        def fit(self, half):
            begun.append(half.index)
            return AffineRegressor().fit(half)

    iterates = ipf(reference_iterate(NEAR0, NEAR1, ReferenceChain(ONE, 3)), Spy(), 5)
    next(iterates)
    assert begun == [0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ipf(START, AffineRegressor(), 0), "`half_bridges` = 0 must be a whole number, at least 1"),
        (lambda: list(ipf(START, Wrong(), 1)), "ReferenceTransitions are forward kernels .* for the backward half-bridge"),
        (
            lambda: reference_iterate(NEAR0, gaussian(3, 0), ReferenceChain(ONE, 3)),
            r"`end` has samples of shape \(3,\), but `start` has \(2,\)",
        ),
        (
            lambda: AffineRegressor().fit(HalfBridge(0, PathLaw(Normal((2,), 1.0, F64), START.forward))),
            "the chain starts from Normal; its law is known in closed form from an hb.reference.Gaussian",
        ),
        (
            lambda: affine_of(AffineTransitions(START.reference, Direction.FORWARD, *[torch.ones(3)[:, None, None]] * 2), 1),
            r"`offset` \(3, 1, 1\)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


START = reference_iterate(NEAR0, NEAR1, ReferenceChain(ONE, 3))


class Wrong:
    def fit(self, half):
        kernels = affine_of(half.law.transitions, 2)
        assert isinstance(kernels, AffineKernels)
        return half.law.transitions
