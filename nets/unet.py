"""A U-Net for images of any size from 8 by 8 up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from halfbridge.nets.conditioned import Conditioned, SharedLabels
from halfbridge.nets.sizes import flag, whole, whole_numbers
from halfbridge.nets.unet_blocks import AttentionBlock, ResidualBlock, group_norm, zeroed
from halfbridge.solvers.processes import Process

__all__ = ["UNet"]


class _Level(torch.nn.Module):
    """Residual blocks on maps of one size, each followed by attention where `heads` is not 0."""

    def __init__(
        self, channels: Sequence[int], out: int, features: int, dropout: float, heads: int, fused: bool
    ) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(ResidualBlock(c, out, features, dropout) for c in channels)
        self.attention = torch.nn.ModuleList(AttentionBlock(out, heads, fused) for _ in channels if heads)

    def forward(self, i: int, h: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        h = self.blocks[i](h, label)
        if self.attention:
            h = self.attention[i](h)
        return h


class UNet(Conditioned):
    """net(x, t) -> like x, or net(x, t, classes) -> like x: x of shape (batch, *shape), t and classes of shape (batch,).

    After DDPM++ (Song et al. 2021, appendix H; itself after Ho et al. 2020): residual blocks of BigGAN that halve and
    double the maps themselves, their sums divided by sqrt(2), group norms, no filters against aliasing. It differs in
    that the label scales and shifts (Nichol & Dhariwal 2021) where there it shifts, attention has several heads and
    follows every block on the way up too (as Ho et al. have it), and there are two blocks a level unless told otherwise,
    not four. Samples of a batch do not mix. The field's convention of attention in the middle whatever was asked is not
    followed: it is where `attention` says.

    shape: (channels, height, width) of an image, any channels, height and width at least 8, odd and unequal ones too. A
    level halves both sides and rounds up, and the way back repeats values to the size that the level above had.
    width, multipliers: level i has width * multipliers[i] channels. blocks: residual blocks of a level on the way down;
    there is one more on the way up. dropout: the probability inside residual blocks, in train mode.
    attention: the levels that have self-attention after each residual block, named by the longer side of their maps:
    images of 28 x 28 with three levels have maps of 28, 14 and 7, of 9 x 13 of 13, 7 and 4. The last level includes the
    two blocks in the middle, with attention between them. Default: the last level alone; () for none. heads: of each,
    a divisor of the level's channels. fused_attention: see `AttentionBlock`; faster on large maps, first derivatives only.
    classes: how many classes there are, 0 for none; with n of them the network takes int64 labels 0 .. n - 1, and -1 for
    no class (see `ClassEmbedding`).
    time: how the label t is embedded: "sinusoidal" for a time of about unit range, "steps" for the index of a step,
    "fourier", "log_snr" for lambda = process.half_log_snr (give `process`; t is what `default_labels` makes of the time),
    or a module from (batch,) to (batch, features) with an attribute `features`. It is computed in the label's dtype and
    rounded to the weights': x has their dtype (any floating one), t need not.
    learned_variance: return (batch, 2 channels, height, width), first the prediction and then what parametrises a variance, as
    the objectives "hybrid" and "ddpm_elbo" with learned=True train it (Nichol & Dhariwal 2021); `as_field(...,
    learned_variance=True)` takes the prediction. It costs 9 * width * multipliers[0] + 1 parameters a channel.

    The last convolution starts at zero, so an untrained network returns zero. Raises ValueError for sizes out of range, for
    an attention that no level has, and for an x whose events are not of `shape`; TypeError for sizes that are not whole numbers.

    `parameter_count`, which the image's size does not change:

    | | |
    | --- | --- |
    | UNet((1, 8, 8), width=32, multipliers=(1, 2)) | 1 151 489 |
    | UNet((1, 8, 8), width=32) | 1 921 601 |
    | UNet((1, 28, 28)) | 7 658 625 |
    | UNet((3, 32, 32), width=128, multipliers=(1, 2, 2, 2), attention=(16,)) | 42 591 747 |
    | the same with blocks=4 | 67 371 779 |
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] | None = None,
        heads: int = 4,
        dropout: float = 0.0,
        classes: int = 0,
        learned_variance: bool = False,
        time: str | torch.nn.Module = "sinusoidal",
        process: Process | Mapping[str, Any] | None = None,
        fused_attention: bool = False,
    ) -> None:
        event, steps = _checked_shape(shape), whole_numbers("multipliers", multipliers)
        width, blocks, heads, dropout = (
            whole("width", width),
            whole("blocks", blocks),
            whole("heads", heads),
            float(dropout),
        )
        _check_sizes(width, steps, blocks, dropout)
        features = 4 * width
        super().__init__(
            event, width, features, classes=classes, learned_variance=learned_variance, time=time, process=process
        )
        self.width, self.multipliers, self.blocks, self.heads, self.dropout = width, steps, blocks, heads, dropout
        self.sizes = _sizes(event, len(steps))
        self.attention = _checked_attention(attention, self.sizes)
        self.fused_attention = flag("fused_attention", fused_attention)

        channels = [width * m for m in self.multipliers]
        heads_of = [heads if max(size) in self.attention else 0 for size in self.sizes]
        for c, h in zip(channels, heads_of, strict=True):
            if heads < 1 or (h and c % h):
                raise ValueError(
                    f"heads = {heads} must be positive and divide the {c} channels of a level with attention"
                )

        def level(into: Sequence[int], i: int) -> _Level:
            return _Level(into, channels[i], features, self.dropout, heads_of[i], self.fused_attention)

        def between(i: int, resample: str) -> ResidualBlock:
            return ResidualBlock(channels[i], channels[i], features, self.dropout, resample)

        # What the way down hands across, in order: `skips` are its channels.
        self.first = torch.nn.Conv2d(self.shape[0], width, 3, padding=1)
        self.down, self.downsample = torch.nn.ModuleList(), torch.nn.ModuleList()
        skips = [width]
        for i, out in enumerate(channels):
            self.down.append(level([skips[-1], *[out] * (blocks - 1)], i))
            skips += [out] * blocks
            if i + 1 < len(channels):
                self.downsample.append(between(i, "down"))
                skips.append(out)

        last = len(channels) - 1
        self.middle = torch.nn.ModuleList(
            ResidualBlock(channels[last], channels[last], features, self.dropout) for _ in range(2)
        )
        self.middle_attention = (
            AttentionBlock(channels[last], heads, self.fused_attention) if heads_of[last] else torch.nn.Identity()
        )

        self.up, self.upsample = torch.nn.ModuleList(), torch.nn.ModuleList()
        above = channels[last]
        for i in reversed(range(len(channels))):
            into = [(above if j == 0 else channels[i]) + skips.pop() for j in range(blocks + 1)]
            self.up.append(level(into, i))
            above = channels[i]
            if i:
                self.upsample.append(between(i, "up"))

        self.norm = group_norm(above)
        self.last = zeroed(torch.nn.Conv2d(above, self.shape[0] * (1 + self.learned_variance), 3, padding=1))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, attention={self.attention} of {[max(s) for s in self.sizes]}"

    @property
    def sizes_config(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "multipliers": list(self.multipliers),
            "blocks": self.blocks,
            "attention": list(self.attention),
            "heads": self.heads,
            "dropout": self.dropout,
            "fused_attention": self.fused_attention,
        }

    def forward(
        self, x: torch.Tensor, t: torch.Tensor | SharedLabels, classes: torch.Tensor | None = None
    ) -> torch.Tensor:
        # what the blocks make of it costs little beside convolutions: they need not know which rows share it
        label = self.condition(x, t, classes, self.first.weight.dtype).through(torch.nn.Identity())
        h = self.first(x)
        skips = [h]
        for i, level in enumerate(self.down):
            for j in range(self.blocks):
                h = level(j, h, label)
                skips.append(h)
            if i < len(self.downsample):
                h = self.downsample[i](h, label)
                skips.append(h)

        h = self.middle[0](h, label)
        h = self.middle[1](self.middle_attention(h), label)

        for i, level in enumerate(self.up):
            for j in range(self.blocks + 1):
                h = level(j, torch.cat([h, skips.pop()], dim=1), label)
            if i < len(self.upsample):
                h = self.upsample[i](h, label, self.sizes[-2 - i])
        out: torch.Tensor = self.last(torch.nn.functional.silu(self.norm(h)))
        return out.to(x.dtype)  # under autocast it is in another


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if isinstance(shape, int) or len(shape) != 3:
        raise ValueError(f"shape = {shape} must be (channels, height, width), the shape of one image")
    channels, height, width = whole_numbers("shape", shape)
    if channels < 1 or min(height, width) < 8:
        raise ValueError(
            f"shape = {(channels, height, width)} must have at least one channel and sides of 8 or more; "
            "an MLP takes events of any shape"
        )
    return channels, height, width


def _check_sizes(width: int, multipliers: tuple[int, ...], blocks: int, dropout: float) -> None:
    if width < 2 or width % 2:
        raise ValueError(f"width = {width} must be an even number, at least 2")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers = {multipliers} must be positive whole numbers, one for each level")
    if blocks < 1:
        raise ValueError(f"blocks = {blocks} must be at least 1")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout = {dropout} must be in [0, 1), the share of values that are dropped")


def _sizes(shape: tuple[int, int, int], levels: int) -> list[tuple[int, int]]:
    """(height, width) of each level's maps."""
    sizes = [shape[1:]]
    while len(sizes) < levels:
        height, width = sizes[-1]
        if max(height, width) == 1:
            raise ValueError(
                f"multipliers has {levels} levels, but images of {shape[1]} x {shape[2]} are one pixel at level {len(sizes)}"
            )
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _checked_attention(attention: Sequence[int] | None, sizes: list[tuple[int, int]]) -> tuple[int, ...]:
    sides = [max(size) for size in sizes]
    if attention is None:
        return (sides[-1],)
    attention = whole_numbers("attention", attention)
    if len(set(attention)) < len(attention):
        raise ValueError(f"attention = {attention} names a level twice; once is all it takes")
    for side in attention:
        if side not in sides:
            raise ValueError(
                f"attention = {attention} asks for maps of {side}, which no level has: the longer sides of their "
                f"maps are {', '.join(map(str, sides))}"
            )
    return attention
