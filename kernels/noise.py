"""`Noise`: a standard normal named by its counter instead of stored."""

from typing import NamedTuple


class Noise(NamedTuple):
    """`scale * N`, N the standard normal of (seed, draw) for the samples first, first + 1, ... of a run.
     A kernel that is handed a Noise makes the normals itself, from Philox counters, so nothing of the size of the state
    is stored or read. Draw 0 is the prior's; draw k >= 1 is the k-th normal that a run asks for. Sample i of the batch
    has the global index first + i, and its normals depend on (seed, draw, first + i) only.
    """

    scale: float
    seed: int
    draw: int
    first: int = 0
