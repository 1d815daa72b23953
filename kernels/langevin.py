"""The Langevin corrector whose step is sized by a signal-to-noise ratio (Song et al. 2021, algorithms 4 and 5)."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from halfbridge.kernels.aliasing import check_writable, disentangled
from halfbridge.kernels.arguments import (
    accumulation,
    check_device_noise,
    check_like,
    check_noise,
    check_real,
    check_state,
    on_host,
    recorded,
)
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.noise import DeviceNoise, Noise
from halfbridge.kernels.normal import fill
from halfbridge.kernels.operators import signed, transforming, unsigned, untransformed
from halfbridge.kernels.sums import norms
from halfbridge.kernels.traced import as_operands, numbers_of

Norm = Literal["sample", "batch"]
LARGEST = 1e30  # a step that no state survives: the update would overflow float32
CHUNK = 1 << 18  # elements worked on at once: the float64 squares and the normals of a chunk stay in cache


def langevin(
    x: Tensor,
    score: Tensor,
    *,
    snr: float,
    noise: Noise | DeviceNoise | Tensor,
    scale: float | Tensor = 1.0,
    factor: float | Tensor = 1.0,
    norm: Norm = "sample",
    out: Tensor | None = None,
) -> Tensor:
    """x + e s + sqrt(2 e) z with s = scale * score and e = 2 factor (snr |z| / |s|)^2.

    x, score: (batch, *sample), one shape, floating dtype and device. noise: a Noise of scale 1, or z itself, like x.
    factor: 1, or the alpha_i = 1 - beta_i of Song et al. 2021, algorithm 5. norm: "sample" sizes each sample's step by
    its own Euclidean norms; "batch" by the batch means of the norms, as Song et al.'s code does, which couples the
    samples.

    Norms are summed in an order that the batch does not change, in float64, or on a GPU in float32 with what its additions
    lose, right to a few units in the last place; so with "sample" a sample's bits depend on that sample only. Half states are
    updated in float32 and rounded once. Differentiable in x, score and z, without `out`, forwards too. Where the score of a
    sample (with "batch", of all of them) is zero the step is infinite: ValueError, as for bad arguments; on a GPU, where looking
    would stall the stream, the sample is not finite instead.

    For a CUDA graph that replays with other numbers, noise may be a DeviceNoise (its scale is not read: z has scale 1), and
    scale and factor 0-dim tensors. Only Triton's kernels leave them on the device.
    """
    check_state("`x`", x)
    check_like("`score`", score, x, "`x`")
    if out is not None:
        check_like("`out`", out, x, "`x`")
    if norm not in ("sample", "batch"):
        raise ValueError(f'`norm` = {norm!r}; pass "sample" or "batch"')
    source = check_source(noise, x)
    tensors = [x, score, *([noise] if isinstance(noise, Tensor) else [])]
    needs_gradient = recorded(tensors, out)
    if out is not None and needs_gradient:
        raise ValueError(
            "`out` cannot be given while gradients are recorded; leave it out or work under torch.no_grad()"
        )
    if torch.compiler.is_compiling():  # the operator makes the checks that need a value
        result = langevin_operator(x, score, *operands(source), *measures(snr, scale, factor), norm)
        return result if out is None else out.copy_(result)
    numbers: dict[str, Any] = {
        name: value if isinstance(value, Tensor) else check_step(name, value, x.dtype)
        for name, value in (("snr", snr), ("scale", scale), ("factor", factor))
    }
    target = out
    if out is not None:
        check_writable(out)
        _, target = disentangled(tensors, out)
    run = (
        langevin_reference
        if needs_gradient or transforming()
        else resolve("langevin", x.device.type, x.dtype, x.numel())
    )
    result = run(x, score, source, **numbers, norm=norm, out=target)
    if out is None:
        return result
    increment_version(out)
    return result if target is out else out.copy_(result)


def check_step(name: str, value: Any, dtype: torch.dtype) -> float:
    """One of the numbers that size the step of states of that dtype, as a float that gives one."""
    number = check_real(name, value, dtype)
    if number == 0 or (number < 0 and name != "scale"):
        remedy = "a non-zero number" if name == "scale" else "a positive number"
        raise ValueError(f"`{name}` = {number} gives no step; pass {remedy}")
    return number


def check_source(noise: Any, x: Tensor) -> Noise | DeviceNoise | Tensor:
    """The noise as a Noise of scale 1, a DeviceNoise or a tensor like x."""
    if isinstance(noise, Tensor):
        check_like("`noise`", noise, x, "`x`")
        return noise
    if isinstance(noise, DeviceNoise):
        check_device_noise(noise, x)
        return noise
    known = Noise(*noise) if torch.compiler.is_compiling() else check_noise(noise, x)
    if known is None or known.scale != 1.0:
        raise ValueError(
            f"`noise`.scale = {noise[0]}, but the step sets the scale of z here; pass Noise(1.0, seed, draw, first)"
        )
    return known


Operands = tuple[Tensor | None, Tensor | None, int, int, int]  # z, counter, seed, draw, first


def operands(source: Noise | DeviceNoise | Tensor) -> Operands:
    """A source of noise as an operator takes it."""
    if isinstance(source, Tensor):
        return source, None, 0, 0, 0
    if isinstance(source, DeviceNoise):
        return None, source.counter, 0, 0, 0
    return None, None, signed(source.seed), source.draw, signed(source.first)


Measures = tuple[list[float] | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def measures(*values: float | Tensor) -> Measures:
    """snr, scale and factor as an operator takes them: numbers, or a table of them, and tensors that stand instead."""
    snr, scale, factor = (v if isinstance(v, Tensor) else None for v in values)
    return *as_operands([1.0 if isinstance(v, Tensor) else v for v in values]), snr, scale, factor


def measures_of(numbers: list[float] | None, table: Tensor | None, *tensors: Tensor | None) -> list[Any]:
    """And back."""
    return [n if t is None else t for n, t in zip(numbers_of(numbers, table), tensors, strict=True)]


def host_noise(noise: Noise | DeviceNoise | Tensor) -> Noise | Tensor:
    """The noise with its numbers on the host."""
    return on_host(noise) if isinstance(noise, DeviceNoise) else noise


def source_of(
    z: Tensor | None, counter: Tensor | None, seed: int, draw: int, first: int
) -> Noise | DeviceNoise | Tensor:
    if z is not None:
        return z
    if counter is not None:
        return DeviceNoise(torch.ones((), dtype=torch.float64, device=counter.device), counter)
    return Noise(1.0, unsigned(seed), draw, unsigned(first))


@torch.library.custom_op("halfbridge::langevin", mutates_args=())
def langevin_operator(
    x: Tensor, score: Tensor, z: Tensor | None, counter: Tensor | None, seed: int, draw: int, first: int,
    numbers: list[float] | None, table: Tensor | None, snr_at: Tensor | None, scale_at: Tensor | None, factor_at: Tensor | None,
    norm: str,
) -> Tensor:  # fmt: skip
    """What torch.compile keeps whole; see `langevin`, `operands` and `measures`."""
    source = source_of(z, counter, seed, draw, first)
    snr, scale, factor = measures_of(numbers, table, snr_at, scale_at, factor_at)
    with torch.no_grad():  # torch has recorded the operator itself
        return langevin(x, score, snr=snr, noise=source, scale=scale, factor=factor, norm=norm)  # type: ignore[arg-type]


@langevin_operator.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("halfbridge::langevin_backward", mutates_args=())
def langevin_backward(
    grad: Tensor, x: Tensor, score: Tensor, z: Tensor | None, counter: Tensor | None, seed: int, draw: int, first: int,
    numbers: list[float] | None, table: Tensor | None, snr_at: Tensor | None, scale_at: Tensor | None, factor_at: Tensor | None,
    norm: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients in x, score and z (empty where it was a Noise), from de/ds = -2 e s/|s|^2 and de/dz = 2 e z/|z|^2; with
    norms of the batch 1/|s|^2 is 1/(n |s_i| mean |s|), and all samples share the gradient of e.
    """
    source = host_noise(source_of(z, counter, seed, draw, first))
    snr, scale, factor = measures_of(numbers, table, snr_at, scale_at, factor_at)
    wide = normals(source, x, slice(0, len(x))).double()
    s, g = scale * score.double(), grad.double()
    of_z, of_s = norms(wide), norms(s)
    means = (of_z.mean(), of_s.mean()) if norm == "batch" else (of_z, of_s)
    e = 2 * factor * (snr * means[0] / means[1]) ** 2
    column = (-1, *(1,) * (x.dim() - 1))
    dots = [(g * v).flatten(1).sum(1) for v in (s, wide)]
    of_e = dots[0] + dots[1] / (2 * e).sqrt()
    if norm == "batch":
        of_e = of_e.sum() / len(x)
    pull, push = ((2 * e * of_e / (m * n)).view(column) for m, n in zip((of_s, of_z), means[::-1], strict=True))
    e = e.view(column)
    in_score = scale * (e * g - pull * s)
    in_z = (2 * e).sqrt() * g + push * wide
    return grad.clone(), in_score.to(score.dtype), in_z.to(z.dtype) if z is not None else grad.new_empty(0)


@langevin_backward.register_fake
def _(grad: Tensor, x: Tensor, score: Tensor, z: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(score), grad.new_empty(0) if z is None else torch.empty_like(z)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4], *inputs[8:12])
    ctx.between, ctx.norm = inputs[4:8], inputs[12]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    of_x, of_score, of_z = langevin_backward(grad, *tensors[:4], *ctx.between, *tensors[4:], ctx.norm)
    return of_x, of_score, None if tensors[2] is None else of_z, *[None] * 10


langevin_operator.register_autograd(_backward, setup_context=_save)


def langevin_reference(
    x: Tensor,
    score: Tensor,
    noise: Noise | DeviceNoise | Tensor,
    snr: float,
    scale: float | Tensor,
    factor: float | Tensor,
    norm: Norm,
    out: Tensor | None = None,
) -> Tensor:
    """`langevin` without its checks, in eager torch, by chunks of samples; a Noise is generated, not kept. Numbers in tensors
    are read to the host."""
    if x.numel() == 0:
        return x.clone() if out is None else out
    scale, factor, noise = float(scale), float(factor), host_noise(noise)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, score, noise) if isinstance(t, Tensor))
    height = len(x) if recorded else max(1, CHUNK // (x.numel() // len(x)))
    chunks = [slice(top, min(top + height, len(x))) for top in range(0, len(x), height)]
    sizes = None
    if norm == "batch":
        of_z = torch.cat([norms(normals(noise, x, rows)) for rows in chunks]).mean()
        sizes = step_size(of_z, torch.cat([norms(score[rows]) for rows in chunks]).mean(), snr, scale, factor, 0)
    target = out if out is not None or recorded else torch.empty_like(x)
    for rows in chunks:
        z = normals(noise, x, rows)
        e = step_size(norms(z), norms(score[rows]), snr, scale, factor, rows.start) if sizes is None else sizes
        e = e.view(-1, *(1,) * (x.dim() - 1))
        drift, spread = (e * scale).to(z.dtype), (2 * e).sqrt().to(z.dtype)
        part = (x[rows] + drift * score[rows] + spread * z).to(x.dtype)
        if target is None:
            return part
        target[rows] = part
    assert target is not None
    return target


def normals(noise: Noise | Tensor, x: Tensor, rows: slice) -> Tensor:
    """z for those samples, in float64 for float64 states and in float32 otherwise."""
    dtype = accumulation(x.dtype)
    if isinstance(noise, Tensor):
        return noise[rows].to(dtype)
    shape = x[rows].shape
    with untransformed():
        z = torch.empty(shape, dtype=dtype, device=x.device)
        fill(z.unsqueeze(0), noise.seed, (noise.draw,), noise.first + rows.start)
    return z


def step_size(z: Tensor, score: Tensor, snr: float, scale: float, factor: float, start: int) -> Tensor:
    """e = 2 factor (snr |z| / |scale score|)^2 from the two norms, float64; refused where it or the score is not
    finite.

    start: the index of the first of them in the batch.
    """
    e = 2 * factor * (snr * z / (abs(scale) * score)) ** 2
    usable = (e < LARGEST) & score.isfinite()
    if not usable.all():
        i = int(usable.logical_not().view(-1).nonzero()[0])
        which = f"sample {start + i}" if e.dim() else "the batch (means over its samples)"
        raise ValueError(
            f"`score` of {which} has norm {score.view(-1)[i].item():.6g}, so the step 2 (snr |z| / |score|)^2 is "
            f"{e.view(-1)[i].item():.6g}; give the step itself (`step_size`), or check the field at this point"
        )
    return e
