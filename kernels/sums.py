"""Sums whose order of additions is fixed by their length: torch's own reductions order them by rows and threads too."""

import torch
from torch import Tensor


def sum_by_halves(terms: Tensor, compensated: bool) -> tuple[Tensor, Tensor]:
    """Row sums of (rows, n) float64 terms as (sum, what its roundings lost), both (rows,).

    Halves are added, t[:, :m] + t[:, m:], until one column is left, an order that depends on n alone. compensated: each
    addition's rounding error is found (Knuth's two-sum) and summed too; otherwise 0 is returned for it, and the error
    grows with log2 n.
    """
    total, lost = terms, torch.zeros_like(terms[:, :1])
    while total.shape[1] > 1:
        a, b = halves(total)
        total = a + b
        if compensated:
            rest = total - a
            error = (a - (total - rest)) + (b - rest)
            lost = error if lost.shape[1] == 1 else torch.add(*halves(lost)) + error
    return total[:, 0], lost[:, 0]


def halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second half of each row, an odd row with a 0 at its end."""
    n = t.shape[1]
    m = (n + 1) // 2
    tail = t[:, m:]
    return t[:, :m], tail if n == 2 * m else torch.nn.functional.pad(tail, (0, 1))


def norms(v: Tensor) -> Tensor:
    """Euclidean norm of each flattened sample, (batch,) float64."""
    wide = v.reshape(len(v), -1).double()
    return sum_by_halves(wide * wide, compensated=False)[0].sqrt()
