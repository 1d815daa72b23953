"""The kernels of `mixture_field`, interpreted: within their stated error, whatever the shapes, strides and batch."""

import contextlib
import math
from unittest import mock

import numpy as np
import pytest
import torch
from exact_mixtures import EPS, F32, F64, check, exact, log_weights, problem, random
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from layouts import laid_out

from halfbridge.kernels import mixture_field, mixture_log_density, use

pytest.importorskip("triton")
gpu = pytest.importorskip("halfbridge.kernels.gpu.mixture_field")


@pytest.fixture(autouse=True)
def outputs_begin_as_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def small_tiles(entries=1 << 24):
    """Kernels that take several parts, tiles and blocks for a few dozen components, which the interpreter takes its time over."""
    lanes, width, usual = {F32: 16, F64: 16}, {F32: 32, F64: 16}, gpu.fused_tile

    def tile(*arguments):
        d, samples, lanes = usual(*arguments)
        return gpu.Tile(d, samples * lanes // min(8, lanes), min(8, lanes))

    constants = {"ENTRIES": entries, "LENGTH": 32, "SAMPLES": 4, "LANES": lanes, "WIDTH": width, "fused_tile": tile}
    with mock.patch.multiple(gpu, **constants), use("triton"):
        yield


@settings(deadline=None, max_examples=25)
@given(
    n=st.sampled_from([0, 1, 3, 6]),
    k=st.sampled_from([1, 2, 3, 16, 37, 64, 70]),
    d=st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32, 33, 70]),
    dtype=st.sampled_from(list(EPS)),
    sigma=st.sampled_from([1e-8, 1e-3, 1.0, 1e4]),
    far=st.booleans(),
    varied=st.booleans(),
    gains=st.sampled_from([None, False, True]),
    known=st.booleans(),
    layouts=st.tuples(*[st.sampled_from(["plain", "shifted", "strided", "transposed"])] * 2),
    seed=st.integers(0, 100),
)
def test_kernel_is_within_its_stated_error(n, k, d, dtype, sigma, far, varied, gains, known, layouts, seed):
    """Also of several parts, several blocks of samples, any strides; NaN that is not written over would show."""
    x, means, logs, s, gain, alpha, offset = problem(n, k, d, dtype, sigma, far, varied, gains, seed)
    reach = float(means.double().norm(dim=1).max()) if known else None
    with small_tiles(300):
        got, density = mixture_field(
            laid_out(x, layouts[0]), laid_out(means, layouts[1]), logs, s, gain,
            alpha=alpha, offset=offset, reach=reach, log_density=True,
        )  # fmt: skip
    assert (got.shape, got.dtype) == (x.shape, dtype)
    inner = F64 if dtype == F64 else F32
    assert (density.shape, density.dtype) == ((n,), inner)
    if n:
        field, logarithm = exact(x, means, logs, s, gain, alpha, offset, inner)
        check(got, field, dtype)
        check(density, logarithm, inner)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_small_noise_costs_no_digits(d, dtype):
    """x 2 sigma from two of 30 means that are 1 from the others: where |x|^2 - 2 x.m + |m|^2 has lost everything."""
    sigma, scale = (1e-6, 2.0**-20) if dtype == F32 else (1e-12, 2.0**-40)
    grid = (random(30, d) / scale).round() * scale
    grid[1::2] = grid[::2] + scale * (2 * random(15, d, seed=1)).round()
    x, means = (grid[::2] + scale).to(dtype), grid.to(dtype)
    with use("triton"):
        got = mixture_field(x, means, log_weights(30), sigma**2, 1 / sigma)
    value, _ = exact(x, means, log_weights(30), sigma**2, 1 / sigma, 1.0, 0.0)[0]
    error = np.abs(got.to(F64).numpy() - value).max() / np.abs(value).max()
    assert error < 20 * d * EPS[dtype]


def test_many_coordinates_cost_no_digits():
    """Four thousand equal squares; added up as they come, eight at a time, they drift by 26 u."""
    x, means, logs = torch.full((1, 4001), 0.9), torch.full((2, 4001), 0.3), log_weights(2)
    with small_tiles():
        got = mixture_log_density(x, means, logs, 0.1)
    exactly = -0.5 * 4001 * (float(x[0, 0] - means[0, 0]) ** 2 / 0.1 + math.log(2 * math.pi * 0.1))
    assert abs(float(got) - exactly) < 6 * EPS[F32] * abs(exactly)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_bits_of_a_sample_do_not_depend_on_its_batch(d, dtype):
    x, means, logs, s, gain, alpha, _ = problem(6, 40, d, dtype, 0.3, True, True, True)
    arguments = (means, logs, s, gain)
    with small_tiles():
        whole = mixture_field(x, *arguments, alpha=alpha, log_density=True)
        for rows in (slice(4, 5), torch.arange(5, -1, -1)):
            part = mixture_field(x[rows], *arguments, alpha=alpha, log_density=True)
            assert all(torch.equal(one, other[rows]) for one, other in zip(part, whole, strict=True))
    with small_tiles(entries=1):
        blocks = mixture_field(x, *arguments, alpha=alpha, log_density=True)
    assert all(torch.equal(one, other) for one, other in zip(blocks, whole, strict=True))


@pytest.mark.parametrize("sigma", [0.2, 1.0])  # exponents hundreds apart, and a few
def test_tiles_without_weight_are_skipped_without_a_trace(sigma):
    x, means, logs, s, gain, alpha, _ = problem(5, 70, 40, F32, sigma, False, False, False)
    with small_tiles():
        skipped = mixture_field(x, means, logs, s, gain, alpha=alpha)
        with mock.patch.dict(gpu.GONE, {F32: -1e30}):
            assert torch.equal(mixture_field(x, means, logs, s, gain, alpha=alpha), skipped)


@pytest.mark.parametrize("d", [3, 33])
def test_kernel_holds_blocks_only(d):
    n, k = 64, 80
    x, means, logs, s, gain, alpha, _ = problem(n, k, d, F32, 0.6, False, False, False)
    with small_tiles(entries=1000), mock.patch.object(gpu, "SAMPLES", 16), LargestTensor() as seen:
        mixture_field(x, means, logs, s, gain, alpha=alpha)
    assert seen.numel <= max(n * d, k * d, 16 * k) < n * k
