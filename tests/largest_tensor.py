"""How much memory a computation asks for."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any floating tensor made. (Triton's interpreter copies arguments as bytes.)"""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self.numel = max(self.numel, value.numel())
        return out


class NewMemory(TorchDispatchMode):
    """Records the bytes of every tensor made, on any device and of any dtype, views and results in place left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(value).data_ptr() for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and _storage(value).data_ptr() not in given:
                self.bytes.append(_storage(value).nbytes())
        return out


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
