"""The random numbers of a training step, counted and not streamed.

Nothing is kept between steps: the numbers of a step follow from the seed and the step, so that a resumed run, a run in
micro-batches and a run on several processes see what one run in one piece sees.
"""

from __future__ import annotations

import torch

from halfbridge.kernels import hutchinson_probe, normal
from halfbridge.kernels.arguments import accumulation
from halfbridge.kernels.philox import check_first, check_seed, halves, philox, sample_words, words
from halfbridge.solvers.draws import TRAINING, TRAINING_CLASSES, TRAINING_MODULES, TRAINING_TIMES

__all__ = ["StepNoise"]


class StepNoise:
    """Numbers for the rows first .. first + len(x0) - 1 of the global batch of `batch` rows at `step` (0, 1, ...).

    Row r of step k is example e = k batch + r of the run: its normals are those of `kernels.normal` for the seed and the
    global sample e. x0: the rows, (n, *shape); normals have its shape and device, and its dtype (float32 for half states).
    Each of an objective's several vectors asks for another `draw`, 0, 1, ...; normals and signs of one draw share words.

    Raises ValueError for rows that the batch has not.
    """

    def __init__(self, seed: int, step: int, batch: int, x0: torch.Tensor, first: int = 0) -> None:
        if step < 0 or batch < 1 or not 0 <= first <= batch - len(x0):
            raise ValueError(f"step = {step} has no rows {first} .. {first + len(x0) - 1} of a batch of {batch}")
        self.seed, self.step, self.batch, self.first = check_seed(seed), step, batch, first
        self.x0 = x0
        self.example = check_first(step * batch + first, len(x0))
        self.dtype = accumulation(x0.dtype)

    def uniform(self) -> torch.Tensor:
        """(n,), float64: (u + r / batch) mod 1 for row r, u uniform in (0, 1) for the step, so that the batch has one number
        in each of `batch` equal cells (Kingma et al. 2021, appendix I.1)."""
        u = (self._words(TRAINING_TIMES, 0)[0] + 0.5) / 2.0**32
        rows = torch.arange(self.first, self.first + len(self.x0), dtype=torch.float64, device="cpu")
        return ((u + rows / self.batch) % 1.0).to(self.x0.device)

    def normal(self, draw: int = 0) -> torch.Tensor:
        """Standard normals like x0."""
        return normal(self.x0.shape, self.seed, TRAINING + draw, self.example, dtype=self.dtype, device=self.x0.device)

    def signs(self, draw: int = 0) -> torch.Tensor:
        """+1 or -1 with equal probability, like x0."""
        return hutchinson_probe(
            self.x0.shape, self.seed, TRAINING + draw, self.example, dtype=self.dtype, device=self.x0.device
        )

    def chance(self, p: float) -> torch.Tensor:
        """(n,), bool, on the CPU: true with probability p, for each row by itself (to 2^-32): who loses its class."""
        block, draw = (torch.full((1,), c, dtype=torch.int64, device="cpu") for c in (0, TRAINING_CLASSES))
        examples = sample_words(self.example, torch.arange(len(self.x0), dtype=torch.int64, device="cpu"))
        return (words(block, draw, examples, self.seed)[0].double() + 0.5) / 2.0**32 < p

    def module_seed(self) -> int:
        """What the global generator is seeded with for these rows' forward pass: dropout's masks follow from the seed, the
        step and the first row. So they differ between a batch in one piece and in several, wherever the pieces run."""
        low, high, *_ = self._words(TRAINING_MODULES, self.first)
        return low | (high & 0x7FFFFFFF) << 32

    def _words(self, draw: int, block: int) -> tuple[int, int, int, int]:
        """Four words of 32 bits for the step."""
        found: tuple[int, int, int, int] = philox(block, draw, *halves(self.step), *halves(self.seed))
        return found
