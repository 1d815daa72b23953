"""Networks, their averages, and what turns a network into a field.

mlp, unet         networks net(x, label[, classes]) for vectors and for images
conditioned, embedding, classes   what they make of a label and a class: sinusoids, random Fourier features, log-SNR
precondition      the scalings of Karras et al. 2022 around a network
adapter, labels, guidance   `as_field`: labels of a time, classes and classifier-free guidance
ema               averages of the parameters
diffusers         networks and noise schedules of diffusers, from an object or a local folder
build             networks as JSON values and back
"""

from halfbridge.nets import build, labels
from halfbridge.nets.adapter import as_field
from halfbridge.nets.diffusers import DiffusersNet, diffusers_field, diffusers_process, from_diffusers
from halfbridge.nets.ema import EMA
from halfbridge.nets.embedding import Fourier, LogSNR, Sinusoidal
from halfbridge.nets.mlp import MLP
from halfbridge.nets.precondition import Precondition
from halfbridge.nets.unet import UNet

__all__ = [
    "EMA", "MLP", "DiffusersNet", "Fourier", "LogSNR", "Precondition", "Sinusoidal", "UNet", "as_field", "build",
    "diffusers_field", "diffusers_process", "from_diffusers", "labels",
]  # fmt: skip
