"""Networks, their averages, and the adapter that turns a network into a field."""

from halfbridge.nets.adapter import as_field
from halfbridge.nets.ema import EMA
from halfbridge.nets.embedding import Fourier, Sinusoidal
from halfbridge.nets.mlp import MLP

__all__ = ["EMA", "MLP", "Fourier", "Sinusoidal", "as_field"]
