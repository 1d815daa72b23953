"""KL between iterates: the inequalities of IPF on exact chains, and estimates from paths against exact numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from bridges import gaussian

import halfbridge as hb
from halfbridge.training.bridge import (
    AffineRegressor,
    Direction,
    Examples,
    Normal,
    PathLaw,
    ReferenceChain,
    ReferenceTransitions,
    Sum,
    Transitions,
    gaussian_chain,
    ipf,
    path_energy,
    path_kl,
    reference_iterate,
)

ONE = hb.OU(0.5, 1.0, 1.0)
P0, P1 = gaussian(2, 0), gaussian(2, 1)
WIDE, NARROW = hb.reference.Gaussian([0.0], 100.0), hb.reference.Gaussian([0.0], 0.2)


def iterates(p0, p1, reference, regressor, half_bridges):
    begin = reference_iterate(p0, p1, reference)
    return [begin, *ipf(begin, regressor, half_bridges)]


def neighbours(chains):
    """KL(pi^{n+1} || pi^n) and KL(pi^n || pi^{n+1}) for n = 0, 1, ..."""
    return [(new.kl(old), old.kl(new)) for old, new in itertools.pairwise(chains)]


def test_kls_of_exact_iterates_decrease_as_proposition_4_says():
    """KL(pi^{n+1} || pi^n) <= KL(pi^{n-1} || pi^n) and KL(pi^n || pi^{n+1}) <= KL(pi^n || pi^{n-1}) (H.2; the pair that K.9 corrects).

    And what follows: each directed sequence decreases in steps of two, the Jeffreys divergence decreases.
    """
    rng = np.random.default_rng(0)
    for seed in range(12):
        d, scales, g = 1 + seed % 3, 4 ** rng.uniform(-1, 1, 2), 4 ** rng.uniform(-1, 1)
        p0, p1 = gaussian(d, seed, scales[0]), gaussian(d, 100 + seed, scales[1])
        its = iterates(p0, p1, ReferenceChain(hb.Brownian(g), 2), AffineRegressor("matched"), 9)
        kls = neighbours([gaussian_chain(it.law) for it in its])
        for (back, there), (next_back, next_there) in itertools.pairwise(kls):
            slack = 1e-9 * (back + there) + 1e-20
            assert next_back <= there + slack  # KL(pi^{n+1} || pi^n) <= KL(pi^{n-1} || pi^n)
            assert next_there <= back + slack  # KL(pi^n || pi^{n+1}) <= KL(pi^n || pi^{n-1})
            assert next_back + next_there <= back + there + slack
        for (back, there), (later_back, later_there) in zip(kls, kls[2:], strict=False):
            slack = 1e-9 * (back + there) + 1e-20
            assert later_back <= back + slack
            assert later_there <= there + slack


def test_the_inequalities_of_k_9_are_false():
    """KL(pi^{n+1} || pi^n) <= KL(pi^n || pi^{n-1}) fails by a factor of 50, its mirror image by 30: a wide p0 and weak noise."""
    its = iterates(WIDE, NARROW, ReferenceChain(hb.Brownian(0.3), 1), AffineRegressor("matched"), 3)
    kls = neighbours([gaussian_chain(it.law) for it in its])
    assert kls[1][0] > 50 * kls[0][0]
    assert kls[2][1] > 30 * kls[1][1]


@pytest.mark.parametrize(("p0", "p1", "g"), [(WIDE, NARROW, 0.3), (P0, P1, 1.0)], ids=["wide to narrow", "near"])
def test_kls_estimated_between_iterates_learned_from_paths_decrease_within_their_standard_errors(p0, p1, g):
    """Iterates by least squares on 4000 paths, KLs from 4000 others: Proposition 4's inequalities and what follows hold up to 4
    standard errors of the two estimates. From a wide law under weak noise the KLs are 40 to 200 standard errors and fall
    by 5 to 40 % from one to the next."""
    its = iterates(p0, p1, ReferenceChain(hb.Brownian(g), 2), AffineRegressor("matched", paths=4000, seed=5), 5)
    laws = [it.law for it in its]
    kls = [[path_kl(*pair, 4000, seed=9) for pair in ((new, old), (old, new))] for old, new in itertools.pairwise(laws)]

    def at_most(a, b):
        return a.value <= b.value + 4 * math.hypot(a.std_error, b.std_error)

    for (back, there), (next_back, next_there) in itertools.pairwise(kls):
        assert at_most(next_back, there)
        assert at_most(next_there, back)
    for (back, there), (later_back, later_there) in zip(kls, kls[2:], strict=False):
        assert at_most(later_back, back)
        assert at_most(later_there, there)
    if p0 is WIDE:  # and the inequalities that K.9 corrects are seen to fail
        assert not at_most(kls[1][0], kls[0][0])
        assert not at_most(kls[2][1], kls[1][1])


def test_each_projection_shares_its_kernels_with_the_one_before():
    """KL(pi^{n+1} || pi^n) of exact iterates is the KL of the law at the end that was replaced; so both end errors are seen."""
    its = iterates(P0, P1, ReferenceChain(ONE, 4), AffineRegressor("matched"), 6)
    chains = [gaussian_chain(it.law) for it in its]
    for n, (old, new) in enumerate(itertools.pairwise(chains)):
        end, law = (0, P0) if n % 2 else (-1, P1)
        assert new.kl(old) == pytest.approx(law.kl(old.marginal(end)), rel=1e-8)


@pytest.mark.parametrize("variance", ["fixed", "matched"])
def test_estimates_of_kl_come_within_their_standard_errors(variance):
    """Iterates two half-bridges apart by differences of kernels, neighbours by log densities of whole paths; 4 errors."""
    its = iterates(P0, P1, ReferenceChain(ONE, 4), AffineRegressor(variance), 4)
    laws, chains = [it.law for it in its], [gaussian_chain(it.law) for it in its]
    for a, b in ((2, 0), (0, 2), (3, 1), (4, 2), (1, 0), (2, 1), (1, 2), (4, 3)):
        exact = chains[a].kl(chains[b])
        found = path_kl(laws[a], laws[b], 10_000, seed=1, chunk=3000)
        assert abs(found.value - exact) < 4 * found.std_error, (a, b)
        assert found.std_error < 0.08 * max(exact, 0.3)


def test_the_standard_error_is_that_of_the_mean_over_paths():
    """Repeated with other seeds, the estimates scatter by what they say: 40 of them, within a factor of 1.5 (4 errors)."""
    its = iterates(P0, P1, ReferenceChain(ONE, 3), AffineRegressor(), 2)
    found = [path_kl(its[2].law, its[0].law, 200, seed=s) for s in range(40)]
    scatter = float(np.std([e.value for e in found], ddof=1))
    said = float(np.mean([e.std_error for e in found]))
    assert 1 / 1.5 < scatter / said < 1.5


class Pushed(Transitions):
    """The reference with a constant added to each mean: KL to it is known."""

    def __init__(self, reference, push):
        super().__init__(reference, Direction.FORWARD)
        self.push = push

    def terms(self, k, x):
        return Sum([x + self.push], [self.reference.gains[k]])


def test_kl_of_fixed_kernels_is_the_squared_difference_of_means_over_4_gamma():
    """Constant differences r c in d = 6 elements: sum_k d (r_k c)^2/(4 gamma_k), without a standard error."""
    reference, start = ReferenceChain.dsb([0.1, 0.2, 0.4], rate=0.5), Normal((2, 3))
    c = 0.3
    want = sum(6 * (r * c) ** 2 / (4 * g) for r, g in zip(reference.gains, reference.gammas, strict=True))
    found = path_kl(PathLaw(start, Pushed(reference, c)), PathLaw(start, ReferenceTransitions(reference)), 50, seed=0)
    assert found.value == pytest.approx(want, rel=1e-5)  # float32 states
    assert found.std_error < 1e-5


def test_starts_count_where_they_differ():
    reference = ReferenceChain(ONE, 3)
    a, b = (PathLaw(p, ReferenceTransitions(reference)) for p in (P0, P1))
    found = path_kl(a, b, 20_000, seed=2)
    assert abs(found.value - P0.kl(P1)) < 4 * found.std_error


def test_the_energy_of_a_brownian_bridge_is_its_kl_to_the_reference():
    """By the definition for Brownian motion, and of the bridge itself: the least control energy, GaussianBridge.kl()."""
    process = hb.Brownian(1.2)
    its = iterates(P0, P1, ReferenceChain(process, 10), AffineRegressor("matched"), 20)
    bridge, started = its[-1].law, its[0].law
    exact = gaussian_chain(bridge).kl(gaussian_chain(started))
    assert exact == pytest.approx(hb.reference.GaussianBridge(P0, P1, process).kl(), rel=1e-6)
    fixed = iterates(P0, P1, ReferenceChain(process, 10), AffineRegressor(), 2)[-1].law
    energy, kl = path_energy(fixed, 500, seed=3), path_kl(fixed, started, 500, seed=3)
    assert energy.value == pytest.approx(kl.value, rel=1e-12)
    assert energy.std_error == pytest.approx(kl.std_error, rel=1e-9)


def test_energies_are_expectations_over_the_chain():
    """Backward and with drift: E|M_k(x) - x|^2/(4 gamma_k) from the exact moments of x_k, summed; 4 standard errors."""
    law = iterates(P0, P1, ReferenceChain(ONE, 5), AffineRegressor("matched"), 1)[-1].law
    chain, total = gaussian_chain(law), 0.0
    for k in range(5, 0, -1):
        gain, offset = chain.backward.gain[k - 1] - torch.eye(2), chain.backward.offset[k - 1]
        mean = gain @ chain.means[k] + offset
        square = float(mean @ mean + (gain @ chain.covs[k] @ gain.mT).trace())
        total += square / (4 * law.transitions.reference.gammas[k - 1])
    found = path_energy(law, 20_000, seed=4)
    assert abs(found.value - total) < 4 * found.std_error
    assert found.std_error < 0.05 * total


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: path_kl(FIRST.law, START.law, 1, 0), "`n` = 1 path has no standard error"),
        (lambda: path_energy(START.law, 0, 0), "`n` = 0 must be a whole number"),
        (
            lambda: path_kl(START.law, reference_iterate(P0, P1, ReferenceChain(ONE, 4)).law, 9, 0),
            "`other` has 4 steps and `law` 3; compare chains on one grid",
        ),
        (
            lambda: path_kl(PathLaw(Examples(torch.ones(3, 2).double()), FIRST.law.transitions), START.law, 9, 0),
            r"`law` starts from Examples\(3 of shape \(2,\)\), which has no log_prob.*iterates of one parity",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_same_paths_are_drawn_whatever_the_chunk():
    its = iterates(P0, P1, ReferenceChain(ONE, 3), AffineRegressor(), 2)
    whole, parts = (path_kl(its[2].law, its[0].law, 100, seed=5, chunk=c) for c in (100, 7))
    assert math.isclose(whole.value, parts.value, rel_tol=1e-12)
    assert math.isclose(whole.std_error, parts.std_error, rel_tol=1e-12)


START, FIRST = iterates(P0, P1, ReferenceChain(ONE, 3), AffineRegressor(), 1)
