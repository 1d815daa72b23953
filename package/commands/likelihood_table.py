"""Log-likelihoods of data by some methods: measured in batches, and written as a table or as JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from halfbridge.solvers.dequantise import bits_per_dim
from halfbridge.solvers.field import Field
from halfbridge.solvers.likelihood import Likelihood
from halfbridge.training.data import Dataset

__all__ = ["Method", "Row", "as_json", "as_text", "measure"]

Method = Callable[..., Likelihood]
"""method(field, x0, first): of the examples first, first + 1, ..."""


class Row(NamedTuple):
    """A line of the table: means over the examples, with their standard errors."""

    method: str
    log_prob: float
    log_prob_error: float
    bits_per_dim: float
    bits_per_dim_error: float
    evaluations: int
    """Of the network on an example, the most over the batches."""
    seconds: float


def measure(
    name: str,
    method: Method,
    field: Callable[[slice], Field],
    x0: torch.Tensor,
    batch: int,
    data: Dataset,
    done: Callable[[int], object],
) -> Row:
    """The line of a method; done: told how many more examples are."""
    begun, parts = time.perf_counter(), []
    with torch.no_grad():
        for first in range(0, len(x0), batch):
            part = slice(first, min(first + batch, len(x0)))
            parts.append(method(field(part), x0[part], first))
            done(len(x0[part]))
    log_prob = torch.cat([part.log_prob for part in parts]).cpu()
    d = x0[0].numel()
    bits = -log_prob / (d * math.log(2.0))
    if data.levels and data.range:
        bits = bits_per_dim(log_prob, d, levels=data.levels, low=data.range[0], high=data.range[1])
    return Row(
        name,
        log_prob.mean().item(),
        _error(log_prob),
        bits.mean().item(),
        _error(bits),
        max(part.nfe for part in parts),
        time.perf_counter() - begun,
    )


def _error(values: torch.Tensor) -> float:
    """The standard error of the mean; NaN, null in JSON, for one value."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def as_json(table: list[Row], facts: Mapping[str, Any]) -> str:
    """The facts and the rows; null for NaN."""
    rows = [{k: None if v != v else v for k, v in row._asdict().items()} for row in table]
    return json.dumps({**facts, "methods": rows}, indent=2)


def as_text(table: list[Row]) -> str:
    """A line a method."""
    lines = [f"{'':6}{'log p, nats an example':>28}{'bits per dimension':>26}{'evaluations':>13}{'seconds':>9}"]
    for row in table:
        nats = f"{row.log_prob:.3f} +- {row.log_prob_error:.3f}"
        bits = f"{row.bits_per_dim:.4f} +- {row.bits_per_dim_error:.4f}"
        lines.append(f"{row.method:6}{nats:>28}{bits:>26}{row.evaluations:>13}{row.seconds:>9.1f}")
    return "\n".join(lines)
