"""Makes the test folder's own modules importable, and keeps torch to one thread: on tensors of test size a second one only
waits, for milliseconds at a time when something else holds its core."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
