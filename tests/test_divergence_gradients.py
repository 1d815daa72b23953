"""`divergence`: its derivatives, and that nothing is recorded or changed where none were asked for."""

import importlib
from typing import Any

import pytest
import torch
from jacobians import F64, METHODS, A, D, X, curved, hutch_pp, probes
from torch import Tensor

from halfbridge import Hutchinson, HutchPP, divergence
from halfbridge.kernels import normal
from halfbridge.solvers.jacobian import Jacobian

jacobian_module = importlib.import_module(Jacobian.__module__)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_by_parameters_and_state_are_those_of_the_formula(method: Any) -> None:
    """Against the same formula with its probes (and the basis of HutchPP) written as constants."""
    a, x = A.clone().requires_grad_(), X.clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    value, trace, _ = divergence(lambda x: curved(x, a), x, method)
    got = torch.autograd.grad((trace * weights).sum() + (value**2).sum(), (a, x))

    slope = 1 - curved(x, a).flatten(1) ** 2
    matrix = slope[:, :, None] * a
    if method == "exact":
        want = matrix.diagonal(dim1=1, dim2=2).sum(1)
    elif isinstance(method, Hutchinson):
        v = probes(method, X)
        want = torch.einsum("kbi,bij,kbj->kb", v, matrix, v).mean(0)
    else:
        want = hutch_pp(method, matrix, probes(method, X)).mean(0)
    wanted = torch.autograd.grad((want * weights).sum() + (curved(x, a) ** 2).sum(), (a, x))
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11)


def test_gradient_of_hutch_pp_is_unbiased_though_its_basis_is_held_constant() -> None:
    """For a linear field d tr A / dA = I; each sample's gradient comes from its own copy of A."""
    n = 20_000
    a = A.expand(n, D, D).clone().requires_grad_()
    trace = divergence(lambda x: torch.einsum("bij,bj->bi", a, x), torch.zeros(n, D, dtype=F64), HutchPP(4)).trace
    (gradient,) = torch.autograd.grad(trace.sum(), a)
    assert ((gradient.mean(0) - torch.eye(D, dtype=F64)).abs() < 5 * gradient.std(0) / n**0.5 + 1e-14).all()


def test_exact_divergence_has_second_derivatives() -> None:
    x = X[:1].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: divergence(curved, x).trace, (x,))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_recorded_where_nothing_asks_for_it(method: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(D, 8), torch.nn.Tanh(), torch.nn.Linear(8, D))
    x = normal((3, D), 1)
    for grad, inputs, parameters in ((True, False, False), (False, True, True), (False, False, True)):
        x.requires_grad_(inputs)
        net.requires_grad_(parameters)
        with torch.set_grad_enabled(grad):
            results = divergence(net, x, method)
        assert all(r is None or not r.requires_grad for r in results)
        assert x.requires_grad is inputs
        assert x.is_leaf
    for inputs, parameters in ((True, False), (False, True)):
        x = x.detach().requires_grad_(inputs)
        net.requires_grad_(parameters)
        value, trace, std_error = divergence(net, x, method)
        assert value.requires_grad
        assert trace.requires_grad
        assert std_error is None or not std_error.requires_grad
        assert x.requires_grad is inputs
    assert x.grad is None
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_are_by_the_argument_alone(method: Any) -> None:
    x = normal((3, 4), 1, dtype=F64).requires_grad_()
    condition = 2 * x
    trace = divergence(lambda y: y * condition, x, method).trace
    assert torch.allclose(trace, condition.sum(1), rtol=1e-12) or isinstance(method, HutchPP) or "g" in method.kind
    (gradient,) = torch.autograd.grad(divergence(lambda y: y * condition, x, "exact").trace.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 2.0))


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_gives_the_same_numbers(method: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(D, 8), torch.nn.Tanh(), torch.nn.Linear(8, D))
    outside = divergence(net, normal((3, D), 1), method)
    with torch.inference_mode():
        inside = divergence(net, normal((3, D), 1), method)
    assert torch.equal(inside.trace, outside.trace)
    assert torch.equal(inside.value, outside.value)


def test_forward_mode_composes_with_torch_func_and_reverse_mode_refuses() -> None:
    method = Hutchinson(3, mode="forward")

    def loss(a: Tensor, method: Any = method) -> Tensor:
        return divergence(lambda x: curved(x, a), X, method).trace.sum()

    a = A.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(a), a)
    assert torch.allclose(torch.func.grad(loss)(A), want, rtol=1e-12)
    assert torch.allclose(torch.func.vmap(loss)(torch.stack([A, 2 * A]))[0], loss(A), rtol=1e-12)
    for refused in ("exact", Hutchinson(), HutchPP()):
        with pytest.raises(RuntimeError, match=r'mode="forward"'):
            torch.func.grad(lambda a, refused=refused: loss(a, refused))(A)


def test_buffers_and_the_input_are_left_alone() -> None:
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(D), torch.nn.Linear(D, D)).eval().double()
    before = {name: b.clone() for name, b in net.state_dict().items()}
    x = X.flatten(1).clone()
    for method in METHODS:
        divergence(net, x, method)
    assert all(torch.equal(b, before[name]) for name, b in net.state_dict().items())
    assert torch.equal(x, X.flatten(1))


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_gradients_of_a_network_with_norms_and_attention_are_its_differences(mode: Any, attention: bool) -> None:
    """torch's own forward mode through layer norm has a gradient 4 % off, and its fused attention has no second derivative."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = torch.nn.Linear(1, 4, dtype=F64), torch.nn.Linear(4, 1, dtype=F64)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x[..., None])  # a token for each element
            h = torch.nn.functional.layer_norm(h.flatten(1), (4 * D,)).view_as(h)
            if attention:
                h = torch.nn.functional.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0]
            out: Tensor = self.outer(torch.tanh(h))[..., 0]
            return out

    torch.manual_seed(0)
    net = Net()
    weight, x = net.inner.weight, X.flatten(1)

    def trace() -> Tensor:
        return divergence(net, x, Hutchinson(3, mode=mode)).trace.sum()

    (got,) = torch.autograd.grad(trace(), weight)
    step = 1e-5 * torch.eye(4, dtype=F64)[:, :, None]
    with torch.no_grad():
        for k in range(4):
            weight += step[k]
            above = trace()
            weight -= 2 * step[k]
            below = trace()
            weight += step[k]
            assert got.flatten()[k].item() == pytest.approx((above - below).item() / 2e-5, rel=1e-6, abs=1e-8)
