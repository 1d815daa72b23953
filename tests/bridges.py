"""Schrödinger bridges between Gaussians written again, from the papers' own formulas: what the library is checked against.

Nothing here imports the library's bridges; alpha(t) and sigma(t)^2 come from the process, or from independent.KERNELS.
"""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

import halfbridge as hb

PROCESSES = {
    "Brownian": hb.Brownian(0.8, 2.0), "OU": hb.OU(0.5, 1.3, 2.0), "VP": hb.VP(0.1, 4.0), "SubVP": hb.SubVP(), "VE": hb.VE(0.02, 3.0),
    "EDM": hb.EDM(0.002, 3.0), "CosineVP": hb.CosineVP(), "DiscreteVP": hb.DiscreteVP(np.linspace(1e-3, 0.2, 20)),
    "LinearProcess": hb.LinearProcess(lambda t: (-t).exp(), lambda t: 1.0 - (-t).exp(), 3.0, 0.01),
}  # fmt: skip
by_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def root(matrix):
    return np.real(sqrtm(np.asarray(matrix, float)))


def gaussian(d, seed, spread=1.0):
    """A random Gaussian; two of them do not commute. Eigenvalues at least 0.1 spread^2."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(d, d))
    return hb.reference.Gaussian(rng.normal(size=d), spread**2 * (a @ a.T / d + 0.1 * np.eye(d)))


P0, P1 = gaussian(3, 0), gaussian(3, 1, spread=1.3)


def cross_covariance(S0, S1, s2):
    """C = (S0^1/2 D S0^-1/2 - s^2 I)/2, D = (4 S0^1/2 S1 S0^1/2 + s^4 I)^1/2 (Bunne et al. 2023): it cancels for large s^2."""
    S0, S1 = np.asarray(S0, float), np.asarray(S1, float)
    R = root(S0)
    D = root(4 * R @ S1 @ R + s2**2 * np.eye(len(S0)))
    return (R @ D @ np.linalg.inv(R) - s2 * np.eye(len(S0))) / 2


class Textbook:
    """Marginals and drifts by the conditional means of the ends (Bunne et al. 2023): differences of alpha and sigma."""

    def __init__(self, p0, p1, process):
        self.p, self.T = process, process.T
        self.m0, self.m1, self.S0, self.S1 = (np.asarray(a) for a in (p0.mean, p1.mean, p0.cov, p1.cov))
        self.alpha, self.V = process.alpha(self.T), process.sigma(self.T) ** 2
        self.C = cross_covariance(self.S0, self.S1, self.V / self.alpha)

    def weights(self, t):
        a, v = self.p.alpha(t), self.p.sigma(t) ** 2
        r = self.alpha / a * v / self.V
        return a - r * self.alpha, r, v - r**2 * self.V

    def marginal(self, t):
        rbar, r, tau = self.weights(t)
        cov = rbar**2 * self.S0 + r**2 * self.S1 + rbar * r * (self.C + self.C.T) + tau * np.eye(len(self.m0))
        return rbar * self.m0 + r * self.m1, cov

    def forward(self, t, x):
        """a x + g^2 A/w (E[X_T | X_t = x] - A x)."""
        (rbar, r, _), (mean, cov) = self.weights(t), self.marginal(t)
        A = self.alpha / self.p.alpha(t)
        w = self.V - A**2 * self.p.sigma(t) ** 2
        K = (rbar * self.C.T + r * self.S1) @ np.linalg.inv(cov)
        return self.p.drift_rate(t) * x + self.p.diffusion(t) ** 2 * A / w * (self.m1 + (x - mean) @ K.T - A * x)

    def backward(self, t, x):
        """a x + g^2/sigma^2 (x - alpha_t E[X_0 | X_t = x])."""
        (rbar, r, _), (mean, cov) = self.weights(t), self.marginal(t)
        K = (rbar * self.S0 + r * self.C) @ np.linalg.inv(cov)
        origin = self.m0 + (x - mean) @ K.T
        return self.p.drift_rate(t) * x + self.p.diffusion(t) ** 2 / self.p.sigma(t) ** 2 * (
            x - self.p.alpha(t) * origin
        )


def reference_ends(p0, process):
    """The law of (X_0, X_T) of the process started from p0."""
    alpha, V, S0 = process.alpha(process.T), process.sigma(process.T) ** 2, np.asarray(p0.cov)
    cov = np.block([[S0, alpha * S0], [alpha * S0, alpha**2 * S0 + V * np.eye(len(S0))]])
    return hb.reference.Gaussian(np.concatenate([p0.mean, alpha * p0.mean]), cov)


def affine(drift, t, d):
    """(L, c) of an affine drift(t, x) = L x + c."""
    values = np.asarray(drift(t, torch.cat([torch.zeros(1, d), torch.eye(d)]).double()))
    return (values[1:] - values[0]).T, values[0]


def points(n, d, seed=3):
    """(n, d) random states."""
    return torch.from_numpy(2 * np.random.default_rng(seed).normal(size=(n, d)))


def close(ours, theirs, rtol=1e-11):
    """Equal to rtol, relative to each entry or to the largest."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())
