"""How much the demo does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Settings"]


@dataclass(frozen=True)
class Settings:
    """Sizes of the demo's runs; evaluations are of the field, steps of an optimiser or a solver."""

    images: int = 1797
    """Digits used, the first of scikit-learn's."""
    bandwidth: float = 0.25
    """Standard deviation of the kernels, pixels being in [-1, 1]: where the leave-one-out likelihood peaks."""
    training_steps: int = 2000
    hidden: int = 192
    budgets: tuple[int, ...] = (5, 10, 20, 50)
    samples: int = 1000
    """Samples of each run."""
    fresh: int = 4000
    """Exact draws that they are compared with."""
    starts: int = 256
    """Samples whose exact flow is computed: the first of each run."""
    reference_steps: int = 200
    """Steps of DPM-Solver-3 for the exact flow."""
    curve_budgets: tuple[int, ...] = (6, 12, 24, 48, 96, 192)
    curve_starts: int = 128


FULL = Settings()
QUICK = Settings(
    images=300,
    training_steps=150,
    hidden=64,
    budgets=(5, 10, 20),
    samples=100,
    fresh=400,
    starts=32,
    reference_steps=60,
    curve_budgets=(6, 12, 24, 48),
    curve_starts=32,
)
