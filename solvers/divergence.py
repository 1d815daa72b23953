"""The divergence of a vector field, exact or estimated: the trace of its Jacobian, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.hutchinson_dot import dot_block
from halfbridge.kernels.hutchinson_probe import Kind, check_kind, probe_block
from halfbridge.kernels.philox import check_draw, check_first, check_seed
from halfbridge.kernels.sums import sum_by_halves
from halfbridge.solvers.draws import PROBES
from halfbridge.solvers.jacobian import Forward, Jacobian, Reverse, check_argument

__all__ = ["Divergence", "HutchPP", "Hutchinson", "divergence"]

Mode = Literal["reverse", "forward"]
MODES: dict[str, type[Jacobian]] = {"reverse": Reverse, "forward": Forward}


class Divergence(NamedTuple):
    """value: f(x), like x. trace: tr df/dx of each sample, (batch,), float64 for float64 states, else float32.
    std_error: of the trace, per sample, from the spread of its probes; None for one probe and where trace is exact."""

    value: torch.Tensor
    trace: torch.Tensor
    std_error: torch.Tensor | None


@dataclass(frozen=True)
class Hutchinson:
    """tr J = E[v^T J v], the mean over `probes` independent v with E[v v^T] = I (Hutchinson 1990). Unbiased.

    kind: "rademacher" (signs) or "gaussian"; per probe the variance is 2 (|S|_F^2 - sum_i S_ii^2) and 2 |S|_F^2, S the
    symmetric part of J, so signs are never worse. mode: "reverse" takes J^T v by one backward pass a probe after one
    evaluation of f, "forward" takes J v with tangents beside one evaluation for the probes done together and keeps no
    activations. Several probes are done together by vmap where f allows it, else one by one.

    v exists as long as its product is computed; the dot with that product, and the gradient of the dot, make it again.
    ValueError or TypeError for arguments out of range.
    """

    probes: int = 1
    kind: Kind = "rademacher"
    seed: int = 0
    mode: Mode = "reverse"

    def __post_init__(self) -> None:
        check_method(self, 1, "each is one product with the Jacobian")

    def count(self, d: int) -> int:
        """How many terms a sample of d elements has."""
        return self.probes

    def terms(self, jacobian: Jacobian, draws: range, first: int) -> torch.Tensor:
        """v^T J v for each of `draws`, (probes, batch): as many independent estimates of the trace."""
        x, dots = jacobian.x, []
        for k in range(0, len(draws), jacobian.width):
            part = draws[k : k + jacobian.width]
            products = jacobian.products(probe_block(x.shape, self.seed, part, first, self.kind, x.dtype, x.device))
            dots.append(dot_block(products, self.seed, part, first, self.kind))
        return torch.cat(dots)


@dataclass(frozen=True)
class HutchPP:
    """Hutch++ (Meyer, Musco, Musco and Woodruff 2021) about a multiple of the identity, with `probes` products with the
    Jacobian J in all, at least 3. Of them k = (probes - 1) // 3 are J S of random vectors S, and with Q an orthonormal basis of
    S, J S and one more random vector, whose part q orthogonal to the others gives c = q^T J q, the estimate is

        tr Q^T J Q + c (d - 2k - 1) + mean_g h^T (J - c I) h,   h = g - Q Q^T g,   over probes - 2k - 1 vectors g.

    Unbiased, as E h h^T = I - Q Q^T given Q and c; exact where J is any multiple of the identity plus a matrix of rank k or
    less. The paper has Q of J S alone and c = 0: its length |h|^2 is random, an error of about sqrt(k) times the identity's
    multiple, which rules for Jacobians of scores. S in Q makes the basis that of J - c I for any c; J S serves twice.
    Its error falls with 1/k instead of 1/sqrt(k) for positive semi-definite J, and may fall no faster where eigenvalues of
    both signs cancel; where J has neither few large eigenvalues nor a multiple of I, the products spent on Q are lost, and
    `Hutchinson` with signs, exact on any diagonal, is the better choice. std_error rests on the terms of g alone, 3 for 6
    probes: its square is unbiased, but of few terms it is often far too small; take 9 or more where it matters.

    Q is a constant for gradients, c is not: the expectation depends on neither, so they are unbiased, and those of c are
    what makes them exact where the trace is. Where `probes` is at least the dimension of a sample, that many products give
    the exact trace, which is returned instead. kind, seed, mode: as in `Hutchinson`, with J^T for J in reverse mode.
    """

    probes: int = 6
    kind: Kind = "rademacher"
    seed: int = 0
    mode: Mode = "reverse"

    def __post_init__(self) -> None:
        check_method(self, 3, "one product gives the multiple of the identity, the others sketch and probe the rest")

    def count(self, d: int) -> int:
        """How many terms a sample of d elements has."""
        return 1 if self.probes >= d else self.probes - 2 * ((self.probes - 1) // 3) - 1

    def terms(self, jacobian: Jacobian, draws: range, first: int) -> torch.Tensor:
        """The estimate by each g, (probes - 2k - 1, batch) float64: given Q and c, independent estimates of the trace.

        Of `draws`, the first k are S, the next the vector of c, the last those of g; k between have no vector. One row, the
        exact trace, from d draws on. Vectors are columns, in float64.
        """
        x, k = jacobian.x, (len(draws) - 1) // 3
        d = math.prod(x.shape[1:])
        if self.probes >= d:
            return exact_trace(jacobian)[None]

        def columns(vectors: torch.Tensor) -> torch.Tensor:  # (vectors, batch, *shape) -> (batch, d, vectors)
            return vectors.reshape(len(vectors), len(x), d).permute(1, 2, 0).double()

        def rounded(wide: torch.Tensor) -> torch.Tensor:  # and back, in the dtype of x
            return wide.permute(2, 0, 1).reshape(wide.shape[2], *x.shape).to(x.dtype)

        def probes(part: range) -> torch.Tensor:
            return columns(probe_block(x.shape, self.seed, part, first, self.kind, x.dtype, x.device))

        sketch, g = probes(draws[: k + 1]), probes(draws[2 * k + 1 :])
        bases, products = [], []
        if k:
            bases.append(rounded(torch.linalg.qr(sketch[..., :k])[0]))
            products.append(jacobian.products(bases[0]))
            sketch = torch.cat([columns(bases[0]), columns(products[0].detach()), sketch[..., k:]], 2)
        bases.append(rounded(torch.linalg.qr(sketch)[0][..., k:]))  # of Householder: orthonormal whatever the rank
        products.append(jacobian.products(bases[-1]))
        q = columns(torch.cat(bases))  # orthonormal but for the rounding, which the dual basis undoes
        dual = torch.linalg.solve(q.mT @ q, q.mT)
        entries = dual.mT * columns(torch.cat(products))
        c = summed(entries[..., -1])
        h = rounded(g - q @ (dual @ g))
        deviations = columns(jacobian.products(h)) - c[:, None, None] * columns(h)
        dots = summed((columns(h) * deviations).mT.reshape(-1, d)).view(len(x), g.shape[2]).T
        return summed(entries.flatten(1)) + c * (d - 2 * k - 1) + dots


def divergence(
    f: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    method: Literal["exact"] | Hutchinson | HutchPP = "exact",
    *,
    draw: int = 0,
    first: int = 0,
) -> Divergence:
    """f(x) and div f(x) = sum_i df_i/dx_i of each sample, for f from (batch, *shape) to the same shape.

    The rows of f must be independent, row i of the result a function of row i of x: what mixes samples, such as batch
    normalisation in training, gives a wrong trace without a sign of it.

    method: "exact" takes one backward pass for each of the d elements of a sample, several at once by vmap, within a bound
    on memory. `Hutchinson` and `HutchPP` estimate. draw: which set of probes; the same one, such as along one ODE solve,
    gives the same vectors. first: the global index of x[0]. Probes depend on (seed, draw, global index) only, so neither
    batch nor shard shows in them, and are independent of a run's normals under the same seed.

    Where gradients are recorded, value and trace are differentiable in x and in whatever else f uses; otherwise they keep
    no graph, and x is left as it was. Reverse mode refuses to run inside torch.func's transforms; forward mode composes.
    torch.compile breaks its graph at this call and leaves it uncompiled; an f that was compiled itself has no second derivative
    and is refused in reverse mode where gradients are recorded. f must not write to its argument.
    Half-precision fields are evaluated in their dtype and summed in float32 or above. ValueError for a result of f that is
    not like x or does not depend on it differentiably; TypeError and ValueError for bad arguments.
    """
    if torch.compiler.is_compiling():
        from halfbridge.solvers.uncompiled import divergence_uncompiled

        return divergence_uncompiled(f, x, method, draw=draw, first=first)
    value, terms = divergence_terms(f, x, method, draw=draw, first=first)
    trace, std_error = mean_and_error(terms)
    dtype = accumulation(value.dtype)
    return Divergence(value, trace.to(dtype), None if std_error is None else std_error.to(dtype))


def divergence_terms(
    f: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    method: Literal["exact"] | Hutchinson | HutchPP = "exact",
    *,
    draw: int = 0,
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """f(x), and independent unbiased estimates of div f(x), (terms, batch); one row where it is exact. See `divergence`.

    The terms of one `draw` belong to the same probes at every x: an integral along a path has as many independent
    estimates, whose spread is its error.
    """
    check_argument(f, x)
    check_divergence(method)
    draw, first = check_draw(draw), check_first(first, len(x))
    recording = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(recording):
        x = x.clone() if x.is_inference() else x
        if isinstance(method, str):
            jacobian: Jacobian = Reverse(f, x)
            terms = exact_trace(jacobian)[None]
        else:
            draws = draws_of(draw, method.probes)
            jacobian = MODES[method.mode](f, x)
            terms = method.terms(jacobian, draws, first)
        return jacobian.value, terms


def check_divergence(method: object, name: str = "method") -> None:
    """Refuse what is no way to take a divergence."""
    if not (isinstance(method, str) and method == "exact") and not isinstance(method, (Hutchinson, HutchPP)):
        raise ValueError(f'`{name}` = {method!r}; pass "exact", hb.Hutchinson(...) or hb.HutchPP(...)')


def draws_of(draw: int, probes: int) -> range:
    """Draw indices of the probes of one call; different `draw`s share none."""
    base = PROBES + draw * probes
    if base + probes > 1 << 32:
        raise ValueError(
            f"`draw` = {draw} with {probes} probes ends beyond the last draw index 2**32 - 1; "
            f"pass a draw below {PROBES // probes}"
        )
    return range(base, base + probes)


def exact_trace(jacobian: Jacobian) -> torch.Tensor:
    """sum_i e_i^T J e_i over the unit vectors e_i of a sample."""
    x = jacobian.x
    d = math.prod(x.shape[1:])
    entries = [x.new_zeros((0, len(x)))]
    for start in range(0, d, jacobian.width):
        i = torch.arange(start, min(start + jacobian.width, d), device=x.device)
        place = i.view(-1, 1, 1).expand(-1, len(x), 1)
        units = x.new_zeros((len(i), len(x), d)).scatter_(2, place, 1)
        products = jacobian.products(units.view(len(i), *x.shape)).reshape(units.shape)
        entries.append(products.gather(2, place)[:, :, 0])
    return summed(torch.cat(entries).T).to(accumulation(x.dtype))


def summed(terms: torch.Tensor) -> torch.Tensor:
    """Row sums of (rows, n) in float64, in an order that the number of rows does not change."""
    if terms.shape[1] == 0:
        return terms.new_zeros(len(terms), dtype=torch.float64)
    return sum_by_halves(terms.double(), compensated=False)[0]


def mean_and_error(dots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean over the probes and its standard error, (batch,), from (probes, batch)."""
    n = len(dots)
    if n == 1:
        return dots[0], None
    mean = summed(dots.T) / n
    square = summed((dots.detach().T - mean.detach()[:, None]) ** 2)
    return mean.to(dots.dtype), (square / (n * (n - 1))).sqrt().to(dots.dtype)


def check_method(method: Hutchinson | HutchPP, least: int, why: str) -> None:
    """Refuse settings out of range."""
    probes = method.probes
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < least:
        raise ValueError(f"`probes` = {probes!r} must be an int of at least {least}: {why}")
    check_kind(method.kind)
    check_seed(method.seed)
    if method.mode not in MODES:
        raise ValueError(f"`mode` = {method.mode!r}; pass one of {', '.join(map(repr, MODES))}")
