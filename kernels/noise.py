"""`Noise`: a standard normal named by its counter instead of stored."""

from typing import NamedTuple

from torch import Tensor


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


class DeviceNoise(NamedTuple):
    """A `Noise` whose numbers lie in device memory, so that a captured CUDA graph replays with others: a graph keeps the
    arguments of its launches, but reads memory anew.

    scale: 0-dim floating tensor. counter: int64 tensor (seed, draw, first), unsigned words as their bit patterns (a seed of
    2^63 and more is negative). Both on the device of the state. Triton's kernels read them there; the other backends fetch
    them, which waits for a GPU.
    """

    scale: Tensor
    counter: Tensor
