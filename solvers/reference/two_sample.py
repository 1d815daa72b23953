"""Distances between laws of which only samples are known."""

from __future__ import annotations

import math

import torch

from halfbridge.kernels import normal

__all__ = ["energy_distance", "sliced_w2", "sorted_projections", "spread"]

ROWS = 1 << 22  # distances, or projected numbers, held at once


def energy_distance(x: torch.Tensor, y: torch.Tensor, *, y_spread: float | None = None) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, each a mean over pairs of different draws: unbiased, so it may be below 0.

    It is 0 only for equal laws (Székely and Rizzo 2013), in the units of x. x: (n, *shape), y: (m, *shape), n, m >= 2, in
    float64. y_spread: `spread(y)`, where many samples are compared with one y. ValueError for unlike samples.
    """
    a, b = _rows(x, y)
    return (
        2.0 * _total(a, b) / (len(a) * len(b)) - _spread(a, "x") - (_spread(b, "y") if y_spread is None else y_spread)
    )


def spread(x: torch.Tensor) -> float:
    """E|X - X'|, the mean distance of two different rows of x (n, *shape), n >= 2."""
    return _spread(x.flatten(1).double(), "x")


def sliced_w2(
    x: torch.Tensor, y: torch.Tensor, *, projections: int = 500, seed: int = 0, y_sorted: torch.Tensor | None = None
) -> float:
    """(mean over directions u of W2(u.X, u.Y)^2)^(1/2) between two empirical laws, with W2 on the line by sorting.

    x: (n, *shape), y: (m, *shape); directions are uniform on the sphere and follow from `seed`. In the units of x, and above
    0 even for samples of one law: compare with what two such samples give. Its square, in the mean over seeds, is at most
    W2^2 / d; a single value, of few directions, may lie above. Rabin et al. 2011; Bonneel et al. 2015. In float64.
    y_sorted: `sorted_projections` of y with these projections and this seed, where many samples are compared with one y.
    Samples of different sizes are matched by POT: ImportError, naming the extra, without it. ValueError for unlike samples.
    """
    a, b = _rows(x, y)
    directions = _directions(a, projections, seed)
    pieces = list(torch.split(directions, max(1, ROWS // max(len(a), len(b)))))
    if y_sorted is not None and y_sorted.shape != (projections, len(b)):
        raise ValueError(
            f"y_sorted has shape {tuple(y_sorted.shape)}, and {projections} projections of {len(b)} rows are asked for; pass "
            "sorted_projections(y) of this y, with the same projections and seed"
        )
    known = [_sorted(b, u) for u in pieces] if y_sorted is None else torch.split(y_sorted, [len(u) for u in pieces])
    square = 0.0
    for u, theirs in zip(pieces, known, strict=True):
        square += float(_squared(_sorted(a, u), theirs).sum())
    return math.sqrt(square / projections)


def sorted_projections(y: torch.Tensor, *, projections: int = 500, seed: int = 0) -> torch.Tensor:
    """u.y for each direction u of `sliced_w2`, in ascending order, (projections, m) float64."""
    rows = y.detach().flatten(1).double()
    directions = _directions(rows, projections, seed)
    ordered = rows.new_empty(projections, len(rows))
    for part, u in zip(
        *(torch.split(z, max(1, ROWS // max(1, len(rows)))) for z in (ordered, directions)), strict=True
    ):
        part.copy_(_sorted(rows, u))
    return ordered


def _directions(rows: torch.Tensor, projections: int, seed: int) -> torch.Tensor:
    if projections < 1:
        raise ValueError(f"projections = {projections} must be at least 1")
    directions = normal((projections, rows.shape[1]), seed, dtype=torch.float64, device=rows.device)
    directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    return directions


def _sorted(rows: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    ordered: torch.Tensor = (directions @ rows.mT).sort(dim=1).values
    return ordered


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """W2^2 between the equally weighted points of each row, sorted: (rows, n) and (rows, m)."""
    square: torch.Tensor
    if a.shape == b.shape:
        square = (a - b).square().mean(1)
        return square
    try:
        from ot import wasserstein_1d
    except ImportError as error:
        raise ImportError(
            f"sliced_w2 of samples of different sizes, {a.shape[1]} and {b.shape[1]}, needs POT: pip install "
            "'halfbridge[transport]'; pass as many rows of both to do without"
        ) from error
    square = wasserstein_1d(a.mT, b.mT, p=2, require_sort=False)
    return square


def _rows(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if x.shape[1:] != y.shape[1:] or x.ndim < 2 or min(len(x), len(y)) < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}; pass (n, *shape) and (m, *shape) of one event shape"
        )
    a, b = x.detach().flatten(1).double(), y.detach().flatten(1).double()
    for name, rows in (("x", a), ("y", b)):
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name} has entries that are not finite; a distance between such samples means nothing")
    return a, b


def _spread(rows: torch.Tensor, name: str) -> float:
    n = len(rows)
    if n < 2:
        raise ValueError(
            f"{name} has {n} row{'s' * (n != 1)}; the mean distance of two different ones needs at least 2"
        )
    return _total(rows, rows) / (n * (n - 1))


def _total(a: torch.Tensor, b: torch.Tensor) -> float:
    """The sum of all |a_i - b_j|, from differences: the form by scalar products loses half the digits of near points."""
    total = 0.0
    for part in torch.split(a, max(1, ROWS // len(b))):
        total += float(torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist").sum())
    return total
