"""`divergence` where torch.compile traces its caller: a call outside of the graph. Imported then, as it imports the compiler."""

import torch

from halfbridge.solvers.divergence import divergence

__all__ = ["divergence_uncompiled"]

divergence_uncompiled = torch.compiler.disable(
    divergence, reason="hb.divergence differentiates f, which a graph cannot hold; leave out fullgraph=True"
)
