"""`mixture_field`: the reference within float64's error, invariances, derivatives, the operator, memory, bad arguments."""

import importlib.util
import math
from unittest import mock

import numpy as np
import pytest
import torch
from exact_mixtures import EPS, F32, F64, check, exact, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor

from halfbridge.kernels import mixture_field, mixture_log_density, mixture_reference, use

no_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
by_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=no_triton)])


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 9), k=st.integers(1, 40), d=st.integers(1, 40), dtype=st.sampled_from(list(EPS)),
    sigma=st.sampled_from([1e-3, 1.0, 1e4]), far=st.booleans(), varied=st.booleans(),
    gains=st.sampled_from([None, False, True]), seed=st.integers(0, 100),
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


@by_backend
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


@by_backend
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


@by_backend
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
    tables, numbers = ((s, gain), [1.0, 0.0, alpha, offset]) if varied else ((None, None), [s, gain, alpha, offset])
    x.requires_grad_()
    operators = torch.ops.halfbridge
    with_reach = [*numbers, 2.0]
    table = torch.tensor(with_reach, dtype=F64)
    for rest in ((numbers, None), (None, table)):
        torch.library.opcheck(operators.mixture_field.default, (x, means, logs, *tables, *rest, True, True))
    for y, *rest in ((x, with_reach, None), (x.detach(), None, table)):
        torch.library.opcheck(
            operators.mixture_field_pullback.default, (y, [x.detach()], means, logs, *tables, *rest, True, False)
        )


@by_backend
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
