"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["notice"]


def notice(message: str) -> None:
    """A RuntimeWarning at the nearest call from outside this library, however deep inside it arises."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("halfbridge."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)
