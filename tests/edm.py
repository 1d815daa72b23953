"""The EDM scalings again, from the paper's table in 30 digits, and how close a result is to them."""

import mpmath
import torch
from layouts import inner_dtype
from torch import Tensor


def exact(sigma: float, data: float) -> tuple[float, float, float, float]:
    """c_skip, c_out, c_in, c_noise of Karras et al. 2022, table 1, from 30 digits."""
    with mpmath.workdps(30):
        s, d = mpmath.mpf(sigma), mpmath.mpf(data)
        total = s**2 + d**2
        return (
            float(d**2 / total),
            float(s * d / mpmath.sqrt(total)),
            float(1 / mpmath.sqrt(total)),
            float(mpmath.log(s) / 4),
        )


def columns(sigma: list[float], data: float, dim: int) -> list[Tensor]:
    """Those of each sample, float64, to be multiplied with states of `dim` axes; c_noise as (batch,)."""
    table = torch.tensor([exact(s, data) for s in sigma], dtype=torch.float64).reshape(len(sigma), 4)
    return [*(table[:, k].reshape(-1, *(1,) * (dim - 1)) for k in range(3)), table[:, 3]]


def rounding(dtype: torch.dtype) -> float:
    """Of a result. The interpreter cuts float32 off to bfloat16 where a GPU rounds."""
    return torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 else 0.5)


def close(got: Tensor, want: Tensor, size: Tensor, ulps: float, roundings: int = 1) -> bool:
    """Within that many ulps of the accumulation dtype, of `size`, and as many roundings to the result's dtype."""
    least = torch.finfo(got.dtype).smallest_normal
    slack = (
        ulps * torch.finfo(inner_dtype(got.dtype)).eps * size + roundings * rounding(got.dtype) * want.abs() + 2 * least
    )
    return bool(((got.double() - want).abs() <= slack).all())
