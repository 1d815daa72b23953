"""The Langevin corrector whose step is sized by a signal-to-noise ratio (Song et al. 2021, algorithms 4 and 5)."""

from typing import Any, Literal

import torch
from torch import Tensor

from halfbridge.kernels.aliasing import check_writable, may_overlap, same_elements
from halfbridge.kernels.combine import check_like, check_noise, check_real
from halfbridge.kernels.dispatch import resolve
from halfbridge.kernels.noise import Noise
from halfbridge.kernels.normal import fill

Norm = Literal["sample", "batch"]
LARGEST = 1e30  # a step that no state survives: the update would overflow float32
CHUNK = 1 << 18  # elements worked on at once: the float64 squares and the normals of a chunk stay in cache


def langevin(
    x: Tensor,
    score: Tensor,
    *,
    snr: float,
    noise: Noise | Tensor,
    scale: float = 1.0,
    factor: float = 1.0,
    norm: Norm = "sample",
    out: Tensor | None = None,
) -> Tensor:
    """x + e s + sqrt(2 e) z with s = scale * score and e = 2 factor (snr |z| / |s|)^2.

    x, score: (batch, *sample), one shape, floating dtype and device. noise: a Noise of scale 1, or z itself, like x.
    factor: 1, or the alpha_i = 1 - beta_i of Song et al. 2021, algorithm 5. norm: "sample" sizes each sample's step by
    its own Euclidean norms; "batch" by the batch means of the norms, as Song et al.'s code does, which couples the
    samples.

    Norms are summed in float64 in an order that the batch does not change, so with "sample" a sample's bits depend on
    that sample only. Half states are updated in float32 and rounded once. Differentiable in x, score and z, without
    `out`. Where the score of a sample (with "batch", of all of them) is zero the step is infinite: ValueError, as for
    bad arguments.
    """
    for name, tensor in (("`x`", x), ("`score`", score), *((("`out`", out),) if out is not None else ())):
        check_like(name, tensor, x, "`x`")
    if x.dim() == 0:
        raise ValueError("`x` has shape () and so no batch axis; pass (batch, *sample)")
    if norm not in ("sample", "batch"):
        raise ValueError(f'`norm` = {norm!r}; pass "sample" or "batch"')
    numbers = {
        name: check_real(name, value, torch.float64)
        for name, value in (("snr", snr), ("scale", scale), ("factor", factor))
    }
    for name, value in numbers.items():
        if value == 0 or (value < 0 and name != "scale"):
            remedy = "a non-zero number" if name == "scale" else "a positive number"
            raise ValueError(f"`{name}` = {value} gives no step; pass {remedy}")
    target = out
    if out is not None:
        tensors = [x, score, *([noise] if isinstance(noise, Tensor) else [])]
        if torch.is_grad_enabled() and any(t.requires_grad for t in (out, *tensors)):
            raise ValueError(
                "`out` cannot be given while gradients are recorded; leave it out or work under torch.no_grad()"
            )
        check_writable(out)
        if any(may_overlap(out, t) and not same_elements(out, t) for t in tensors):
            target = torch.empty_like(out)
    run = resolve("langevin", x.device.type, x.dtype, x.numel())
    result: Tensor = run(x, score, check_source(noise, x), **numbers, norm=norm, out=target)
    return result if out is None or target is out else out.copy_(result)


def check_source(noise: Any, x: Tensor) -> Noise | Tensor:
    """The noise as a Noise of scale 1 or a tensor like x."""
    if isinstance(noise, Tensor):
        check_like("`noise`", noise, x, "`x`")
        return noise
    known = check_noise(noise, x)
    if known is None or known.scale != 1.0:
        raise ValueError(
            f"`noise`.scale = {noise[0]}, but the step sets the scale of z here; pass Noise(1.0, seed, draw, first)"
        )
    return known


def langevin_reference(
    x: Tensor,
    score: Tensor,
    noise: Noise | Tensor,
    snr: float,
    scale: float,
    factor: float,
    norm: Norm,
    out: Tensor | None = None,
) -> Tensor:
    """`langevin` without its checks, in eager torch, by chunks of samples; a Noise is generated, not kept."""
    if x.numel() == 0:
        return x.clone() if out is None else out
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
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if isinstance(noise, Tensor):
        return noise[rows].to(dtype)
    z = torch.empty(x[rows].shape, dtype=dtype, device=x.device)
    fill(z.unsqueeze(0), noise.seed, (noise.draw,), noise.first + rows.start)
    return z


def norms(v: Tensor) -> Tensor:
    """Euclidean norm of each flattened sample, (batch,) float64, summed by halves: v[:, :m] + v[:, m:] until one is
    left.

    torch's own reductions order their additions by the batch size and the number of threads; this order depends on the
    sample's size alone, and its rounding error grows with log2 of it.
    """
    total = v.reshape(len(v), -1).double()
    total = total * total
    while (n := total.shape[1]) > 1:
        m = (n + 1) // 2
        tail = total[:, m:]
        total = total[:, :m] + (tail if n == 2 * m else torch.nn.functional.pad(tail, (0, 2 * m - n)))
    return total[:, 0].sqrt()


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
