"""The blocks of a U-Net: residual convolutions and self-attention, both on maps of shape (batch, channels, h, w)."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

__all__ = ["AttentionBlock", "ResidualBlock", "group_norm"]

HALF_ROOT = math.sqrt(0.5)


def group_norm(channels: int) -> torch.nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, at most 32 and of four channels or more where that can be."""
    most = max(1, min(32, channels // 4))
    return torch.nn.GroupNorm(max(g for g in range(1, most + 1) if channels % g == 0), channels, eps=1e-6)


def zeroed(layer: torch.nn.Conv2d | torch.nn.Linear) -> torch.nn.Module:
    """`layer` with weights and biases of zero: what it is part of starts as if it were not there."""
    torch.nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(torch.nn.Module):
    """(R s(x) + f(x)) / sqrt(2), f = conv2(dropout(silu((1 + scale) norm(h) + shift))), h = conv1(R silu(norm(x))).

    R is nothing, an average over windows of 2 x 2 ("down"; sides are halved and rounded up, a window at an odd edge is
    averaged over what there is of it) or its transpose but for scale, the repetition of each value over the window it
    came from ("up", to the size that is asked for). s is a 1 x 1 convolution where the channels change. scale and shift
    are read from the embedding of the label. conv2 starts at zero.

    The block of BigGAN (Brock et al. 2019) as DDPM++ uses it (Song et al. 2021, appendix H, with the skip connections
    rescaled), with the scale and shift of Nichol & Dhariwal 2021 where DDPM++ has the shift alone.
    """

    def __init__(self, channels: int, out: int, features: int, dropout: float, resample: str | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = group_norm(channels)
        self.conv1 = torch.nn.Conv2d(channels, out, 3, padding=1)
        self.modulate = torch.nn.Linear(features, 2 * out)
        self.norm2 = group_norm(out)
        self.dropout = torch.nn.Dropout(dropout)
        self.conv2 = zeroed(torch.nn.Conv2d(out, out, 3, padding=1))
        self.skip = torch.nn.Conv2d(channels, out, 1) if out != channels else torch.nn.Identity()

    def forward(self, x: torch.Tensor, label: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """x: (batch, channels, h, w); label: (batch, features); size: of the result, for resample = "up"."""
        h = self.conv1(self._resampled(functional.silu(self.norm1(x)), size))
        scale, shift = self.modulate(label)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1.0 + scale)
        h = self.conv2(self.dropout(functional.silu(h)))
        out: torch.Tensor = (self.skip(self._resampled(x, size)) + h) * HALF_ROOT
        return out

    def _resampled(self, x: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
        if self.resample == "down":
            return functional.avg_pool2d(x, 2, ceil_mode=True)
        if self.resample == "up":
            return functional.interpolate(x, size=size, mode="nearest")
        return x


class AttentionBlock(torch.nn.Module):
    """(x + W softmax(q k^T / sqrt(c / heads)) v) / sqrt(2): every position attends to all, in `heads` groups of channels.

    q, k, v are linear in norm(x), W starts at zero (Ho et al. 2020; several heads: Nichol & Dhariwal 2021).

    fused: use torch.nn.functional.scaled_dot_product_attention, whose kernels keep no h w x h w matrix and have one
    derivative, backwards. Without, the same in plain operations, which have every derivative: those forward, which exact
    divergences take, and the second, in losses and likelihoods that are themselves differentiated. Forward and backward
    on one CPU core, 128 channels: fused takes 0.8 of the time on maps of 16 x 16 and 0.4 on 32 x 32.
    """

    def __init__(self, channels: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm = group_norm(channels)
        self.qkv = torch.nn.Linear(channels, 3 * channels)
        self.out = zeroed(torch.nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            # Both factors scaled before the product: half precision cannot overflow in it (Nichol & Dhariwal 2021).
            root = q.shape[-1] ** -0.25
            mixed = ((q * root) @ (k * root).transpose(2, 3)).softmax(dim=3) @ v
        h: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return (x + h.transpose(1, 2).reshape(x.shape)) * HALF_ROOT

    def extra_repr(self) -> str:
        return f"heads={self.heads}" + ", fused" * self.fused
