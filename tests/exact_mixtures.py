"""Isotropic mixtures as `mixture_field` takes them, and what it should give: sums of 60 digits, with what rounding may add."""

import math

import mpmath
import numpy as np
import torch

F32, F64 = torch.float32, torch.float64
EPS = {F32: 2.0**-24, F64: 2.0**-53, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
CUT = {**EPS, torch.bfloat16: 2.0**-7}  # of a result: the interpreter cuts float32 off to bfloat16 where a GPU rounds


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def log_weights(k, seed=0):
    return uniform(k, seed=seed).add(0.1).log_().log_softmax(0)


def exact(x, means, logs, s, gain, alpha, offset, inner=F64):
    """(field, log density) with exponents of 60 digits, each (value, what the stated roundings of `inner` may make of it)."""
    with mpmath.workdps(60):
        wide = np.vectorize(mpmath.mpf, otypes=[object])
        d, u = x.shape[1], EPS[inner]
        x, m, logs = (t.to(F64).numpy() for t in (x, means, logs))
        s, g = (np.broadcast_to(np.asarray(t, dtype=float), len(m)) for t in (s, gain))
        y = wide(x)[:, None] - alpha * wide(m)
        fixed = logs - d * np.vectorize(mpmath.log, otypes=[object])(wide(s)) / 2
        e = fixed - (y * y).sum(2) / (2 * wide(s))
        top = e.max(1, keepdims=True)
        weight = np.exp((e - top).astype(float))
        total = weight.sum(1, keepdims=True)
        density = (top[:, 0] + np.log(total[:, 0]) - d * mpmath.log(2 * mpmath.pi) / 2).astype(float)
        relative, y, fixed = (t.astype(float) for t in (e - top, y, fixed))
    r, f = (weight / total)[:, :, None], g[:, None] * y + offset * m
    field, shift = (r * f).sum(1), abs(alpha) * np.abs(m)

    distance, reach = np.sqrt((y**2).sum(2)), np.sqrt((shift**2).sum(1)).max()
    size = np.abs(np.where(np.isfinite(fixed), fixed, 0)) + np.abs(np.log(s)) * d + 4
    off = u * (6 * distance * np.minimum(distance, 5 * reach) / s + 3 * size)
    off += u * 12 * distance**2 / s * (np.ptp(s) > 0)
    off += u * 4 * shift.max() * distance * math.sqrt(d) / s  # the interpreter rounds alpha m
    sums = u * (600 + len(m) / 4096)
    spread = np.abs(f - field[:, None])
    lost = (r * np.expm1(np.minimum(off, 50))[:, :, None] * spread).sum(1)
    lost = lost / np.maximum((r[:, :, 0] * np.exp(-off)).sum(1), 1e-300)[:, None]
    lost = np.minimum(lost, spread.max(1))  # whatever the weights
    terms = (r * (np.abs(g[:, None]) * (np.abs(y) + shift) + np.abs(offset * m))).sum(1)

    up = (relative + off).max(1, keepdims=True)
    risen = (up + np.log(np.exp(relative + off - up).sum(1, keepdims=True) / total))[:, 0]
    density_off = np.maximum(risen, (r[:, :, 0] * off).sum(1)) + sums + 8 * u * np.abs(density) + 3 * u * size.max()
    return (field, lost + sums * terms), (density, density_off)


def check(got, expected, dtype):
    """Within what is allowed, and one rounding to dtype; a result that dtype cannot hold is inf."""
    value, allowed = expected
    got = got.to(F64).numpy()
    allowed = allowed + 1.01 * CUT[dtype] * np.abs(value) + float(torch.finfo(dtype).smallest_normal)
    over = np.abs(value) + allowed > torch.finfo(dtype).max
    assert ((np.abs(got - value) <= allowed) | over).all(), np.max(np.abs(got - value) / allowed)


def problem(n, k, d, dtype, sigma, far, varied, gains, seed=0):
    """Samples near the components, x = alpha m + sigma z, or far from all of them, and the other arguments; gains: None, a
    number, or one each."""
    means = random(k, d, seed=seed + 1).to(dtype)
    alpha, offset = (0.5, 0.0, -0.75)[seed % 3], (0.0, 0.6)[seed % 2]
    s = sigma**2 * (1 + uniform(k, seed=seed + 2)) if varied else sigma**2
    gain = {None: 0.0, False: -1 / sigma, True: uniform(k, seed=seed + 3) / sigma}[gains]
    offset = 1.0 if gains is None else offset
    x = alpha * means[torch.arange(n) % k].double() + sigma * random(n, d, seed=seed + 4)
    if far:
        x[::2] += 1e6 * random(1, d, seed=seed + 5)
    limit = 6e4 if dtype == torch.float16 else 1e30
    return x.clamp(-limit, limit).to(dtype), means, log_weights(k, seed), s, gain, alpha, offset
