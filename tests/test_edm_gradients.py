"""The EDM scalings under autograd, forward mode, vmap, autocast and torch.compile."""

import importlib
from typing import Any

import pytest
import torch
from edm import close, columns
from torch import Tensor

from halfbridge.kernels import edm_input, edm_output, edm_precondition, normal, use
from halfbridge.kernels import edm_precondition as edm_call

module = importlib.import_module(edm_call.__module__)
BACKENDS = ["reference", "triton"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 2), (3, 1, 1)])
def test_gradients_of_both_orders(shape: tuple[int, ...], backend: str) -> None:
    x, output = (normal(shape, k, dtype=torch.float64).requires_grad_() for k in (1, 2))
    sigma = torch.tensor([0.2, 3.0, 40.0], dtype=torch.float64)[: shape[0]]

    def into(x: Tensor) -> Tensor:
        return edm_input(x, sigma)[0]

    def out(x: Tensor, output: Tensor) -> Tensor:
        return edm_output(x, output, sigma).sin()  # its second derivative is not zero

    with use(backend):
        assert torch.autograd.gradcheck(into, (x,))
        assert torch.autograd.gradgradcheck(into, (x,))
        assert torch.autograd.gradcheck(out, (x, output))
        assert torch.autograd.gradgradcheck(out, (x, output))
        assert not edm_input(x, sigma)[1].requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", ["x", "output", "both"])
def test_gradients_have_the_dtypes_of_what_they_belong_to(wanted: str, backend: str) -> None:
    x, output = normal((3, 4), 1), normal((3, 4), 2, dtype=torch.bfloat16)
    x.requires_grad_(wanted != "output")
    output.requires_grad_(wanted != "x")
    sigma = torch.tensor([0.2, 3.0, 40.0])
    skip, out, _, _ = columns(sigma.tolist(), 0.5, 2)
    with use(backend):
        result = edm_output(x, output, sigma)
        result.backward(torch.ones(()).expand(3, 4))
    assert result.dtype == torch.float32
    for t, c in ((x, skip), (output, out)):
        if t.requires_grad:
            assert t.grad is not None
            assert t.grad.dtype == t.dtype
            assert close(t.grad, c.expand(3, 4), c.expand(3, 4), 3)
        else:
            assert t.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_networks_parameters_get_their_gradient(backend: str) -> None:
    net = torch.nn.Linear(3, 3, dtype=torch.float64)
    x = normal((4, 3), 1, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.8, 3.0, 80.0], dtype=torch.float64)
    skip, out, into, _ = columns(sigma.tolist(), 0.5, 2)
    with use(backend):
        edm_precondition(lambda inner, _: net(inner), x, sigma).square().sum().backward()
    got = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    (skip * x + out * net(into * x)).square().sum().backward()
    assert all(torch.allclose(a, p.grad) for a, p in zip(got, net.parameters(), strict=True) if p.grad is not None)
    assert len(got) == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sigma", [0.7, torch.tensor([0.2, 3.0, 40.0])])
def test_under_autocast_the_state_keeps_its_dtype(sigma: Any, backend: str) -> None:
    net, x = torch.nn.Linear(4, 4), normal((3, 4), 1)
    with use(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        got = edm_precondition(lambda inner, _: net(inner), x, sigma)
        got.sum().backward()
    assert got.dtype == torch.float32
    assert net.weight.grad is not None
    assert torch.allclose(got, edm_precondition(lambda inner, _: net(inner), x, sigma), atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_derivatives_and_vmap_reach_the_network(backend: str) -> None:
    x, v = normal((2, 3), 1), normal((2, 3), 2)
    sigma = torch.tensor([0.4, 2.0])

    def denoiser(x: Tensor) -> Tensor:
        return edm_precondition(lambda inner, label: (inner * label[:, None]).sin(), x, sigma)

    with use(backend):
        _, forward = torch.func.jvp(denoiser, (x,), (v,))
        many = torch.vmap(denoiser)(torch.stack([x, v]))
        jacobian = torch.autograd.functional.jacobian(denoiser, x)
        assert torch.allclose(forward, torch.einsum("abcd,cd->ab", jacobian, v), atol=1e-6)
        assert torch.allclose(many, torch.stack([denoiser(x), denoiser(v)]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["tensor", "number"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_stay_in_one_compiled_graph(dtype: torch.dtype, form: str, backend: str) -> None:
    x, weight = normal((3, 4), 1), normal((4, 4), 2).requires_grad_()
    sigma: Any = 0.7 if form == "number" else torch.tensor([0.2, 3.0, 40.0])

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return edm_precondition(lambda inner, _: (inner @ weight).to(dtype), x, sigma).square().mean()

    with use(backend):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, weight)
        eager = loss(x, weight)
        assert torch.allclose(compiled, eager, rtol=1e-6)
        [a], [b] = (torch.autograd.grad(t, weight) for t in (compiled, eager))
        assert torch.allclose(a, b, rtol=1e-5)


def test_their_operators_keep_the_rules_of_torch() -> None:
    sigma = torch.tensor([0.2, 3.0])
    for x in (normal((2, 3), 1), normal((2, 3, 2, 2), 1).to(memory_format=torch.channels_last), normal((3, 2), 1).T):
        x, output = x.requires_grad_(), normal(tuple(x.shape), 2, dtype=torch.float64).requires_grad_()
        torch.library.opcheck(module.edm_input_operator, (x, sigma, 0.5))
        torch.library.opcheck(module.edm_output_operator, (x, output, sigma, 0.5))
        torch.library.opcheck(module.edm_scale_operator, (x, sigma, 0.5, "skip", torch.float64))


def test_a_map_over_what_the_network_made_alone_leaves_the_state_as_it_is() -> None:
    x, sigma, outputs = torch.randn(3, 4), torch.rand(3) + 0.1, torch.randn(5, 3, 4)
    many = torch.vmap(lambda output: edm_output(x, output, sigma))(outputs)
    assert torch.equal(many, torch.stack([edm_output(x, output, sigma) for output in outputs]))
