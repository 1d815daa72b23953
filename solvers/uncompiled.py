"""`divergence` where torch.compile traces its caller: a call outside of the graph. Imported then, as it imports the compiler."""

from collections.abc import Callable

import torch

from halfbridge.solvers.divergence import Divergence, divergence

__all__ = ["divergence_uncompiled"]

divergence_uncompiled: Callable[..., Divergence] = torch.compiler.disable(  # type: ignore[no-untyped-call]
    divergence, reason="hb.divergence differentiates f, which a graph cannot hold; leave out fullgraph=True"
)
