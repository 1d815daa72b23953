"""Problems with densities on nodes, and the errors between those."""

import math

import torch

import halfbridge as hb

F64 = torch.float64
MIXTURE = hb.reference.GaussianMixture([0.3, 0.7], [[-1.0], [1.2]], [0.15, 0.3])

DOUBLE_WELL = hb.SDE(lambda t, x: x - x**3, 0.9)


def axis(low, high, n):
    return torch.linspace(low, high, n, dtype=F64)


def gaussian(x, mean, var):
    return torch.exp(-((x - mean) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)


def density(law, *axes):
    """The density of a law with log_prob, at the nodes."""
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    return law.log_prob(points).exp().reshape([len(a) for a in axes])


def averages(x, law):
    """Averages of a one-dimensional mixture over the cells of a uniform axis (half cells at the ends)."""
    h = float(x[1] - x[0])
    edges = torch.cat([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    stds = law._covs.sqrt()
    cdf = (law.weights * (1 + torch.erf((edges[:, None] - law.means[:, 0]) / (stds * math.sqrt(2)))) / 2).sum(1)
    widths = torch.full_like(x, h)
    widths[[0, -1]] = h / 2
    return cdf.diff() / widths


def l1(p, q, *axes):
    """Integral of |p - q|, by sums over cells of equal size."""
    size = math.prod(float(a[1] - a[0]) for a in axes)
    return float((p - q).abs().sum()) * size


def order(errors):
    """From the last halving."""
    return math.log2(errors[-2] / errors[-1])
