"""Data sets that need no download: laws in the plane and handwritten digits."""

from halfbridge.training.data.digits import Digits, digits
from halfbridge.training.data.points import moons, ring

__all__ = ["Digits", "digits", "moons", "ring"]
