"""Fields whose Jacobians are known, the methods that `divergence` has, and the probes that those are documented to use."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from halfbridge import Hutchinson, HutchPP
from halfbridge.kernels import hutchinson_probe, normal

F64 = torch.float64
D = 6
A = normal((D, D), 100, dtype=F64)  # neither symmetric nor definite
X = normal((4, 2, 3), 101, dtype=F64)
ESTIMATORS = [
    Hutchinson(),
    Hutchinson(5, mode="forward"),
    Hutchinson(3, kind="gaussian"),
    HutchPP(3),
    HutchPP(4, mode="forward"),
    HutchPP(5, kind="gaussian"),
]
METHODS: list[Any] = ["exact", *ESTIMATORS]


def linear(x: Tensor, a: Tensor = A) -> Tensor:
    return (x.flatten(1) @ a.T.to(x.dtype)).view_as(x)


def curved(x: Tensor, a: Tensor = A) -> Tensor:
    return linear(x, a).tanh()


def jacobians(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(batch, d, d), row by row, from torch.func."""
    d = x[0].numel()
    return torch.stack([torch.func.jacrev(f)(row[None]).view(d, d) for row in x])


def probes(method: Any, x: Tensor, draw: int = 0, first: int = 0) -> Tensor:
    """(probes, batch, d): the documented draws."""
    start = 2**31 + draw * method.probes
    return torch.stack(
        [
            hutchinson_probe(x.shape, method.seed, start + k, first, method.kind, dtype=x.dtype).flatten(1)
            for k in range(method.probes)
        ]
    )


def hutch_pp(method: HutchPP, m: Tensor, v: Tensor) -> Tensor:
    """The documented terms (terms, batch) for Jacobians m (batch, d, d) and draws v (probes, batch, d); Q is detached."""
    k, v = (method.probes - 1) // 3, v.permute(1, 2, 0)
    m = m.mT if method.mode == "reverse" else m
    s = v[..., :k]
    q = torch.linalg.qr(torch.cat([s, m.detach() @ s, v[..., k : k + 1]], 2)).Q
    g = v[..., 2 * k + 1 :]
    h = g - q @ (q.mT @ g)
    c = (q[..., -1:] * (m @ q[..., -1:])).sum((1, 2))
    rest = (h * (m @ h - c[:, None, None] * h)).sum(1).T
    return (q * (m @ q)).sum((1, 2)) + c * (m.shape[1] - 2 * k - 1) + rest
