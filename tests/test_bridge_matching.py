"""Bridge matching: the reference held at its ends, the couplings to begin from, and the limit of Markovian fitting."""

import sys

import numpy as np
import pytest
import torch
from bridge_nets import F64, NEAR0, NEAR1, ONE, coupling_of, exact_iterate, nets

import halfbridge as hb
from halfbridge.training.bridge import (
    AffineRegressor,
    Direction,
    Examples,
    HalfBridge,
    PathLaw,
    ReferenceChain,
    ReferenceTransitions,
    couplings,
    fit_bridge,
    gaussian_chain,
    reference_iterate,
)
from halfbridge.training.bridge.cache import TrajectoryCache
from halfbridge.training.bridge.couplings import Coupling, _bridged, _transported
from halfbridge.training.bridge.matching import BridgeMatching, held_at_end, held_at_start

CHAIN = ReferenceChain.spaced(hb.VP(0.1, 4.0), [1.0, 3.0, 2.0, 1.0])
WAYS = pytest.mark.parametrize("direction", Direction, ids=lambda d: d.value)


def conditional(k, j, far, chain=CHAIN):
    """Weights of x_j given (x_k, x_far), from the joint law of a chain that starts from N(0, 3): that of the start drops out."""
    law = gaussian_chain(PathLaw(hb.reference.Gaussian([0.0], [[3.0]]), ReferenceTransitions(chain))).law
    S = np.asarray(law.cov)
    given = [k, far]
    weights = S[j, given] @ np.linalg.inv(S[np.ix_(given, given)])
    return [*weights, S[j, j] - weights @ S[given, j]]


def test_the_reference_held_at_an_end_is_the_conditional_law_of_the_chain():
    for k, (to_end, to_start) in enumerate(zip(held_at_end(CHAIN), held_at_start(CHAIN), strict=True)):
        if k < 3:
            got = [to_end.here, to_end.end, to_end.variance]
            np.testing.assert_allclose(got, conditional(k, k + 1, 4), rtol=1e-9)
        if k > 0:
            got = [to_start.here, to_start.end, to_start.variance]
            np.testing.assert_allclose(got, conditional(k + 1, k, 0), rtol=1e-9)
    for arrived in (held_at_end(CHAIN)[-1], held_at_start(CHAIN)[0]):
        assert (arrived.here, arrived.end, arrived.variance) == (0.0, 1.0, 0.0)


def matching(direction, reference=CHAIN):
    """From an iterate whose chain is far from the bridge, in exact kernels."""
    iterate = exact_iterate(4, 2 if direction is Direction.BACKWARD else 1, process=reference.process)
    half = iterate.half_bridge
    assert half.direction is direction
    return BridgeMatching(half.index, half.law)


@WAYS
def test_paths_have_the_iterates_ends_and_the_reference_between_them(direction):
    """All first and second moments of (x_0, ..., x_N), within 5 standard errors of the exact ones: ends of pi^n, the chain's
    own pinned law between them."""
    half, n = matching(direction), 20_000
    path = half.states(n, seed=2, first=3)
    chain = gaussian_chain(half.law)
    ends = chain.coupling()
    pins = [conditional(0, k, 4, half.reference) for k in (1, 2, 3)]
    A = torch.zeros(10, 4, dtype=F64)
    A[:2, :2] = A[8:, 2:] = torch.eye(2)
    for k, pin in zip((1, 2, 3), pins, strict=True):
        A[2 * k : 2 * k + 2] = torch.cat([pin[0] * torch.eye(2), pin[1] * torch.eye(2)], 1)
    between = torch.zeros(5, 5, dtype=F64)
    for i in (1, 2, 3):
        for j in (1, 2, 3):
            low, high = min(i, j), max(i, j)
            step = 1.0 if low == high else conditional(low, high, 4, half.reference)[0]
            between[i, j] = pins[low - 1][2] * step
    mean, cov = A @ ends.mean, A @ ends.cov @ A.mT + torch.kron(between, torch.eye(2, dtype=F64))
    z = path.transpose(0, 1).reshape(n, -1)
    left, spread = z - mean, cov.diagonal()
    assert (left.mean(0).abs() < 5 * (spread / n).sqrt()).all()
    error = ((torch.outer(spread, spread) + cov.square()) / n).sqrt()
    assert ((left.mT @ left / n - cov).abs() < 5 * error).all()
    assert torch.equal(path[:, 5:9], half.states(4, seed=2, first=8))


@WAYS
def test_pairs_and_expected_pairs_are_neighbours_on_the_paths(direction):
    half = matching(direction)
    path = half.states(6, seed=1)
    far = path[-1] if direction is Direction.FORWARD else path[0]
    for pair, expected in zip(
        sorted(half.pairs(6, 1, means=False), key=lambda p: p.k),
        sorted(half.expected_pairs(6, 1), key=lambda p: p.k),
        strict=True,
    ):
        k, to = pair.k, direction.arrives(pair.k)
        assert torch.equal(pair.here, path[k])
        assert torch.equal(pair.there, path[to])
        assert torch.equal(expected.here, path[k])
        w = held(half)[direction.interval(k)]
        torch.testing.assert_close(expected.there, w.here * path[k] + w.end * far, rtol=1e-9, atol=1e-9)
        assert float(half.left_out()[direction.interval(k)]) == w.variance
    with pytest.raises(ValueError, match="needs no teacher's means"):
        next(half.pairs(2, 0, means=True))


@WAYS
def test_a_cache_of_matching_has_expected_pairs_and_the_variance_that_they_leave_out(direction):
    half, n = matching(direction), 5
    cache = TrajectoryCache(half.reference, NEAR0.sample(1, 0), n, "increment", matching=True)
    cache.hold(half, seed=4, refresh=1)
    for pair in half.expected_pairs(n, 4, n):
        j = direction.interval(pair.k)
        batch = cache.batch(torch.arange(j * n, (j + 1) * n))
        assert torch.equal(batch.here, pair.here)
        assert torch.equal(batch.value, pair.there)
        torch.testing.assert_close(batch.known, torch.full((n,), held(half)[j].variance / (2 * pair.gamma), dtype=F64))
        assert float(batch.label[0]) == half.reference.times[pair.k]


def held(half):
    return (held_at_end if half.direction is Direction.FORWARD else held_at_start)(half.reference)


def test_markovian_fitting_from_independent_ends_tends_to_the_closed_forms_bridge():
    """Affine kernels with full covariances by least squares on 20 000 paths, 4 iterations; ends keep their laws at each. Errors of
    kernels add up: within 8 standard errors sqrt(2/n) of a covariance. The start is 0.4 away."""
    n, reference = 20_000, ReferenceChain(ONE, 4)
    regressor = AffineRegressor("matched", paths=n, seed=1)
    now = reference_iterate(NEAR0, NEAR1, reference)
    star = hb.reference.GaussianBridge(NEAR0, NEAR1, ONE).coupling()
    coupling = Coupling(NEAR0, NEAR1, reference)
    for i in range(8):
        half = now.half_bridge
        now = now.after(regressor.fit(BridgeMatching(half.index, half.law, None, coupling if i == 0 else None)))
        law = gaussian_chain(now.law).coupling()
        ends = torch.cat([NEAR0.mean, NEAR1.mean])
        assert float((law.mean - ends).abs().max()) < 0.04
    assert float((law.cov - star.cov).abs().max()) < 8 * (2 / n) ** 0.5
    assert float(star.cov[:2, 2:].norm()) > 0.4


class Bridged:
    """The closed form's coupling, as what matching begins from."""

    def sample(self, n, seed, first=0):
        z = hb.reference.GaussianBridge(NEAR0, NEAR1, ONE).coupling().sample(n, seed, first)
        return z[:, :2], z[:, 2:]


def test_matched_full_kernels_keep_the_end_and_fixed_ones_miss_it_by_the_step():
    """From the bridge's own coupling, by least squares on 20 000 paths: the covariance where the chain ends is right within 5
    standard errors sqrt(2/n), and off by 0.06 and half of that with variances of 2 gamma in 4 and 8 steps."""
    n, errors = 20_000, {}
    for steps in (4, 8):
        half = reference_iterate(NEAR0, NEAR1, ReferenceChain(ONE, steps)).half_bridge
        for variance in ("fixed", "matched"):
            kernels = AffineRegressor(variance, "increment", paths=n).fit(BridgeMatching(0, half.law, None, Bridged()))
            left = gaussian_chain(PathLaw(NEAR1, kernels)).marginal(0).cov - NEAR0.cov
            errors[variance, steps] = float(left.abs().max())
    assert max(errors["matched", 4], errors["matched", 8]) < 5 * (2 / n) ** 0.5
    assert errors["fixed", 4] > 0.05
    assert errors["fixed", 4] / errors["fixed", 8] == pytest.approx(2.0, rel=0.3)


def test_matching_begins_from_its_coupling_and_goes_on_from_the_ends_of_the_iterate(monkeypatch):
    halves, hold = [], TrajectoryCache.hold
    monkeypatch.setattr(TrajectoryCache, "hold", lambda *a: (halves.append(a[1]), hold(*a))[1])
    made = fit_bridge(*nets(dtype=F64), NEAR0, NEAR1, ReferenceChain(ONE, 3), method="dsbm", coupling="independent",
                      iterations=2, steps=1, batch_size=8, cache_paths=8, monitor_paths=16)  # fmt: skip
    assert [half.coupling for half in halves] == [Coupling(NEAR0, NEAR1, made.reference), None, None, None]
    assert [half.direction for half in halves] == [Direction.BACKWARD, Direction.FORWARD] * 2
    for half in halves[1:]:  # the ends are those of the iterate's own chain
        path = half.law.sample(5, 0, 3, half.index, keep=True)
        ends = half.ends(5, 0, 3)
        assert torch.equal(ends[0], path[0])
        assert torch.equal(ends[1], path[-1])


def test_independent_pairs_are_independent_and_counted():
    pairs = Coupling(NEAR0, NEAR1, CHAIN)
    x, y = pairs.sample(20_000, 3)
    cov = coupling_of(x, y)[1]
    assert float(cov[:2, 2:].abs().max()) < 5 / 20_000**0.5
    a, b = pairs.sample(10, 3, 100)
    assert torch.equal(a, x[100:110])
    assert torch.equal(b, y[100:110])


def test_minibatch_transport_sorts_the_line_and_keeps_both_samples():
    law0, law1 = (hb.reference.Gaussian([m], [[s]]) for m, s in ((0.0, 1.0), (3.0, 0.5)))
    plain = Coupling(law0, law1, CHAIN).sample(100, 0, 40)
    x, y = Coupling(law0, law1, CHAIN, "ot", 40).sample(100, 0, 40)
    assert torch.equal(x, plain[0])
    for at in (0, 40):
        part = slice(at, at + 40)
        assert torch.equal(y[part].sort(0).values, plain[1][part].sort(0).values)
        assert torch.equal(y[part][x[part][:, 0].argsort()], y[part].sort(0).values)


@pytest.mark.parametrize("how", ["ot", "sinkhorn"])
def test_a_pair_is_a_function_of_its_index_however_many_are_drawn_at_once(how):
    pairs = Coupling(NEAR0, NEAR1, CHAIN, how, 16)
    whole = pairs.sample(64, 3)
    for first, n in ((0, 1), (5, 4), (15, 2), (20, 40), (32, 16)):
        for part, all_ in zip(pairs.sample(n, 3, first), whole, strict=True):
            assert torch.equal(part, all_[first : first + n])


def test_sinkhorn_of_little_noise_keeps_the_law_of_the_end_or_says_what_to_pass(monkeypatch):
    """Noise of 0.06 between 64 points of the plane: y are taken as often as they should be, within 1 % of the mass. A little
    less, and fewer iterations, and they are not."""
    law = hb.reference.Gaussian([0.0, 0.0], 1.0)
    x, y = law.sample(64, 0), law.sample(64, 1)
    cost = torch.cdist(x, y).square() / (2 * 0.06**2)
    plan = _bridged(cost, _transported(cost)[1])
    torch.testing.assert_close(plan.sum(1), torch.full((64,), 1 / 64, dtype=F64))
    assert float((plan.sum(0) - 1 / 64).abs().sum()) < 0.01
    assert float((-plan * plan.log()).nansum().exp()) > 1.3 * 64  # each x has y to choose from
    little = Coupling(law, law, ReferenceChain(hb.Brownian(0.01), 3), "sinkhorn", 200)
    monkeypatch.setattr("halfbridge.training.bridge.couplings.ITERATIONS", 50)
    with pytest.warns(RuntimeWarning, match=r"of 200 pairs has not converged after 50 iterations: .* coupling='ot'"):
        little.sample(1, 0)


@pytest.mark.parametrize("how", ["ot", "sinkhorn"])
def test_minibatch_couplings_without_pot_name_the_extra(how, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=rf"`coupling` = '{how}' needs POT .*pip install 'halfbridge\[transport\]'"):
        Coupling(NEAR0, NEAR1, CHAIN, how)
    Coupling(NEAR0, NEAR1, CHAIN)


def test_minibatch_sinkhorn_is_nearly_the_bridges_coupling():
    """Minibatches of 256 leave some bias: the cross-covariance within 0.05 of the closed form's 0.46; transport's is past it."""
    star = hb.reference.GaussianBridge(NEAR0, NEAR1, ONE).coupling().cov[:2, 2:]
    reference = ReferenceChain(ONE, 4)
    found = {
        how: coupling_of(*Coupling(NEAR0, NEAR1, reference, how).sample(4096, 0))[1][:2, 2:]
        for how in ("sinkhorn", "ot")
    }
    assert float((found["sinkhorn"] - star).norm()) < 0.05
    assert float((found["ot"] - star).norm()) > 0.2


def test_fit_bridge_by_matching_keeps_both_ends_and_finds_the_coupling():
    """Two iterations of 2 x 150 steps from independent ends, 0.46 away: means within 0.1, covariances within 11 %."""
    x0, x1 = NEAR0.sample(10_000, 1).float(), NEAR1.sample(10_000, 2).float()
    made = fit_bridge(*nets(hidden=32), x0, x1, ReferenceChain(ONE, 8), method="dsbm", coupling="independent", variance="matched",
                      form="full", iterations=2, steps=150, batch_size=256, lr=3e-3, schedule="cosine", ema_decay=0.98, monitor_paths=500)  # fmt: skip
    star = hb.reference.GaussianBridge(NEAR0, NEAR1, ONE).coupling()
    for to in ("end", "start"):
        x = (NEAR0 if to == "end" else NEAR1).sample(20_000, 9).float()
        y = made.translate(x, 3, to=to)
        mean, cov = coupling_of(*((x, y) if to == "end" else (y, x)))
        assert float((mean - star.mean).abs().max()) < 0.1
        assert float((cov - star.cov).norm() / star.cov.norm()) < 0.11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dsbn"}, "`method` = 'dsbn' is no way to a bridge; did you mean 'dsb'"),
        ({"method": "dsbm", "target": "mean"}, "bridge matching has 'increment' alone"),
        ({"coupling": "referense"}, "`coupling` = 'referense' is none .* did you mean 'reference'"),
        ({"coupling": "ot"}, "`coupling` has no part in method='dsb'"),
        ({"method": "dsbm", "coupling": "sinkhor"}, "`coupling` = 'sinkhor' is none .* did you mean 'sinkhorn'"),
        ({"method": "dsbm", "coupling": "ot", "coupling_size": 0}, "`coupling_size` = 0"),
        ({"method": "dsbm", "coupling": "ot", "first": NEAR0.field(ONE)}, "no part in first="),
    ],
)  # fmt: skip
def test_bad_input_is_named(options, message):
    law = Examples(NEAR0.sample(10, 0))
    with pytest.raises(ValueError, match=message):
        fit_bridge(*nets(dtype=F64), law, law, ReferenceChain(ONE, 3), steps=1, **options)


def test_a_half_bridge_of_dsb_has_the_same_states_as_its_pairs():
    half = HalfBridge(1, exact_iterate(4, 1).law)
    path = half.states(5, 3, 2)
    for pair in half.pairs(5, 3, 2, means=False):
        torch.testing.assert_close(pair.here, path[pair.k])
        torch.testing.assert_close(pair.there, path[half.direction.arrives(pair.k)])


def test_a_minibatch_larger_than_what_is_simulated_at_once_is_paired_once_a_fill(monkeypatch):
    solved, transported = [], couplings._transported
    monkeypatch.setattr(couplings, "_transported", lambda cost: (solved.append(len(cost)), transported(cost))[1])
    coupling = Coupling(NEAR0, NEAR1, CHAIN, "ot", 32)
    cache = TrajectoryCache(CHAIN, NEAR0.sample(1, 0), 64, "increment", matching=True, chunk=5)
    half = BridgeMatching(0, PathLaw(NEAR0, ReferenceTransitions(CHAIN)), None, coupling)
    cache.hold(half, 3, 0)
    assert solved == [32, 32]
    x, y = coupling.sample(64, 3)
    for one, part in zip((x, y), zip(*(Coupling(NEAR0, NEAR1, CHAIN, "ot", 32).sample(8, 3, at) for at in range(0, 64, 8)), strict=True), strict=True):  # fmt: skip
        assert torch.equal(one, torch.cat(part))
