"""Makes the test folder's own modules importable, keeps torch to one thread (on tensors of test size a second one only
waits, for milliseconds at a time when something else holds its core), and has Triton interpret its kernels on the CPU."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture
def dirty_memory() -> Iterator[None]:
    """New tensors are full of NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
