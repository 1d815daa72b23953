"""Draw indices above those of any run, in one table: what shares a seed with a run, or with each other, shares no normal.

A run's own draws are 0, 1, 2, ..., far below 2^31.
"""

import torch

from halfbridge.kernels.philox import check_first, check_seed, sample_words, words

__all__ = [
    "BOUND", "CHOICE", "DEQUANTISE", "PROBES", "TIMES", "TRAINING", "TRAINING_CLASSES", "TRAINING_MODULES",
    "TRAINING_ORDER", "TRAINING_TIMES", "choice_words",
]  # fmt: skip

PROBES = 1 << 31  # and on: vectors that estimate a divergence
BOUND = 3 << 30  # and on: normals of `elbo`; probes come to these after 2^30 of their own
TRAINING = 7 << 29  # and on: normals of a training step; those of `elbo` come to these after 2^29 of their own
TRAINING_MODULES = 2**32 - 7  # seeds of the generator that dropout draws from in training
TRAINING_CLASSES = 2**32 - 6  # uniform numbers that choose which examples lose their class
TRAINING_ORDER = 2**32 - 5  # keys whose order is that of the examples in a pass over the data
TRAINING_TIMES = 2**32 - 4  # the uniform number that places a training step's times
TIMES = 2**32 - 3  # uniform numbers that place the times of `elbo`
DEQUANTISE = 2**32 - 2  # uniform numbers between two levels of an image
CHOICE = 2**32 - 1  # which part of a law a sample comes from


def choice_words(n: int, seed: int, first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The four words (n,) of block 0 of draw CHOICE, for the samples first .. first + n - 1."""
    block, draw = (torch.full((1,), c, dtype=torch.int64, device="cpu") for c in (0, CHOICE))
    samples = sample_words(check_first(first, n), torch.arange(n, device="cpu"))
    return words(block, draw, samples, check_seed(seed))
