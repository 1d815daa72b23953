"""What the operators registered with torch.library share: their integers are signed 64-bit words, and what cannot run them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import forward_ad


def signed(word: int) -> int:
    """An unsigned 64-bit word as the int64 with its bits."""
    return word - (1 << 64) if word >= 1 << 63 else word


def unsigned(word: int) -> int:
    """The unsigned 64-bit word whose bits an int64 has."""
    return word + (1 << 64) if word < 0 else word


def transforming() -> bool:
    """Whether tensors are being differentiated forwards or transformed by torch.func, which operators without rules for that
    refuse and eager torch takes."""
    return forward_ad._current_level >= 0 or torch._C._functorch.maybe_current_level() is not None


def untransformed() -> AbstractContextManager[None]:
    """A context whose new tensors have memory of their own also within a transform of torch.func."""
    return torch._C._DisableFuncTorch() if transforming() else nullcontext()
