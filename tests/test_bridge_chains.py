"""Simulated chains: what a step is, which noise it has, which labels the means see; covariances of kernels."""

import itertools
import math

import pytest
import torch
from bridges import gaussian

import halfbridge as hb
from halfbridge.kernels import normal
from halfbridge.training.bridge import (
    AffineTransitions,
    Diagonal,
    Direction,
    Examples,
    Full,
    Isotropic,
    Normal,
    PathLaw,
    ReferenceChain,
    ReferenceTransitions,
    Sum,
    Transitions,
    gaussian_chain,
    path_index,
    simulate,
    walk,
)
from halfbridge.training.bridge.ends import check_ends

F64 = torch.float64
CHAIN = ReferenceChain.dsb([0.1, 0.2, 0.4], rate=0.5)
WAYS = pytest.mark.parametrize("direction", Direction, ids=lambda d: d.value)


class Wavy(Transitions):
    """x + gamma sin(x + k), and a record of the labels and states that it was called with."""

    def __init__(self, reference, direction, spread=None):
        super().__init__(reference, direction)
        self.spread, self.calls = spread, []

    def terms(self, k, x):
        self.calls.append((k, x.clone()))
        return Sum([x, (x + k).sin()], [1.0, self.gamma(k)])

    def covariance(self, k, x):
        return super().covariance(k, x) if self.spread is None else self.spread


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@WAYS
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_a_chain_is_its_means_plus_the_counted_normals_of_its_steps(direction, shape):
    x = random(4, *shape)
    kernels = Wavy(CHAIN, direction)
    path = simulate(kernels, x, seed=9, first=7, half_bridge=3, keep=True)
    steps = {"forward": [(0, 1, 0.1), (1, 2, 0.2), (2, 3, 0.4)], "backward": [(3, 2, 0.4), (2, 1, 0.2), (1, 0, 0.1)]}
    here = x
    for j, (k, to, gamma) in enumerate(steps[direction.value], start=1):
        assert torch.equal(kernels.calls[j - 1][1], path[k])
        z = normal(x.shape, 9, j, (3 << 40) + 7, dtype=F64)
        here = here + gamma * (here + k).sin() + math.sqrt(2 * gamma) * z
        assert kernels.calls[j - 1][0] == k
        torch.testing.assert_close(path[to], here, rtol=1e-14, atol=1e-14)


@WAYS
def test_paths_kept_or_not_walked_or_not_are_the_same(direction):
    x = random(6, 2)
    before = x.clone()
    kernels = Wavy(CHAIN, direction)
    path = simulate(kernels, x, seed=1, keep=True)
    last = direction.other.start(3)
    buffer = torch.full_like(x, torch.nan)
    assert simulate(kernels, x, seed=1, out=buffer) is buffer
    assert torch.equal(buffer, path[last])
    assert torch.equal(x, before)
    ks, shown = [], set()
    for step in walk(kernels, x, seed=1):
        ks.append(step.k)
        torch.testing.assert_close(step.before, path[step.k], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(step.after, path[direction.arrives(step.k)], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(step.mean, kernels.mean(step.k, path[step.k]), rtol=1e-14, atol=1e-14)
        shown |= {t.data_ptr() for t in step[1:]}
    assert ks == list(direction.leaves(3))
    assert len(shown) == 3
    assert torch.equal(x, before)


@WAYS
def test_without_its_last_noise_a_chain_ends_at_its_last_mean(direction):
    x, kernels = random(6, 2), Wavy(CHAIN, direction)
    path = simulate(kernels, x, seed=1, keep=True)
    quiet = simulate(kernels, x, seed=1, keep=True, last_noise=False)
    *_, k = direction.leaves(3)
    end = direction.arrives(k)
    assert torch.equal(quiet[end], kernels.mean(k, path[k]))
    others = [i for i in range(4) if i != end]
    assert torch.equal(quiet[others], path[others])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_path_does_not_depend_on_the_batch_around_it(dtype):
    law = PathLaw(Normal((3,), 1.5, dtype), ReferenceTransitions(CHAIN))
    whole = law.sample(11, seed=4, first=20, half_bridge=2)
    parts = [law.sample(n, seed=4, first=20 + at, half_bridge=2) for at, n in ((0, 4), (4, 1), (5, 6))]
    assert whole.dtype == dtype
    assert torch.equal(torch.cat(parts), whole)


def test_half_bridges_steps_starts_and_seeds_share_no_normal():
    law = PathLaw(Normal((3,), 1.0, F64), Wavy(CHAIN, Direction.FORWARD))
    runs = [law.begin(50, 4), law.begin(50, 4, half_bridge=1), law.begin(50, 4, 50), law.begin(50, 5)]
    for half_bridge, first, seed in ((0, 0, 4), (1, 0, 4), (0, 50, 4), (0, 0, 5)):
        noises = [s.after - s.mean for s in law.walk(50, seed, first, half_bridge)]
        gammas = (0.1, 0.2, 0.4)
        runs += [z / math.sqrt(2 * g) for z, g in zip(noises, gammas, strict=True)]
    rounded = torch.stack([(z * 1e9).round() for z in runs]).flatten()
    assert len(rounded.unique()) == len(rounded)


@WAYS
def test_laws_of_simulated_chains_are_the_exact_ones(direction):
    """Full, state-independent kernels that do not commute: mean and covariance of both ends, at 5 standard errors."""
    n, d = 20_000, 2
    start = gaussian(d, 3)
    gain, offset = 0.6 * random(3, d, d, seed=1), random(3, d, seed=2)
    spreads = [
        Full(torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)),
        Diagonal(torch.tensor([0.2, 0.9], dtype=F64)),
        Isotropic(0.3),
    ]
    law = PathLaw(start, AffineTransitions(CHAIN, direction, gain, offset, spreads))
    exact = gaussian_chain(law)
    path = law.sample(n, seed=11, keep=True).transpose(0, 1).reshape(n, -1)
    whole = exact.law
    left = path - whole.mean
    assert (left.mean(0).abs() < 5 * (whole.cov.diagonal() / n).sqrt()).all()
    variances = whole.cov.diagonal()
    error = ((torch.outer(variances, variances) + whole.cov.square()) / n).sqrt()
    assert ((left.mT @ left / n - whole.cov).abs() < 5 * error).all()


def test_a_chain_that_leaves_the_numbers_is_stopped_and_named():
    class Bursting(Wavy):
        def terms(self, k, x):
            return Sum([x], [1e200])

    with pytest.raises(FloatingPointError, match=r"backward chain .* 6 of 6 .*first in the step from x_2; .*Bursting"):
        simulate(Bursting(CHAIN, Direction.BACKWARD), torch.ones(3, 2, dtype=F64), seed=0, keep=True)
    with pytest.raises(FloatingPointError, match="forward chain is not finite"):
        list(walk(Bursting(CHAIN, Direction.FORWARD), torch.ones(3, 2, dtype=F64), seed=0))


def test_examples_are_picked_evenly_and_by_their_index():
    end = Examples(torch.arange(10.0)[:, None])
    picked = end.sample(20_000, seed=3)
    counts = torch.bincount(picked[:, 0].long(), minlength=10)
    assert (counts.double() - 2000).abs().max() < 5 * math.sqrt(20_000 * 0.1 * 0.9)
    assert torch.equal(end.sample(7, seed=3, first=100), picked[100:107])
    assert not torch.equal(end.sample(50, seed=4), picked[:50])
    assert (end.sample(100, seed=3, first=path_index(1)) != picked[:100]).any()


FORMS = [
    Isotropic(0.7),
    Diagonal(torch.tensor([[0.4, 1.1, 0.2]], dtype=F64)[0]),
    Full(torch.tensor([[0.9, 0.2, 0.1], [0.2, 0.5, -0.1], [0.1, -0.1, 0.3]], dtype=F64)),
]


def as_law(mean, spread):
    return hb.reference.Gaussian(mean, spread.matrix(torch.zeros(1, 3))[0])


@pytest.mark.parametrize(("mine", "its"), list(itertools.product(FORMS, FORMS)), ids=repr)
def test_kl_and_density_of_kernels_are_those_of_gaussians(mine, its):
    shift = random(4, 3)
    zero = torch.zeros(3)
    for row, kl in zip(shift, mine.kl(its, shift), strict=True):
        assert float(kl) == pytest.approx(as_law(row, mine).kl(as_law(zero, its)), rel=1e-12)
    torch.testing.assert_close(mine.log_prob(shift), as_law(zero, mine).log_prob(shift))


def test_kl_between_kernels_of_dsb_is_the_squared_difference_over_4_gamma():
    shift, gamma = random(4, 2, 3), 0.13
    kl = Isotropic(2 * gamma).kl(Isotropic(2 * gamma), shift)
    torch.testing.assert_close(kl, shift.flatten(1).square().sum(1) / (4 * gamma), rtol=1e-13, atol=0)


@pytest.mark.parametrize("spread", FORMS, ids=repr)
def test_noise_of_a_kernel_has_its_covariance(spread):
    """x += root z with root root^T = C, and z the counted normals: exactly, for any state shape of d elements."""
    x = torch.zeros(3, 3, dtype=F64)
    spread.disturb(x, 5, 2, 8)
    z = normal((3, 3), 5, 2, 8, dtype=F64)
    root = torch.linalg.solve(z, x).mT
    torch.testing.assert_close(root @ root.mT, spread.matrix(x)[0])


def test_one_covariance_a_sample_is_applied_to_its_sample():
    variances, matrices = random(4, 1).exp(), torch.stack([FORMS[2].covariance * s for s in (1.0, 2.0, 3.0, 4.0)])
    z = normal((4, 3), 5, 2, 0, dtype=F64)
    for spread, want in (
        (Diagonal(variances), variances.sqrt() * z),
        (Full(matrices), torch.stack([torch.linalg.cholesky(C) @ row for C, row in zip(matrices, z, strict=True)])),
    ):
        x = torch.ones(4, 3, dtype=F64)
        spread.disturb(x, 5, 2, 0)
        torch.testing.assert_close(x, 1 + want)
        other = Isotropic(0.5)
        for i, kl in enumerate(spread.kl(other, z)):
            one = hb.reference.Gaussian(z[i], spread.matrix(z)[i])
            assert float(kl) == pytest.approx(one.kl(hb.reference.Gaussian(torch.zeros(3), 0.5)), rel=1e-12)
        assert spread.log_prob(z)[2] == pytest.approx(
            float(hb.reference.Gaussian(torch.zeros(3), spread.matrix(z)[2]).log_prob(z[2:3]))
        )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Isotropic(0.0), ValueError, r"`variance` = 0\.0 of a kernel must be positive"),
        (lambda: Diagonal(torch.tensor([1.0, -1.0])), ValueError, "1 of 2 are not, such as -1"),
        (lambda: Full(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), ValueError, "smallest eigenvalue is -1"),
        (lambda: Full(torch.full((5, 5), torch.nan)), ValueError, "`covariance` must be finite, but 25 of its 25 entries are NaN"),
        (lambda: Full(torch.ones(3)), ValueError, r"`covariance` has shape \(3,\)"),
        (lambda: path_index(1 << 24), ValueError, "`half_bridge` = 16777216 is outside"),
        (lambda: path_index(0, 1 << 40), ValueError, "`first` = 1099511627776 is outside"),
        (lambda: Examples(torch.ones(3)), ValueError, r"`data` is \(3,\), torch.float32; pass a floating tensor"),
        (lambda: Examples(torch.full((2, 1), torch.nan)), ValueError, "2 of its 2 entries are NaN"),
        (lambda: Normal((2,), 0.0), ValueError, r"`std` = 0\.0 must be positive"),
        (lambda: check_ends(Normal((2,)), Normal((3,))), ValueError, r"`end` has samples of shape \(3,\), but `start` .*\(2,\)"),
        (lambda: check_ends(Normal((2,)), gaussian(2, 0)), ValueError, r"of dtype torch.float64, but `start` has torch.float32"),
        (
            lambda: simulate(ReferenceTransitions(CHAIN), torch.ones(2, 2), 0, keep=True, out=torch.ones(2, 2)),
            ValueError,
            r"`out` is \(2, 2\), torch.float32 on cpu; this chain needs \(4, 2, 2\)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
