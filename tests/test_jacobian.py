"""Products with a Jacobian: how many, what vmap and forward mode refuse, and what is refused altogether."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jacobians import ESTIMATORS, F64, METHODS, A, D, X, curved, linear
from torch import Tensor

from halfbridge import Hutchinson, HutchPP, divergence
from halfbridge.solvers.jacobian import Forward, Jacobian, Reverse

jacobian_module = importlib.import_module(Jacobian.__module__)


class Opaque(torch.autograd.Function):
    """x^3, with derivatives that vmap cannot see into."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.from_numpy(3 * g.numpy() * ctx.saved_tensors[0].numpy() ** 2)

    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:
        return 3 * v * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize("method", ["exact", *(e for e in ESTIMATORS if e.probes > 1)])
def test_what_vmap_refuses_is_done_one_by_one(method: Any) -> None:
    with torch.no_grad():
        got, want = (divergence(f, X, method) for f in (lambda x: Opaque.apply(linear(x)), lambda x: linear(x) ** 3))
    assert torch.allclose(got.trace, want.trace, rtol=1e-12, atol=1e-12)
    assert torch.equal(got.value, want.value)


@pytest.mark.parametrize(
    ("method", "evaluations", "products"),
    [
        ("exact", 1, D),
        (Hutchinson(9), 1, 9),
        (Hutchinson(9, mode="forward"), 1, 9),
        (HutchPP(5), 1, 5),
        (HutchPP(5, mode="forward"), 3, 5),
        (HutchPP(8), 1, D),
    ],
)
def test_evaluations_and_products_are_the_stated_ones(
    monkeypatch: pytest.MonkeyPatch, method: Any, evaluations: int, products: int
) -> None:
    calls, vectors = [], []
    for cls in (Reverse, Forward):
        for name, count in (("_one", lambda v: 1), ("_together", len)):
            original = getattr(cls, name)

            def counted(self: Any, v: Tensor, original: Any = original, count: Any = count) -> Tensor:
                vectors.append(count(v))
                return original(self, v)

            monkeypatch.setattr(cls, name, counted)

    def f(x: Tensor) -> Tensor:
        calls.append(1)
        return curved(x)

    divergence(f, X, method)
    assert len(calls) == evaluations
    assert sum(vectors) == products
    monkeypatch.setitem(jacobian_module.TOGETHER, "cpu", 2 * X.numel())
    vectors.clear()
    divergence(f, X, method)
    assert max(vectors) <= 2
    assert sum(vectors) == products


class Reversible(torch.autograd.Function):
    """Identity without a forward mode."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@pytest.mark.parametrize("count", [1, 2])
def test_a_function_without_forward_mode_is_pointed_to_reverse_mode(count: int) -> None:
    with pytest.raises(RuntimeError, match=r'`f` has no forward mode, pass mode="reverse"'):
        divergence(lambda x: Reversible.apply(x), X, Hutchinson(count, mode="forward"))
    assert (divergence(lambda x: Reversible.apply(x), X, Hutchinson(count)).trace == D).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_result_that_does_not_depend_on_x_is_refused_rather_than_called_zero(method: Any) -> None:
    parameter, hidden = torch.ones(1, 2, 3, dtype=F64, requires_grad=True), torch.no_grad()(curved)
    for f in (lambda x: x.detach() * 2, hidden, torch.zeros_like, lambda x: parameter.expand(4, 2, 3)):
        if f is hidden and getattr(method, "mode", "") == "forward":  # which sees through no_grad
            assert torch.equal(divergence(f, X, method).trace, divergence(curved, X, method).trace)
            continue
        with pytest.raises(ValueError, match="`f` returned a tensor that does not depend on `x`"):
            divergence(f, X, method)
    assert (divergence(lambda x: torch.ones_like(x) + 0 * x, X, method).trace == 0).all()


def test_an_error_in_f_is_shown_as_it_is() -> None:
    for method in METHODS:
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            divergence(lambda x: x.flatten(1) @ torch.ones(5, 5, dtype=F64), X, method)


@pytest.mark.parametrize("method", ["exact", Hutchinson(2), Hutchinson(2, mode="forward")])
@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x[:, 0], r"`f` returned shape \(4, 3\) for an x of shape \(4, 2, 3\); return one value"),
        (lambda x: x.float(), "`f` returned dtype torch.float32 for an x of dtype torch.float64"),
        (lambda x: (x, x), "`f` returned a tuple"),
    ],
)
def test_a_result_unlike_x_is_refused(f: Any, message: str, method: Any) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(f, X, method)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: divergence(None, X), TypeError, "`f` is a NoneType"),  # type: ignore[arg-type]
        (lambda: divergence(linear, [1.0]), TypeError, "`x` is a list"),  # type: ignore[arg-type]
        (lambda: divergence(linear, torch.ones(2, 2, dtype=torch.int64)), ValueError, "`x` has dtype torch.int64"),
        (lambda: divergence(linear, torch.ones(())), ValueError, "no batch axis"),
        (lambda: divergence(linear, X, "hutchinson"), ValueError, "`method` = 'hutchinson'"),  # type: ignore[arg-type]
        (lambda: divergence(linear, X, Hutchinson), ValueError, "`method` = <class"),  # type: ignore[arg-type]
        (lambda: divergence(linear, X, draw=-1), ValueError, "`draw` = -1"),
        (lambda: divergence(linear, X, first=2**64), ValueError, "`first` = "),
        (lambda: divergence(linear, X, Hutchinson(4), draw=2**29), ValueError, "pass a draw below 536870912"),
        (lambda: Hutchinson(0), ValueError, "`probes` = 0"),
        (lambda: Hutchinson(1.0), ValueError, "`probes` = 1.0"),  # type: ignore[arg-type]
        (lambda: Hutchinson(True), ValueError, "`probes` = True"),
        (lambda: Hutchinson(kind="sphere"), ValueError, "`kind` = 'sphere'"),  # type: ignore[arg-type]
        (lambda: Hutchinson(mode="both"), ValueError, "`mode` = 'both'"),  # type: ignore[arg-type]
        (lambda: Hutchinson(seed=-1), ValueError, "`seed` = -1"),
        (lambda: HutchPP(2), ValueError, "`probes` = 2 must be an int of at least 3"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_last_draw_is_accepted() -> None:
    assert divergence(linear, X, Hutchinson(4), draw=2**29 - 1).trace.shape == (4,)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 3), (0, 20), (2, 0), (0, 0), (5,), (3, 1)])
def test_empty_and_scalar_samples(shape: tuple[int, ...], method: Any) -> None:
    value, trace, _ = divergence(lambda x: 2 * x, torch.ones(shape, dtype=F64), method)
    assert value.shape == shape
    assert trace.shape == shape[:1]
    if getattr(method, "kind", "rademacher") == "rademacher" or isinstance(method, HutchPP):
        assert torch.equal(trace, torch.full(shape[:1], 2.0 * (shape != (2, 0)), dtype=F64))


WRITERS = {
    "its argument": lambda x: linear(x.mul_(2)),
    "its argument detached": lambda x: linear(x) + x.detach().mul_(2),
}


@pytest.mark.parametrize("f", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_function_that_writes_to_its_argument_is_refused(method: Any, f: Any) -> None:
    with pytest.raises(
        ValueError, match="`f` wrote to its argument in place"
    ):  # torch itself refuses where x is a leaf
        divergence(f, 1 * X.clone().requires_grad_(), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_function_has_its_gradient_or_is_refused(method: Any) -> None:
    a = A.clone().requires_grad_()
    torch._dynamo.reset()
    f = torch.compile(lambda x: curved(x, a), backend="aot_eager")
    if getattr(method, "mode", "reverse") == "reverse":
        with pytest.raises(ValueError, match="`f` was compiled"):
            divergence(f, X, method)
    else:
        got, want = (torch.autograd.grad(divergence(g, X, method).trace.sum(), a) for g in (f, lambda x: curved(x, a)))
        assert torch.allclose(*got, *want, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        assert torch.allclose(divergence(f, X, method).trace, divergence(lambda x: curved(x, a), X, method).trace)


def test_what_was_compiled_before_x_is_no_hindrance() -> None:
    a = A.clone().requires_grad_()
    torch._dynamo.reset()
    embed = torch.compile(lambda a: a.sin(), backend="aot_eager")
    x, b = X + embed(a).sum(), embed(a)
    got, want = (
        torch.autograd.grad(divergence(lambda x, b=b: curved(x, b), x).trace.sum(), a, retain_graph=True)
        for x, b in ((x, b), (X + a.sin().sum(), a.sin()))
    )
    assert torch.allclose(*got, *want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_caller_breaks_its_graph_and_gets_the_same_numbers(method: Any) -> None:
    a = A.clone().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return 2 * divergence(lambda x: curved(x, a), x.sin(), method).trace

    torch._dynamo.reset()
    got, want = torch.compile(loss, backend="aot_eager")(X), loss(X)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(t.sum(), a)[0] for t in (got, want)), rtol=1e-11, atol=1e-11)
