"""`mixture_field`: the kernel within its stated error of sums of 60 digits, its invariances, gradients, memory."""

import contextlib
import importlib
import math
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import laid_out
from torch.utils._python_dispatch import TorchDispatchMode

from halfbridge.kernels import mixture_field, mixture_log_density, mixture_reference, use

gpu = importlib.import_module("halfbridge.kernels.gpu.mixture_field")
F32, F64 = torch.float32, torch.float64
EPS = {F32: 2.0**-24, F64: 2.0**-53, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
CUT = {**EPS, torch.bfloat16: 2.0**-7}  # of a result: the interpreter cuts float32 off to bfloat16 where a GPU rounds


@pytest.fixture(autouse=True)
def outputs_begin_as_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def log_weights(k, seed=0):
    return uniform(k, seed=seed).add(0.1).log_().log_softmax(0)


def exact(x, means, logs, s, gain, alpha, offset, inner=F64):
    """(field, log density) with exponents of 60 digits, each (value, what the stated roundings of `inner` may make of it)."""
    with mpmath.workdps(60):
        wide = np.vectorize(mpmath.mpf, otypes=[object])
        d, u = x.shape[1], EPS[inner]
        x, m, logs = (t.to(F64).numpy() for t in (x, means, logs))
        s, g = (np.broadcast_to(np.asarray(t, dtype=float), len(m)) for t in (s, gain))
        y = wide(x)[:, None] - alpha * wide(m)
        fixed = logs - d * np.vectorize(mpmath.log, otypes=[object])(wide(s)) / 2
        e = fixed - (y * y).sum(2) / (2 * wide(s))
        top = e.max(1, keepdims=True)
        weight = np.exp((e - top).astype(float))
        total = weight.sum(1, keepdims=True)
        density = (top[:, 0] + np.log(total[:, 0]) - d * mpmath.log(2 * mpmath.pi) / 2).astype(float)
        relative, y, fixed = (t.astype(float) for t in (e - top, y, fixed))
    r, f = (weight / total)[:, :, None], g[:, None] * y + offset * m
    field, shift = (r * f).sum(1), abs(alpha) * np.abs(m)

    distance, reach = np.sqrt((y**2).sum(2)), np.sqrt((shift**2).sum(1)).max()
    size = np.abs(np.where(np.isfinite(fixed), fixed, 0)) + np.abs(np.log(s)) * d + 4
    off = u * (6 * distance * np.minimum(distance, 5 * reach) / s + 3 * size)
    off += u * 12 * distance**2 / s * (np.ptp(s) > 0)
    off += u * 4 * shift.max() * distance * math.sqrt(d) / s  # the interpreter rounds alpha m
    sums = u * (600 + len(m) / 4096)
    spread = np.abs(f - field[:, None])
    lost = (r * np.expm1(np.minimum(off, 50))[:, :, None] * spread).sum(1)
    lost = lost / np.maximum((r[:, :, 0] * np.exp(-off)).sum(1), 1e-300)[:, None]
    lost = np.minimum(lost, spread.max(1))  # whatever the weights
    terms = (r * (np.abs(g[:, None]) * (np.abs(y) + shift) + np.abs(offset * m))).sum(1)

    up = (relative + off).max(1, keepdims=True)
    risen = (up + np.log(np.exp(relative + off - up).sum(1, keepdims=True) / total))[:, 0]
    density_off = np.maximum(risen, (r[:, :, 0] * off).sum(1)) + sums + 8 * u * np.abs(density) + 3 * u * size.max()
    return (field, lost + sums * terms), (density, density_off)


def check(got, expected, dtype):
    """Within what is allowed, and one rounding to dtype; a result that dtype cannot hold is inf."""
    value, allowed = expected
    got = got.to(F64).numpy()
    allowed = allowed + 1.01 * CUT[dtype] * np.abs(value) + float(torch.finfo(dtype).smallest_normal)
    over = np.abs(value) + allowed > torch.finfo(dtype).max
    assert ((np.abs(got - value) <= allowed) | over).all(), np.max(np.abs(got - value) / allowed)


def problem(n, k, d, dtype, sigma, far, varied, gains, seed=0):
    """Samples near the components, x = alpha m + sigma z, or far from all of them, and what stands for the rest."""
    means = random(k, d, seed=seed + 1).to(dtype)
    alpha, offset = (0.5, 0.0, -0.75)[seed % 3], (0.0, 0.6)[seed % 2]
    s = sigma**2 * (1 + uniform(k, seed=seed + 2)) if varied else sigma**2
    gain = uniform(k, seed=seed + 3) / sigma if gains else -1 / sigma
    x = alpha * means[torch.arange(n) % k].double() + sigma * random(n, d, seed=seed + 4)
    if far:
        x[::2] += 1e6 * random(1, d, seed=seed + 5)
    limit = 6e4 if dtype == torch.float16 else 1e30
    return x.clamp(-limit, limit).to(dtype), means, log_weights(k, seed), s, gain, alpha, offset


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
    gains=st.booleans(),
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


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 9), k=st.integers(1, 40), d=st.integers(1, 40), dtype=st.sampled_from(list(EPS)),
    sigma=st.sampled_from([1e-3, 1.0, 1e4]), far=st.booleans(), varied=st.booleans(), gains=st.booleans(), seed=st.integers(0, 100),
)  # fmt: skip
def test_reference_is_within_the_error_of_float64(n, k, d, dtype, sigma, far, varied, gains, seed):
    x, means, logs, s, gain, alpha, offset = problem(n, k, d, dtype, sigma, far, varied, gains, seed)
    with mock.patch.multiple(mixture_reference, LOGITS=40, TABLE=200, WIDTH=7), use("reference"):
        got, density = mixture_field(x, means, logs, s, gain, alpha=alpha, offset=offset, log_density=True)
    assert (got.shape, got.dtype) == (x.shape, dtype)
    if n:
        field, logarithm = exact(x, means, logs, s, gain, alpha, offset)
        size = np.abs(x.double().numpy()).max() + np.abs(means.double().numpy()).max()
        check(got, (field[0], field[1] + 40 * EPS[F64] * size * float(torch.as_tensor(gain).abs().max())), dtype)
        check(density, logarithm, F64 if dtype == F64 else F32)


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


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("d", [3, 40])
def test_permuted_split_and_weightless_components_change_nothing(backend, d):
    k = 70
    x, means, logs, s, gain, alpha, offset = problem(6, k, d, F64, 0.5, False, True, True, seed=1)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(0))
    half = torch.cat([logs[:1] - math.log(2), logs[1:], logs[:1] - math.log(2)])
    twice, with_far = (
        torch.cat([torch.arange(k), torch.zeros(1, dtype=torch.int64)]),
        torch.cat([means, 1e6 * means[:1]]),
    )
    none = torch.cat([logs, logs.new_full((1,), -math.inf)])
    cases = (
        (means[order], logs[order], s[order], gain[order]),
        (means[twice], half, s[twice], gain[twice]),
        (with_far, none, s[twice], gain[twice]),
    )
    with use(backend):
        expected = mixture_field(x, means, logs, s, gain, alpha=alpha, offset=offset, log_density=True)
        for case in cases:
            got = mixture_field(x, *case, alpha=alpha, offset=offset, log_density=True)
            torch.testing.assert_close(got, expected, rtol=1e-10 if case[0] is with_far else 1e-13, atol=1e-13)


def test_tiles_without_weight_are_skipped_without_a_trace():
    x, means, logs, s, gain, alpha, _ = problem(5, 70, 40, F32, 0.05, False, False, False)
    with small_tiles():
        skipped = mixture_field(x, means, logs, s, gain, alpha=alpha)
        with mock.patch.dict(gpu.GONE, {F32: -1e30}):
            assert torch.equal(mixture_field(x, means, logs, s, gain, alpha=alpha), skipped)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("varied", [False, True])
def test_derivatives_of_two_orders_are_those_of_the_values(backend, varied):
    x, means, logs, s, gain, alpha, offset = problem(2, 4, 2, F64, 0.6, False, varied, varied, seed=1)
    x.requires_grad_()

    def both(x):
        return mixture_field(x, means, logs, s, gain, alpha=alpha, offset=offset, log_density=True)

    with use(backend), mock.patch.multiple(mixture_reference, LOGITS=6, WIDTH=2):
        assert torch.autograd.gradcheck(both, (x,))
        assert torch.autograd.gradgradcheck(both, (x,))
        assert torch.autograd.gradcheck(lambda x: mixture_field(x, means, logs, s, gain, alpha=alpha), (x,))
        assert torch.autograd.gradgradcheck(lambda x: mixture_log_density(x, means, logs, s, alpha=alpha), (x,))
        one = lambda x: mixture_field(x[None], means, logs, s, gain, alpha=alpha)[0]  # noqa: E731
        expected = torch.autograd.functional.jacobian(one, x[0])
        for jacobian in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(jacobian(one)(x[0].detach()), expected)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_score_is_the_gradient_of_the_log_density(backend):
    x, means, logs, s, _, alpha, _ = problem(4, 30, 3, F64, 0.6, False, True, False)
    x.requires_grad_()
    with use(backend):
        (gradient,) = torch.autograd.grad(mixture_log_density(x, means, logs, s, alpha=alpha).sum(), x)
        torch.testing.assert_close(
            gradient, mixture_field(x, means, logs, s, -1 / s, alpha=alpha), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("varied", [False, True])
def test_operator_obeys_torch_library(varied):
    x, means, logs, s, gain, alpha, offset = problem(3, 5, 2, F64, 0.6, False, varied, varied)
    tables = (s, gain, 1.0, 0.0) if varied else (None, None, s, gain)
    x.requires_grad_()
    operators = torch.ops.halfbridge
    torch.library.opcheck(operators.mixture_field.default, (x, means, logs, *tables, alpha, offset, None, True, True))
    torch.library.opcheck(
        operators.mixture_field_pullback.default,
        (x, [x.detach()], means, logs, *tables, alpha, offset, 2.0, True, False),
    )


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_compiled_in_one_graph_it_is_the_same(backend):
    x, means, logs, s, gain, alpha, _ = problem(3, 9, 2, F64, 0.6, False, True, False)

    def loss(x):
        field, density = mixture_field(x.sin(), means, logs, s, gain, alpha=alpha, log_density=True)
        return field.square().sum() + density.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    with use(backend):
        torch.testing.assert_close(compiled(x), loss(x), rtol=1e-14, atol=0)
        got, expected = (torch.autograd.grad(f(x), x) for f in (compiled, loss))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any tensor made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if (
                isinstance(value, torch.Tensor) and value.is_floating_point()
            ):  # the interpreter copies arguments as bytes
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("backward", [False, True])
def test_reference_and_its_backward_hold_blocks_only(backward):
    n, k, d = 100, 2000, 30
    x, means, logs, s, gain, alpha, offset = problem(n, k, d, F64, 0.6, False, True, True)
    with mock.patch.multiple(mixture_reference, LOGITS=1 << 10, TABLE=1 << 10, WIDTH=64), LargestTensor() as seen:
        components = mixture_reference.Components(means, logs, s, gain, alpha, offset, 9.0)
        if backward:
            mixture_reference.mixture_pullback(x, components, x, x[:, 0])
        else:
            mixture_reference.mixture_field_reference(x, components, True, True)
    assert seen.numel <= max(2 * (1 << 10) + 64 * 3, n * (2 * d + 6))


@pytest.mark.parametrize("d", [3, 33])
def test_kernel_holds_blocks_only(d):
    n, k = 64, 80
    x, means, logs, s, gain, alpha, _ = problem(n, k, d, F32, 0.6, False, False, False)
    with small_tiles(entries=1000), mock.patch.object(gpu, "SAMPLES", 16), LargestTensor() as seen:
        mixture_field(x, means, logs, s, gain, alpha=alpha)
    assert seen.numel <= max(n * d, k * d, 16 * k) < n * k


BAD = {
    "x": ({"x": torch.ones(3)}, ValueError, r"`x` has shape \(3,\)"),
    "x of integers": ({"x": torch.ones(3, 2, dtype=torch.int64)}, ValueError, "`x` has dtype torch.int64"),
    "means": ({"means": torch.ones(4, 3)}, ValueError, r"`means` has shape \(4, 3\)"),
    "wide means": ({"means": torch.ones(4, 2, dtype=F64)}, ValueError, "pass x.double"),
    "means elsewhere": ({"means": torch.ones(4, 2, device="meta")}, ValueError, "`means` is on meta"),
    "no means": ({"means": torch.ones(0, 2)}, ValueError, "k >= 1"),
    "log_weights": ({"log_weights": torch.ones(5)}, ValueError, r"`log_weights` has shape \(5,\)"),
    "variances": ({"variances": 0.0}, ValueError, "`variances` = 0.0 is not positive"),
    "variances of k": ({"variances": torch.ones(4, 1)}, ValueError, r"`variances` has shape \(4, 1\)"),
    "tiny variances": ({"variances": 1e-40}, ValueError, "use x.double"),
    "gain": ({"gain": math.nan}, ValueError, "`gain` = nan"),
    "gain of k": ({"gain": [1.0] * 4}, TypeError, "`gain` is a list"),
    "alpha": ({"alpha": torch.tensor(1.0)}, TypeError, "`alpha` is a Tensor"),
    "reach": ({"reach": -1.0}, ValueError, "`reach` = -1.0"),
    "gradients": ({"means": torch.ones(4, 2, requires_grad=True)}, ValueError, "only x gets one"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_named(changes, error, message):
    good = {
        "x": torch.ones(3, 2),
        "means": torch.ones(4, 2),
        "log_weights": torch.zeros(4),
        "variances": 1.0,
        "gain": 1.0,
    }
    mixture_field(**good)
    with pytest.raises(error, match=message):
        mixture_field(**(good | changes))
