"""Data sets: laws in the plane, handwritten digits, and what is in your files; the order in which training sees them."""

from halfbridge.training.data import order
from halfbridge.training.data.dataset import Dataset, check_examples
from halfbridge.training.data.digits import Digits, digits
from halfbridge.training.data.loading import NAMES, load, rows
from halfbridge.training.data.points import checkerboard, moons, ring, swiss_roll

__all__ = [
    "NAMES",
    "Dataset",
    "Digits",
    "check_examples",
    "checkerboard",
    "digits",
    "load",
    "moons",
    "order",
    "ring",
    "rows",
    "swiss_roll",
]
