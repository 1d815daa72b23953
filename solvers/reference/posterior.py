"""Posterior over the components of a Gaussian mixture, and the field it gives, in memory that n and k do not decide.

Rows of x are float64, (n, d). With sigma > 0 or a density the component laws are N(alpha m_k, S_k),
S_k = alpha^2 C_k + sigma^2 I, and r_k(x) is proportional to w_k N(x; alpha m_k, S_k), always through log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from halfbridge.solvers.reference.views import PerDevice, affine_view

__all__ = ["Full", "Isotropic"]

LOGITS = 2**17  # entries of one (rows, k) block: 1 MB of float64, which a core's cache holds
STREAM = 2**19  # entries of one (rows, components, d) block


def responsibilities(exponents: Tensor) -> Tensor:
    """Softmax along rows. torch's own wakes every thread of the pool even for a dozen numbers, which takes milliseconds when
    a core is busy with something else."""
    weight = (exponents - exponents.detach().amax(1, keepdim=True)).exp()
    return weight / weight.sum(1, keepdim=True)


class Isotropic:
    """Components N(m_k, v_k I), by matrix products, the distances as good as if each came from x - alpha m_k.

    |y - p|^2 = |y|^2 - 2 y.p + |p|^2 would put an error |y|^2 2^-52 / sigma^2 in an exponent: 1 nat at sigma = 1e-8.
    So y and p are cut at one power of two into heads of few bits, whose products and sums are exact in any order, and
    tails (error-free splitting: Ozaki, Ogita, Oishi and Rump 2012). The heads cancel exactly, down to the distance
    itself, and only then meet the products with tails, 2^bits times smaller; bits = 24 - log2(d) / 2.
    """

    def __init__(self, log_weights: Tensor, means: Tensor, variances: Tensor) -> None:
        self.smallest_variance = float(variances.min())
        self._common = bool((variances == variances[0]).all())
        centre = means.mean(0)
        centred = means - centre
        self._reach = float(centred.abs().max())
        self._bits = 24 - math.ceil(math.log2(means.shape[1]) / 2)
        self._tables = PerDevice(log_weights, centre, centred, variances)

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """log sum_k w_k N(x; alpha m_k, S_k), (n,)."""
        parts = [e.logsumexp(1) + row for _, e, row in self._blocks(x, alpha, sigma)]
        return torch.cat(parts) - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def field(self, predicts: str, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """sum_k r_k (gain_k x + pull_k m_k), (n, d): every view is affine in each component (see AffineView)."""
        _, centre, means, v = self._tables(x.device)
        view = affine_view(predicts, alpha, sigma, v)
        pulls = torch.cat([view.pull[:, None] * means, view.gain[:, None]], 1)  # gain_k is one more column
        parts = []
        for y, exponents, _ in self._blocks(x, alpha, sigma):
            mixed = responsibilities(exponents) @ pulls
            parts.append(mixed[:, -1:] * y + mixed[:, :-1])
        return torch.cat(parts) + view.offset * centre

    def _blocks(self, x: Tensor, alpha: float, sigma: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For blocks of rows: y = x - alpha centre (rows, d), exponents (rows, k), and a term of the row (rows,).

        log w_k N(x; alpha m_k, S_k) = exponent + row term - d log(2 pi) / 2. With D the least squared distance between
        heads, D / S_k is split as D / S + D (1 / S_k - 1 / S), S the widest: in the far tails no D is left to drown the
        posterior of components that agree.
        """
        log_weights, centre, means, v = self._tables(x.device)
        p = alpha * means
        unit = math.ldexp(1.0, math.frexp(alpha * self._reach)[1] - self._bits)
        p_head = (p / unit).round() * unit
        p_tail = p - p_head
        head_squares, tail_terms = p_head.square().sum(1), ((p + p_head) * p_tail).sum(1)
        right = torch.cat([p_tail, p], 1).mT
        s = alpha**2 * v + sigma**2
        widest = s.max()
        narrower = alpha**2 * (v.max() - v) / (s * widest)
        bias = log_weights - 0.5 * x.shape[1] * s.log()
        for rows in torch.split(x, max(1, LOGITS // log_weights.numel())):
            y = rows - alpha * centre
            y_head = (y.detach() / unit).round() * unit
            y_tail = y - y_head  # carries the whole derivative
            heads = torch.addmm(head_squares, y_head, p_head.mT, alpha=-2)
            least = heads.amin(1, keepdim=True)
            above = torch.addmm(heads.sub_(least).add_(tail_terms), torch.cat([y_head, y_tail], 1), right, alpha=-2)
            nearest = least + y_head.square().sum(1, keepdim=True)
            nearest = nearest + ((y + y_head) * y_tail).sum(1, keepdim=True)
            exponents = torch.addcmul(bias, above, -0.5 / s)
            if not self._common:
                exponents = torch.addcmul(exponents, nearest, narrower, value=-0.5)
            yield y, exponents, -0.5 * nearest[:, 0] / widest


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

    def field(self, predicts: str, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """sum_k r_k times the view of component k, (n, d)."""
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
