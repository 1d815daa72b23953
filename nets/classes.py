"""Class conditioning: a learned vector for each class, and one for no class."""

from __future__ import annotations

import torch

__all__ = ["ClassEmbedding"]


class ClassEmbedding(torch.nn.Module):
    """h, classes -> h + e_classes for h of shape (batch, features) and classes of shape (batch,) in -1 .. n - 1.

    -1 is no class, the null class of classifier-free guidance (Ho & Salimans 2022), with a learned vector of its own; it
    is trained on the samples whose class is withheld. The vectors start as N(0, 1). With n = 0 there are none, and h is
    returned: classes must be None.

    Raises TypeError for classes that are not integers and ValueError for other shapes and for classes that there are not
    (looked up on a CPU; on a GPU, where looking costs a wait at each call, torch's own assertion stops the program).
    """

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        if classes < 0:
            raise ValueError(f"classes = {classes} must be the number of classes, or 0 for a network without")
        self.classes = classes
        self.vectors = torch.nn.Embedding(classes + 1, features) if classes else None

    def forward(self, h: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        if self.vectors is None:
            if classes is not None:
                raise ValueError("classes were given to a network without; build it with classes=n, or leave them out")
            return h
        out: torch.Tensor = h + self.vectors(self._checked(h, classes) + 1)
        return out

    def _checked(self, h: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        if not isinstance(classes, torch.Tensor):
            got = "None" if classes is None else f"a {type(classes).__name__}"
            raise TypeError(
                f"classes is {got}, but this network has {self.classes}; pass an int64 tensor of shape (batch,), -1 for no class"
            )
        if classes.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"classes has dtype {classes.dtype}; pass int64, the numbers 0 .. {self.classes - 1} or -1")
        if classes.shape != h.shape[:1]:
            raise ValueError(f"classes has shape {tuple(classes.shape)} for a batch of {len(h)}; pass one a sample")
        if classes.device.type == "cpu" and classes.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in torch.aminmax(classes))
            if low < -1 or high >= self.classes:
                wrong = low if low < -1 else high
                raise ValueError(
                    f"classes holds {wrong}, but this network has 0 .. {self.classes - 1}, and -1 for no class"
                )
        return classes

    def extra_repr(self) -> str:
        return f"{self.classes}"
