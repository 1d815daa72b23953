"""`divergence`: exact traces, and estimators against the formulas of their papers and of their variance."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jacobians import ESTIMATORS, F64, METHODS, A, D, X, curved, hutch_pp, jacobians, linear, probes
from torch import Tensor

import halfbridge as hb
from halfbridge import Hutchinson, HutchPP, divergence
from halfbridge.kernels import normal
from halfbridge.solvers.jacobian import Jacobian

jacobian_module = importlib.import_module(Jacobian.__module__)


@pytest.mark.parametrize("method", ["exact", HutchPP(D), HutchPP(D + 3, mode="forward")])
@pytest.mark.parametrize("together", [1, 30, 1 << 18])
@pytest.mark.parametrize("f", [linear, curved])
def test_exact_is_the_trace(
    monkeypatch: pytest.MonkeyPatch, f: Callable[[Tensor], Tensor], together: int, method: Any
) -> None:
    monkeypatch.setitem(jacobian_module.TOGETHER, "cpu", together)
    value, trace, std_error = divergence(f, X, method)
    assert torch.equal(value, f(X))
    assert std_error is None
    assert torch.allclose(trace, jacobians(f, X).diagonal(dim1=1, dim2=2).sum(1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("together", [24, 1 << 18])
def test_hutchinson_is_the_mean_form_of_the_documented_probes(
    monkeypatch: pytest.MonkeyPatch, together: int, count: int, kind: Any, mode: Any
) -> None:
    monkeypatch.setitem(jacobian_module.TOGETHER, "cpu", together)
    method = Hutchinson(count, kind, 7, mode)
    value, trace, std_error = divergence(curved, X, method, draw=5, first=2**40)
    v = probes(method, X, 5, 2**40)
    forms = torch.einsum("kbi,bij,kbj->kb", v, jacobians(curved, X), v)
    assert torch.equal(value, curved(X))
    assert torch.allclose(trace, forms.mean(0), rtol=1e-13, atol=1e-13)
    if count == 1:
        assert std_error is None
    else:
        assert std_error is not None
        assert torch.allclose(std_error, forms.std(0) / count**0.5, rtol=1e-12)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_hutch_pp_is_the_documented_formula(count: int, kind: Any, mode: Any) -> None:
    x = normal((4, 9), 3, dtype=F64)
    a = normal((9, 9), 4, dtype=F64)
    method = HutchPP(count, kind, 7, mode)
    trace, std_error = divergence(lambda x: curved(x, a), x, method, draw=2, first=6)[1:]
    terms = hutch_pp(method, jacobians(lambda x: curved(x, a), x), probes(method, x, 2, 6))
    assert torch.allclose(trace, terms.mean(0), rtol=1e-11, atol=1e-11)
    assert len(terms) == method.count(9)
    if len(terms) > 1:
        assert std_error is not None
        assert torch.allclose(std_error, terms.std(0) / len(terms) ** 0.5, rtol=1e-10)
    else:
        assert std_error is None


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("multiple", [0.0, 1.0, -30.0])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutch_pp_is_exact_up_to_the_rank_of_its_sketch_and_a_multiple_of_the_identity(
    kind: Any, multiple: float, mode: Any
) -> None:
    x = normal((5, 20), 3, dtype=F64)
    for rank, exact in ((0, True), (1, True), (2, True), (3, False)):
        a = normal((20, rank), 5, dtype=F64) @ normal((rank, 20), 6, dtype=F64) + multiple * torch.eye(20, dtype=F64)
        trace = divergence(lambda x, a=a: x @ a.T, x, HutchPP(7, kind, mode=mode)).trace
        assert torch.allclose(trace, a.trace().expand(5), rtol=1e-12, atol=1e-12) == exact
    assert torch.allclose(
        divergence(lambda x: 3 * x, x, HutchPP(3, kind, mode=mode)).trace, torch.tensor(60.0, dtype=F64)
    )


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("count", [3, 4])
def test_hutch_pp_is_the_trace_on_average_over_all_signs_given_its_sketch(
    monkeypatch: pytest.MonkeyPatch, count: int, mode: Any
) -> None:
    """One sketch for all samples, one sign vector of the 2^6 in each; the gradient by the matrix averages to I too."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * D)
    sketch, last = normal((count, 1, D), 5, dtype=F64).sign(), 2**31 + count - 1

    def block(shape: Any, seed: int, draws: Any, *_: Any) -> Tensor:
        return torch.stack([signs if i == last else sketch[i - 2**31].expand(shape) for i in draws])

    monkeypatch.setattr(importlib.import_module(HutchPP.__module__), "probe_block", block)
    a = A.clone().requires_grad_()
    trace = divergence(lambda x: linear(x, a), torch.zeros(2**D, D, dtype=F64), HutchPP(count, mode=mode)).trace
    if count == 3:  # two vectors g, of which one is common: only the other's half averages
        fixed = hutch_pp(HutchPP(3, mode=mode), A[None], sketch)[:1].mean()
        trace = 2 * trace - fixed
    assert trace.std() > 0.1
    assert trace.mean().item() == pytest.approx(A.trace().item(), rel=1e-12)
    if count == 4:
        (gradient,) = torch.autograd.grad(trace.mean(), a)
        assert torch.allclose(gradient, torch.eye(D, dtype=F64), atol=1e-12)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_estimates_are_unbiased(method: Any) -> None:
    trace = divergence(linear, torch.zeros(40_000, D, dtype=F64), method).trace
    assert abs(trace.mean() - A.trace()) < 5 * trace.std() / len(trace) ** 0.5


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("count", [2, 5])
def test_spread_and_standard_error_are_those_of_the_variance_formula(kind: Any, count: int) -> None:
    n = 40_000
    _, trace, std_error = divergence(linear, torch.zeros(n, D, dtype=F64), Hutchinson(count, kind, 3))
    symmetric = (A + A.T) / 2
    variance = 2 * (symmetric**2).sum() - (2 * (A.diagonal() ** 2).sum() if kind == "rademacher" else 0)
    assert std_error is not None
    for squares in ((trace - A.trace()) ** 2, std_error**2):
        assert abs(squares.mean() - variance / count) < 5 * squares.std() / n**0.5


def test_standard_error_of_hutch_pp_is_calibrated() -> None:
    """Given its sketch the estimate is unbiased, so the mean squared error is the mean of std_error^2."""
    n, d = 20_000, 12
    a = normal((d, d), 8, dtype=F64)
    _, trace, std_error = divergence(lambda x: x @ a.T, torch.zeros(n, d, dtype=F64), HutchPP(8))
    assert std_error is not None
    differences = (trace - a.trace()) ** 2 - std_error**2
    assert abs(differences.mean()) < 5 * differences.std() / n**0.5
    assert 5 * differences.std() / n**0.5 < 0.15 * (std_error**2).mean()


def test_hutch_pp_beats_as_many_signs_on_a_decaying_spectrum() -> None:
    d = 40
    basis = torch.linalg.qr(normal((d, d), 9, dtype=F64)).Q
    a = (basis * 2.0 ** -torch.arange(d, dtype=F64)) @ basis.T
    errors = [
        (divergence(lambda x: x @ a, torch.zeros(500, d, dtype=F64), method).trace - a.trace()).square().mean().sqrt()
        for method in (HutchPP(16), Hutchinson(16))
    ]
    assert errors[0] < errors[1] / 5


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_signs_are_exact_where_the_jacobian_is_diagonal(mode: Any) -> None:
    x = normal((5, 3, 70), 1)
    _, trace, std_error = divergence(lambda x: x**3, x, Hutchinson(4, mode=mode))
    assert torch.allclose(trace, (3 * x**2).sum((1, 2)), rtol=1e-6)
    assert std_error is not None
    assert (std_error == 0).all()


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_an_estimate_depends_on_the_global_index_only(mode: Any, kind: Any, dtype: torch.dtype) -> None:
    """An elementwise field, whose own rounding does not depend on the batch."""

    def f(x: Tensor) -> Tensor:
        return x.sin() + x.roll(1, -1) * x

    x = normal((37, 2, 65), 1, dtype=dtype)
    method = Hutchinson(3, kind, 5, mode)
    whole = divergence(f, x, method, first=10)
    assert whole.std_error is not None
    for start, stop in ((0, 1), (5, 9), (36, 37)):
        part = divergence(f, x[start:stop], method, first=10 + start)
        assert part.std_error is not None
        assert torch.equal(part.trace, whole.trace[start:stop])
        assert torch.equal(part.std_error, whole.std_error[start:stop])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_lower_precisions_keep_their_dtype_and_sum_in_float32(method: Any, dtype: torch.dtype) -> None:
    """The trace of 0.5 I in 600 dimensions, which float16 cannot sum; normals have a standard deviation of 17 here."""
    value, trace, std_error = divergence(lambda x: 0.5 * x, normal((5, 2, 300), 1, dtype=dtype), method)
    assert value.dtype == dtype
    assert trace.dtype == torch.float32
    assert std_error is None or std_error.dtype == torch.float32
    if method == "exact" or (isinstance(method, Hutchinson) and method.kind == "rademacher"):
        assert (trace == 300).all()
    else:
        assert ((trace - 300).abs() < 6 * 17.4).all()


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_rounding_the_basis_of_hutch_pp_to_bfloat16_costs_nothing(mode: Any) -> None:
    """Products with I/2 are exact; the squared length of a rounded basis vector is not 1, and counts 600 times in c."""
    x = normal((3, 600), 1, dtype=torch.bfloat16)
    trace = divergence(lambda x: 0.5 * x, x, HutchPP(4, mode=mode)).trace
    assert torch.allclose(trace, torch.tensor(300.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_network_in_float32_agrees_with_its_jacobian(mode: Any) -> None:
    net = hb.nets.MLP(D, hidden=32)
    torch.nn.init.normal_(net.last.weight)
    x = normal((5, D), 2)

    def f(x: Tensor) -> Tensor:
        return net(x, torch.full((len(x),), 0.3))

    trace = jacobians(f, x).diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose(divergence(f, x).trace, trace, rtol=1e-5, atol=1e-5)
    assert torch.allclose(divergence(f, x, HutchPP(D, mode=mode)).trace, trace, rtol=1e-5, atol=1e-5)
    one, other = (divergence(f, x, Hutchinson(7, mode=m)).trace for m in ("reverse", mode))
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_flow_of_a_gaussian_field_has_its_closed_form() -> None:
    process, t = hb.VP(), 0.4
    field = hb.reference.Gaussian(torch.zeros(D), 2.0 * torch.eye(D)).field(process)
    variance = 2.0 * process.alpha(t) ** 2 + process.sigma(t) ** 2
    want = D * (process.drift_rate(t) + process.diffusion(t) ** 2 / (2 * variance))
    trace = divergence(lambda x: field.flow(t, x), X.flatten(1)).trace
    assert torch.allclose(trace, torch.full((4,), want, dtype=F64), rtol=1e-12)
