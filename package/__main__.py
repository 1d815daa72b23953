"""`python -m halfbridge`, and `accelerate launch -m halfbridge`."""

import sys

import torch

from halfbridge.cli import main

status = main()
if status == 0 and torch.distributed.is_available() and torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
sys.exit(status)
