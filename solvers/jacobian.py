"""Products of vectors with the Jacobian of a function whose rows are independent, by either mode of differentiation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch

from halfbridge.solvers.exact_derivatives import exact_derivatives

__all__ = ["Forward", "Jacobian", "Reverse", "check_argument"]

Function = Callable[[torch.Tensor], torch.Tensor]

# Elements of the vectors that are multiplied at once: as many as still gain from it, and a bound on what that takes.
TOGETHER = {"cpu": 1 << 18}
TOGETHER_ON_GPU = 1 << 22


class Jacobian(ABC):
    """J = df/dx at x, (batch, *shape), for f with independent rows: J is block diagonal, one block a sample.

    Products are differentiable where gradients are recorded and x or something else that f uses requires them; otherwise
    neither they nor the value keep a graph.
    """

    def __init__(self, f: Function, x: torch.Tensor) -> None:
        self.f, self.x = f, x
        self.width = max(1, TOGETHER.get(x.device.type, TOGETHER_ON_GPU) // max(1, x.numel()))  # vectors at once
        self.vectorised = True  # until f refuses to be
        # where products are differentiated again torch's norms are wrong; forward mode has no fused attention
        self.plain = isinstance(self, Forward) or torch.is_grad_enabled()

    @property
    @abstractmethod
    def value(self) -> torch.Tensor:
        """f(x)."""

    def evaluated(self, x: torch.Tensor) -> torch.Tensor:
        """f(x), checked; refused where f has changed x, so that the next evaluation or derivative were of another point."""
        version = x._version
        with exact_derivatives() if self.plain else nullcontext():
            value = self.f(x)
        if x._version != version:
            raise ValueError(
                "`f` wrote to its argument in place; let it make a new tensor, such as 2 * x for x.mul_(2)"
            )
        check_result(value, x)
        return value

    def products(self, v: torch.Tensor) -> torch.Tensor:
        """J v (forward) or J^T v (reverse) for v of shape (vectors, batch, *shape).

        Several vectors are done at once by torch's vmap. What it cannot do (custom autograd functions without a rule for
        it, data-dependent control flow) is done vector by vector, with the same result up to rounding.
        """
        return torch.cat([self._some(part) for part in torch.split(v, self.width)])

    def _some(self, v: torch.Tensor) -> torch.Tensor:
        if len(v) > 1 and self.vectorised:
            try:
                return self._together(v)
            except RuntimeError:  # what is wrong with f itself shows again below
                self.vectorised = False
        return torch.stack([self._one(w.clone()) for w in v])  # no view: f may try to write to it

    @abstractmethod
    def _one(self, v: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _together(self, v: torch.Tensor) -> torch.Tensor: ...


class Reverse(Jacobian):
    """J^T v: one evaluation of f, then one backward pass a vector, through torch.autograd."""

    def __init__(self, f: Function, x: torch.Tensor) -> None:
        super().__init__(f, x)
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "the Jacobian is taken by torch.autograd, whose results torch.func's transforms cannot differentiate; inside "
                'them pass hb.Hutchinson(mode="forward") or hb.HutchPP(mode="forward"), exact from `probes` = d on'
            )
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            # its own node: derivatives are by the argument of f, whatever else in f depends on x
            self.x = x.view_as(x) if recording and x.requires_grad else x.detach().requires_grad_()
            self._value = self.evaluated(self.x)
        if not self._value.requires_grad:
            raise ValueError(CONSTANT)
        self.recorded = recording and (x.requires_grad or has_other_leaves(self._value, self.x))
        if self.recorded and has_compiled(self._value, self.x):
            raise ValueError(COMPILED)

    @property
    def value(self) -> torch.Tensor:
        return self._value if self.recorded else self._value.detach()

    def _one(self, v: torch.Tensor) -> torch.Tensor:
        return self._pull(v)

    def _together(self, v: torch.Tensor) -> torch.Tensor:
        return self._pull(v, is_grads_batched=True)

    def _pull(self, v: torch.Tensor, **options: bool) -> torch.Tensor:
        (product,) = torch.autograd.grad(
            self._value, self.x, v, retain_graph=True, create_graph=self.recorded, allow_unused=True, **options
        )
        if product is None:
            raise ValueError(CONSTANT)
        return product


class Forward(Jacobian):
    """J v: f is evaluated with tangents by torch.func.jvp, once for all vectors that are done together.

    No activation is kept for a backward pass. f must be deterministic, and all of its operations need a forward-mode rule.
    """

    _value: torch.Tensor | None = None

    @property
    def value(self) -> torch.Tensor:
        return self.evaluated(self.x) if self._value is None else self._value

    def _one(self, v: torch.Tensor) -> torch.Tensor:
        return self._push(self._dual, v)

    def _together(self, v: torch.Tensor) -> torch.Tensor:
        def run(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, products = torch.func.vmap(self._dual)(v)
            return values[0], products  # the values are one, expanded

        return self._push(run, v)

    def _dual(self, v: torch.Tensor) -> Any:
        return torch.func.jvp(self.evaluated, (self.x,), (v,), strict=True)

    def _push(self, run: Callable[[torch.Tensor], Any], v: torch.Tensor) -> torch.Tensor:
        try:
            value, product = run(v)
        except NotImplementedError as error:
            raise RuntimeError(f'`f` has no forward mode, pass mode="reverse": {error}') from error
        except RuntimeError as error:
            if "independent of the inputs" not in str(error):
                raise
            raise ValueError(CONSTANT) from error
        self._value = value
        result: torch.Tensor = product
        return result


CONSTANT = (
    "`f` returned a tensor that does not depend on `x` through differentiable operations, so its divergence is not known; "
    "let f work without torch.no_grad() and .detach(), and where it is constant indeed, add 0 * x"
)


COMPILED = (
    "`f` was compiled by torch.compile, whose functions have no second derivative, so the trace would have no gradient; pass "
    'the function before it was compiled, or hb.Hutchinson(mode="forward") or hb.HutchPP(mode="forward")'
)


def nodes(root: Any) -> Iterator[Any]:
    """The nodes of a graph that are reached from `root`, each once."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(following for following, _ in node.next_functions)


def has_other_leaves(value: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether the graph of `value` ends anywhere else than in the leaf `x`: at a parameter that requires gradients."""
    leaves = (getattr(node, "variable", None) for node in nodes(value.grad_fn))
    return any(leaf is not None and leaf is not x for leaf in leaves)


def has_compiled(value: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a function that torch.compile made stands between `x` and `value`: its derivative comes back without a graph."""
    end = torch.autograd.graph.get_gradient_edge(x).node
    compiled = (node for node in nodes(value.grad_fn) if node.name().startswith("CompiledFunction"))
    return any(end in nodes(node) for node in compiled)


def check_argument(f: object, x: object) -> None:
    """Refuse what is no function and what is no batch of real vectors."""
    if not callable(f):
        raise TypeError(f"`f` is a {type(f).__name__}; pass a function of x alone, such as lambda x: field.flow(t, x)")
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"`x` is a {type(x).__name__}; pass a torch tensor")
    if not x.is_floating_point():
        raise ValueError(f"`x` has dtype {x.dtype}; pass a floating dtype, x.float() for example")
    if x.dim() == 0:
        raise ValueError("`x` has shape () and so no batch axis; pass (batch, *shape)")


def check_result(value: object, x: torch.Tensor) -> None:
    """Refuse a result that is not like `x`."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"`f` returned a {type(value).__name__}; return a tensor like x")
    for name in ("shape", "dtype", "device"):
        got, want = getattr(value, name), getattr(x, name)
        if got != want:
            got, want = (tuple(got), tuple(want)) if name == "shape" else (got, want)
            remedy = "one value for each element of x" if name == "shape" else "value.to(x)"
            raise ValueError(f"`f` returned {name} {got} for an x of {name} {want}; return {remedy}")
