"""Samples whose moments are exactly those of a law, so that means of quadratic losses are expectations, to rounding."""

import math

import numpy as np
import torch

import halfbridge as hb
from halfbridge.training.losses import sample_times

MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COV = torch.tensor([[0.9, 0.3], [0.3, 0.5]], dtype=torch.float64)
LAW = hb.reference.Gaussian(MEAN, COV)
PROBE = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
STEPS = hb.DiscreteVP([0.02 + 0.03 * k for k in range(10)])
PROCESSES = [hb.VP(), hb.SubVP(), hb.VE(), hb.EDM(), hb.OU(g=1.4), STEPS]
PREDICTS = ["noise", "score", "data", "velocity"]

by_name = {"ids": lambda p: type(p).__name__}


def exact_sample(n=32, mean=MEAN, cov=COV):
    """(x0, z) of n pairs whose sample mean and covariance are exactly those of N(mean, cov) x N(0, I), in the plane."""
    raw = torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw[:, 0] = 1.0
    white = torch.linalg.qr(raw).Q[:, 1:] * math.sqrt(n)
    return mean + white[:, :2] @ torch.linalg.cholesky(cov).T, white[:, 2:]


def every_time(times, x0, z):
    """(x0, times, z) with every row of the sample at every time: the mean over rows of one time is an expectation."""
    n, m = len(x0), len(times)
    return x0.repeat(m, 1), torch.as_tensor(times).repeat_interleave(n), z.repeat(m, 1)


def some_times(process, n):
    """Distinct times, all over [t_min, T]; whole steps for a discrete process."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return sample_times(process, u)


def quadrature(n):
    """(u, weights) of Gauss and Legendre on [0, 1], float64."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(0.5 * (nodes + 1.0)), torch.from_numpy(0.5 * weights)


def minimiser(loss):
    """The minimum of loss(net) over affine nets, quadratic in their coefficients: one Newton step. Its values at PROBE."""

    def of(theta):
        return loss(lambda x, _: x @ theta[:4].view(2, 2).T + theta[4:])

    start = torch.zeros(6, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(of, start)
    gradient = torch.autograd.functional.jacobian(of, start)
    theta = start - torch.linalg.solve(hessian, gradient)
    return PROBE @ theta[:4].view(2, 2).T + theta[4:]


def exact_net(process, predicts="noise", law=LAW):
    """net(x, t), t (batch,) times: the exact field of the law, row by row of equal times."""

    def net(x, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        total = alpha[:, :, None] ** 2 * law.cov + sigma[:, :, None] ** 2 * torch.eye(law.dim, dtype=torch.float64)
        noise = sigma * torch.linalg.solve(total, (x - alpha * law.mean)[..., None])[..., 0]
        return converted(lambda *_: noise, process, predicts)(x, t)

    return net


def converted(net, process, predicts):
    """`net` predicts the noise; the same belief stated as `predicts`, from x = alpha D + sigma eps."""

    def other(x, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        noise = net(x, t)
        if predicts == "noise":
            return noise
        if predicts == "score":
            return -noise / sigma
        clean = (x - sigma * noise) / alpha
        return clean if predicts == "data" else alpha * noise - sigma * clean

    return other


def crooked(x, t):
    return torch.sin(x.flip(1)) + 0.3 * x + 0.1
