"""Property-based tests for solvers, ours or yours: Hypothesis strategies, and assertions that compare with exact answers.

    from hypothesis import given
    import halfbridge as hb

    @given(hb.testing.processes(), hb.testing.gaussians())
    def test_my_solver_has_its_order(process, data):
        hb.testing.assert_order(MySolver(), process, data)

processes, gaussians, mixtures, grids   strategies
assert_order                            the law, or the flow, converges at the declared order
assert_law                              a law, or samples, are those of another
assert_batch_invariant                  a sample depends on the seed and its index, not on the batch around it

Needs hypothesis (`pip install 'halfbridge[test]'`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("hb.testing needs hypothesis; install it (pip install 'halfbridge[test]')") from error

from halfbridge.solvers.field import Field
from halfbridge.solvers.grids import half_log_snr
from halfbridge.solvers.processes import (
    EDM,
    OU,
    VE,
    VP,
    Brownian,
    CosineVP,
    DiscreteVP,
    LinearProcess,
    Process,
    SubVP,
)  # fmt: skip
from halfbridge.solvers.reference.certify import SLACK
from halfbridge.solvers.reference.gaussian import Gaussian
from halfbridge.solvers.reference.mixture import GaussianMixture
from halfbridge.solvers.reference.nonlinear import mixture_errors
from halfbridge.solvers.reference.order import Study, default_steps, law_errors, study
from halfbridge.solvers.run import sample
from halfbridge.solvers.solver import Solver

__all__ = [
    "assert_batch_invariant", "assert_law", "assert_order", "gaussians", "grids", "mixtures", "processes",
]  # fmt: skip


def processes(*, discrete: bool = True) -> st.SearchStrategy[Process]:
    """Any process of the library with random parameters, general `LinearProcess`es among them.

    discrete=False leaves out DiscreteVP, whose log alpha has kinks: orders hold piece by piece there.
    """
    between = partial(st.floats, allow_nan=False)
    kinds: list[st.SearchStrategy[Process]] = [
        st.builds(VP, between(0.05, 0.5), between(5.0, 20.0)),
        st.builds(CosineVP, between(0.004, 0.02)),
        st.builds(SubVP, between(0.05, 0.5), between(5.0, 20.0)),
        st.builds(VE, between(0.01, 0.05), between(5.0, 100.0)),
        st.builds(EDM, between(0.002, 0.02), between(5.0, 80.0)),
        st.builds(OU, between(0.2, 1.5), between(0.5, 2.0), between(2.0, 6.0)),
        st.builds(Brownian, between(0.5, 2.0), between(0.5, 2.0)),
        st.builds(_sigmoid, between(3.0, 6.0)),
    ]
    if discrete:
        kinds.append(st.builds(_ddpm, st.integers(20, 100), between(0.02, 0.2)))
    return st.one_of(kinds)


def _sigmoid(width: float) -> LinearProcess:
    """alpha^2 = sigmoid(width (1 - 2 t)): variance preserving, log-SNR linear in t."""
    return LinearProcess(
        lambda t: torch.sigmoid(width * (1.0 - 2.0 * t)).sqrt(),
        lambda t: torch.sigmoid(width * (2.0 * t - 1.0)).sqrt(),
        T=1.0,
        t_min=1e-3,
    )


def _ddpm(n: int, last: float) -> DiscreteVP:
    return DiscreteVP(np.linspace(1e-4, last, n))


@st.composite
def gaussians(draw: Any, dim: int | None = None, *, singular: bool = False) -> Gaussian:
    """A Gaussian with a random mean, principal axes and variances from 0.1 to 2; dim: 1 to 4 unless given.

    singular=True lets variances be 0 now and then (all of them: a point mass).
    """
    d = draw(st.integers(1, 4)) if dim is None else dim
    mean = draw(st.lists(st.floats(-1.5, 1.5), min_size=d, max_size=d))
    variance = st.floats(0.1, 2.0)
    variances = draw(st.lists(st.one_of(variance, st.just(0.0)) if singular else variance, min_size=d, max_size=d))
    axes = _rotation(draw(st.integers(0, 2**32 - 1)), d)
    return Gaussian(mean, (axes * torch.tensor(variances, dtype=torch.float64)) @ axes.T)


@st.composite
def mixtures(draw: Any, dim: int | None = None, *, components: int | None = None) -> GaussianMixture:
    """A Gaussian mixture of 1 to 4 components with means in [-1.5, 1.5]^d and one variance from 0.1 to 1 or covariances of
    such variances; dim: 1 to 3 unless given."""
    d = draw(st.integers(1, 3)) if dim is None else dim
    k = draw(st.integers(1, 4)) if components is None else components
    weights = np.array(draw(st.lists(st.floats(0.1, 1.0), min_size=k, max_size=k)))
    means = draw(st.lists(st.lists(st.floats(-1.5, 1.5), min_size=d, max_size=d), min_size=k, max_size=k))
    variance = st.floats(0.1, 1.0)
    if draw(st.booleans()):
        return GaussianMixture(weights / weights.sum(), means, draw(variance))
    axes = [_rotation(draw(st.integers(0, 2**32 - 1)), d) for _ in range(k)]
    sizes = [torch.tensor(draw(st.lists(variance, min_size=d, max_size=d)), dtype=torch.float64) for _ in range(k)]
    covs = torch.stack([(q * v) @ q.T for q, v in zip(axes, sizes, strict=True)])
    return GaussianMixture(weights / weights.sum(), means, (covs + covs.mT) / 2)


@st.composite
def grids(draw: Any, process: Process, *, steps: tuple[int, int] = (1, 8), zero: bool = False) -> Any:
    """A strictly decreasing float64 grid from T to t_min, its steps in half log-SNR uneven up to 5 to 1.

    zero=True appends the time 0 now and then, where sigma(0) = 0 and every solver returns its data prediction.
    """
    n = draw(st.integers(*steps))
    low, high = process.half_log_snr(process.T), process.half_log_snr(process.t_min)
    parts = np.array(draw(st.lists(st.floats(0.2, 1.0), min_size=n, max_size=n)))
    inner = low + (high - low) * np.cumsum(parts)[:-1] / parts.sum()
    times = [process.T, *[process.time_at(float(lam)) for lam in inner], process.t_min]
    return np.array([*times, 0.0] if zero and process.sigma(0.0) == 0.0 and draw(st.booleans()) else times)


def _rotation(seed: int, d: int) -> torch.Tensor:
    axes, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return torch.from_numpy(axes)


def assert_order(
    solver: Solver,
    process: Process,
    data: Gaussian | GaussianMixture,
    *,
    order: float | None = None,
    steps: Sequence[int] | None = None,
    grid: Callable[..., Any] = half_log_snr,
    t_end: float | None = None,
    predicts: str = "noise",
) -> Study:
    """Assert that the solver converges at least at `order` (default: the declared one), less 0.15; returns the study.

    On a Gaussian the whole law of the scheme is compared with the exact one: mean, variances, gain of the start. On a
    mixture a deterministic solver's end points are compared with a high-accuracy flow, and expectations under the law of a
    stochastic one, in one or two dimensions and on a grid of its own, with the diffused mixture's. No sampling.
    Raises AssertionError with the errors at each number of steps, and what `observed_order` raises.
    """
    declared = solver.order if order is None else order
    counts = default_steps(solver)
    if isinstance(data, GaussianMixture):
        error, counts = mixture_errors(solver, process, data, grid, t_end, predicts)
    else:

        def error(n: int) -> torch.Tensor:
            return law_errors(solver, process, data, grid(process, n, t_end=t_end), predicts)

    found = study(error, counts if steps is None else steps, math.ceil(declared))
    table = ", ".join(f"{e:.3g} at n = {n}" for n, e in zip(found.steps, found.errors, strict=True))
    if not found.order >= declared - SLACK:
        raise AssertionError(
            f"order {found.order:.2f} seen, {declared:g} expected of {solver!r} on {process!r}: errors {table}"
        )
    return found


def assert_law(
    got: Gaussian | torch.Tensor, want: Gaussian | GaussianMixture, *, rtol: float = 1e-9, standard_errors: float = 5.5
) -> None:
    """Assert that a law is another, whole.

    got: a Gaussian, whose mean and covariance may be off by rtol of `want`'s standard deviations; or samples (n, d), whose mean
    and covariance may be off by that many standard errors (from `want`'s moments, for mixtures from the samples' own fourth
    moments), and whose projections on each axis and on the diagonal pass a Kolmogorov-Smirnov test at the same level.
    Raises AssertionError naming the worst entry; ValueError for fewer than 100 samples, for other dimensions and for a Gaussian
    against a mixture.
    """
    if isinstance(got, Gaussian):
        _check_dim(got.dim, want.dim)
        if isinstance(want, GaussianMixture) and len(want) > 1:
            raise ValueError(
                f"`got` is a Gaussian and `want` a mixture of {len(want)}, which no mean and covariance tell apart; pass samples"
            )
        sd = want.cov.diagonal().sqrt().clamp_min(float(want.cov.diagonal().max().sqrt()) * 1e-8 + 1e-300)
        _assert_small("mean", (got.mean - want.mean).abs() / sd, rtol, "standard deviations")
        _assert_small(
            "covariance", (got.cov - want.cov).abs() / torch.outer(sd, sd), rtol, "products of standard deviations"
        )
        return
    x = got.detach().to("cpu", torch.float64)
    if x.ndim != 2 or len(x) < 100:
        raise ValueError(f"samples have shape {tuple(x.shape)}; pass (n, d) with n >= 100, or a Gaussian")
    _check_dim(x.shape[1], want.dim)
    n, centred = len(x), x - want.mean
    sd = want.cov.diagonal().sqrt()
    if isinstance(want, Gaussian):
        spread = (torch.outer(sd, sd) ** 2 + want.cov**2).sqrt()
    else:
        spread = (torch.einsum("ni,nj->nij", centred, centred) - want.cov).square().mean(0).sqrt()
    root, tiny = math.sqrt(n), 1e-12 * sd.max().clamp_min(1e-300)
    _assert_small("mean", root * centred.mean(0).abs() / (sd + tiny), standard_errors, "standard errors")
    off = (centred.T @ centred / n - want.cov).abs()
    _assert_small("covariance", root * off / (spread + tiny), standard_errors, "standard errors")
    axes = torch.cat([torch.eye(want.dim, dtype=torch.float64), torch.ones(1, want.dim, dtype=torch.float64)])
    level = math.exp(-(standard_errors**2) / 2)  # P(sqrt(n) D > c) is about 2 exp(-2 c^2): c = standard_errors / 2
    distances = torch.stack([_kolmogorov_smirnov(x, want, axis) for axis in axes])
    _assert_small(f"distribution (p < {2 * level:.1g})", root * distances, standard_errors / 2, "in sqrt(n) units")


def _check_dim(got: int, want: int) -> None:
    if got != want:
        raise ValueError(f"`got` has dimension {got} but `want` has {want}; they must agree")


def _assert_small(what: str, off: torch.Tensor, allowed: float, unit: str) -> None:
    worst = float(off.max()) if off.isfinite().all() else math.inf
    if not worst <= allowed:
        place = np.unravel_index(int(off.nan_to_num(math.inf).argmax()), tuple(off.shape))
        where = f"[{', '.join(str(int(i)) for i in place)}]"
        raise AssertionError(f"{what}{where} is off by {worst:.3g} {unit} (allowed: {allowed:g})")


def _kolmogorov_smirnov(x: torch.Tensor, want: Gaussian | GaussianMixture, axis: torch.Tensor) -> torch.Tensor:
    """sup |F_n - F| of the projections on an axis; 0 where a part of the law has no spread along it, beyond rounding."""
    parts = want.components if isinstance(want, GaussianMixture) else (want,)
    weights = want.weights if isinstance(want, GaussianMixture) else torch.ones(1, dtype=torch.float64)
    sds = [float((axis @ part.cov @ axis).clamp_min(0).sqrt()) for part in parts]
    if min(sds) <= 1e-7 * float(want.cov.diagonal().max().sqrt() * axis.norm()):
        return torch.zeros((), dtype=torch.float64)
    y = (x @ axis).sort().values
    exact = sum(
        w * torch.special.ndtr((y - axis @ part.mean) / sd) for w, part, sd in zip(weights, parts, sds, strict=True)
    )
    rank = torch.arange(len(y) + 1, dtype=torch.float64) / len(y)
    return torch.maximum((rank[1:] - exact).max(), (exact - rank[:-1]).max())


def assert_batch_invariant(
    solver: Solver,
    field: Field,
    grid: Any,
    shape: Sequence[int],
    *,
    seed: Any = 0,
    first: int = 0,
    prior: Any = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 0.0,
) -> None:
    """Assert that `hb.sample` gives each sample whatever the batch around it: alone, in halves and in uneven shards.

    tolerance: how far a shard may be off, relative to the largest entry; 0, the default, asks for the same bits, which a
    network's matrix products do not have (1e-5 suits float32 there). seed may be an int or a noise object for any `first`.
    Raises AssertionError naming the shard and the sample; ValueError for fewer than 2 samples.
    """
    if len(shape) < 1 or shape[0] < 2:
        raise ValueError(f"shape = {tuple(shape)!r} has one batch only; pass at least 2 samples")

    def run(begin: int, end: int) -> torch.Tensor:
        sizes = (end - begin, *shape[1:])
        return sample(
            field, solver, grid=grid, shape=sizes, seed=seed, first=first + begin, prior=prior, dtype=dtype
        ).detach()  # fmt: skip

    n = shape[0]
    whole = run(0, n)
    size = float(whole.abs().max())
    cuts = {(0, 1), (n - 1, n), (0, n // 2), (n // 2, n), (n // 3, n)}
    for begin, end in sorted(cut for cut in cuts if cut[0] < cut[1]):
        off = (run(begin, end) - whole[begin:end]).abs().flatten(1).amax(1)
        if not bool((off <= tolerance * size).all()):
            i = int(off.nan_to_num(math.inf).argmax())
            raise AssertionError(
                f"sample {first + begin + i} differs by {float(off[i]):.3g} between the batch [{first}, {first + n}) and "
                f"[{first + begin}, {first + end}) (allowed: {tolerance * size:.3g}); {solver!r} couples the samples of a "
                "batch, or the field does"
            )
