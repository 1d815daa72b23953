"""Handwritten digits of 8x8 pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Digits", "digits"]


class Digits(NamedTuple):
    images: torch.Tensor
    """(1797, 1, 8, 8), in [-1, 1]."""
    labels: torch.Tensor
    """(1797,), int64, 0 to 9."""


def digits(*, dtype: torch.dtype = torch.float32) -> Digits:
    """The 1797 handwritten digits of 8x8 pixels that scikit-learn ships (Alpaydin and Kaynak 1998), 0..16 mapped to
    [-1, 1].

    Raises ImportError, naming the extra to install, without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits() needs scikit-learn: pip install 'halfbridge[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=dtype, device="cpu").reshape(-1, 1, 8, 8) / 8.0 - 1.0
    return Digits(images, torch.as_tensor(labels, dtype=torch.int64, device="cpu"))
