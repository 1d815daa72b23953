"""Posterior over the components of a Gaussian mixture, and the field it gives, in memory that n and k do not decide.

Rows of x are float64, (n, d). With sigma > 0 or a density the component laws are N(alpha m_k, S_k),
S_k = alpha^2 C_k + sigma^2 I, and r_k(x) is proportional to w_k N(x; alpha m_k, S_k), always through log-sum-exp.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from halfbridge.kernels import mixture_field, mixture_log_density
from halfbridge.solvers.reference.views import PerDevice, affine_view

__all__ = ["Full", "Isotropic"]

STREAM = 2**19  # entries of one (rows, components, d) block


class Isotropic:
    """Components N(m_k, v_k I), about their centre: `kernels.mixture_field` with the coefficients of a process.

    dtype: float64, or float32 for x - alpha c and m_k - c rounded to it, c the centre.
    """

    def __init__(self, log_weights: Tensor, means: Tensor, variances: Tensor) -> None:
        self.smallest_variance = float(variances.min())
        self._common = variances[0].clone() if bool((variances == variances[0]).all()) else None
        centre = means.mean(0)
        centred = means - centre
        self._reach = float(torch.linalg.vector_norm(centred, dim=1).max())
        self._tables = PerDevice(log_weights, centre, centred, variances)
        self._narrow: PerDevice | None = None

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """log sum_k w_k N(x; alpha m_k, S_k), (n,)."""
        log_weights, centre, means, v = self._tables(x.device)
        s = alpha**2 * (v if self._common is None else self._common) + sigma**2
        return mixture_log_density(
            x - alpha * centre, means, log_weights, self._number(s), alpha=alpha, reach=self._reach
        )

    def field(self, predicts: str, x: Tensor, alpha: float, sigma: float, dtype: torch.dtype = torch.float64) -> Tensor:
        """sum_k r_k (gain_k (x - alpha m_k) + offset m_k), (n, d): every view is affine in each component (see AffineView)."""
        log_weights, centre, means, v = self._tables_in(dtype)(x.device)
        v = v if self._common is None else self._common
        view = affine_view(predicts, alpha, sigma, v)
        s, gain = self._number(alpha**2 * v + sigma**2), self._number(view.gain)
        y = (x - alpha * centre).to(dtype)
        field = mixture_field(y, means, log_weights, s, gain, alpha=alpha, offset=view.offset, reach=self._reach)
        return field.to(torch.float64) + view.offset * centre

    def _number(self, value: Tensor) -> Tensor | float:
        """One number where the components share their variance."""
        return value if self._common is None else float(value)

    def _tables_in(self, dtype: torch.dtype) -> PerDevice:
        if dtype == torch.float64:
            return self._tables
        if self._narrow is None:
            with torch.inference_mode(False):
                log_weights, centre, means, v = self._tables(torch.device("cpu"))
                self._narrow = PerDevice(log_weights, centre, means.to(dtype), v)
        return self._narrow


class Full:
    """Components N(m_k, C_k), C_k = V_k diag(l_k) V_k^T, streamed in blocks with an online log-sum-exp.

    The running maximum of the exponents is a constant to autograd: it cancels between numerator and denominator.
    """

    def __init__(self, log_weights: Tensor, means: Tensor, values: Tensor, vectors: Tensor) -> None:
        self.smallest_variance = float(values.min())
        centre = means.mean(0)
        centred = means - centre
        basis = vectors.permute(1, 0, 2).flatten(1)  # (d, k d): y = x @ basis has x in every eigenbasis
        turned = torch.einsum("kd,kde->ke", centred, vectors)
        self._tables = PerDevice(log_weights, centre, centred, turned, values, basis)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """log sum_k w_k N(x; alpha m_k, S_k), (n,)."""
        parts = [self._stream("score", rows, alpha, sigma)[0] for rows in self._rows(x)]
        return torch.cat(parts) - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def field(self, predicts: str, x: Tensor, alpha: float, sigma: float, dtype: torch.dtype = torch.float64) -> Tensor:
        """sum_k r_k times the view of component k, (n, d); float64 is the only `dtype`."""
        return torch.cat([self._stream(predicts, rows, alpha, sigma)[1] for rows in self._rows(x)])

    def _rows(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, max(1, min(256, STREAM // x.shape[1])))

    def _stream(self, predicts: str, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """(log density without its 2 pi, field) of one block of rows."""
        log_weights, centre, means, turned, values, basis = self._tables(x.device)
        n, d = x.shape
        s = alpha**2 * values + sigma**2
        bias = log_weights - 0.5 * s.log().sum(1)
        view = affine_view(predicts, alpha, sigma, values)
        x = x - alpha * centre
        top = x.new_full((n,), -math.inf)
        total, field = torch.zeros_like(top), torch.zeros_like(x)
        step = max(1, STREAM // max(1, n * d))
        for k in range(0, len(bias), step):
            block = slice(k, k + step)
            eigenvectors = basis[:, k * d : (k + step) * d]
            y = (x @ eigenvectors).reshape(n, len(bias[block]), d) - alpha * turned[block]
            exponents = bias[block] - 0.5 * (y * y / s[block]).sum(2)
            new_top = torch.maximum(top, exponents.detach().amax(1))
            fade, weight = (top - new_top).exp(), (exponents - new_top[:, None]).exp()
            step_field = (weight[:, :, None] * view.gain[block] * y).flatten(1) @ eigenvectors.mT
            if view.offset:
                step_field = step_field + view.offset * (weight @ means[block])
            total, field = total * fade + weight.sum(1), field * fade[:, None] + step_field
            top = new_top
        return top + total.log(), field / total[:, None] + view.offset * centre
