"""Another implementation of the solvers' laws, on matrices: what the eigenbasis and the plan are checked against.

Each step is written from the papers in full space, with numpy and linear solves, as a list of affine maps
x -> A x + b + sum_j N_j z_j. Nothing here imports the package's solvers, plans, processes or elementary functions;
alpha and sigma come from mpmath-free closed forms written again.
"""

import math

import numpy as np

KERNELS = {  # (alpha, sigma) of the contract's continuous processes, at their defaults
    "VP": (
        lambda t: math.exp(-(0.1 * t + 9.95 * t * t) / 2),
        lambda t: math.sqrt(1 - math.exp(-(0.1 * t + 9.95 * t * t))),
    ),
    "SubVP": (lambda t: math.exp(-(0.1 * t + 9.95 * t * t) / 2), lambda t: 1 - math.exp(-(0.1 * t + 9.95 * t * t))),
    "VE": (lambda t: 1.0, lambda t: 0.02 * math.sqrt(5000.0 ** (2 * t) - 1)),
    "EDM": (lambda t: 1.0, lambda t: t),
    "OU": (lambda t: math.exp(-0.5 * t), lambda t: math.sqrt(1 - math.exp(-t))),
    "Brownian": (lambda t: 1.0, lambda t: math.sqrt(t)),
    "CosineVP": (
        lambda t: math.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008),
        lambda t: math.sqrt(
            1 - (math.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)) ** 2
        ),
    ),
}


RATES = {"CosineVP": lambda t: -math.pi / 2 / 1.008 * math.tan(math.pi / 2 * (t + 0.008) / 1.008)}


def derivative(f, t):
    """Five-point central difference: accurate to about 1e-11 where f is smooth at the scale of t."""
    h = 1e-3 * min(t, 1.0)
    return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)


class Affine:
    """x -> A x + b + sum_j N_j z_j, composed from left to right."""

    def __init__(self, A, b, noises=()):
        self.A, self.b, self.noises = A, b, list(noises)

    def then(self, A, b, noise=None):
        noises = [A @ N for N in self.noises] + ([] if noise is None else [noise])
        return Affine(A @ self.A, A @ self.b + b, noises)

    def plus(self, other, c):
        """self + c * other, where both are functions of the same x and the same z's."""
        zip_noises = [a + c * b for a, b in zip(self.noises, other.noises, strict=True)]
        return Affine(self.A + c * other.A, self.b + c * other.b, zip_noises)

    def scaled(self, c):
        return Affine(c * self.A, c * self.b, [c * N for N in self.noises])


class Model:
    """The exact field of N(m, C) under a process given by alpha(t) and sigma(t)."""

    def __init__(self, alpha, sigma, m, C, rate=None):
        self.rate = rate  # d log alpha/dt of a variance-preserving process too steep for differences
        self.alpha, self.sigma, self.m, self.C, self.I = (
            alpha,
            sigma,
            np.asarray(m, float),
            np.asarray(C, float),
            np.eye(len(m)),
        )

    def S(self, t):
        return self.alpha(t) ** 2 * self.C + self.sigma(t) ** 2 * self.I

    def score(self, t, x):
        """The score at an Affine x, itself Affine."""
        P = -np.linalg.inv(self.S(t))
        return Affine(P @ x.A, P @ (x.b - self.alpha(t) * self.m), [P @ N for N in x.noises])

    def eps(self, t, x):
        return self.score(t, x).scaled(-self.sigma(t))

    def data(self, t, x):
        return x.plus(self.score(t, x), self.sigma(t) ** 2).scaled(1 / self.alpha(t))

    def nu(self, t):
        return self.sigma(t) / self.alpha(t)

    def lam(self, t):
        return -math.log(self.nu(t))

    def time(self, lam, low, high):
        """Bisection for the time of a half log-SNR."""
        for _ in range(200):
            mid = (low + high) / 2
            low, high = (mid, high) if self.lam(mid) > lam else (low, mid)
        return (low + high) / 2

    def a_g2(self, t):
        if self.rate is not None:
            a = self.rate(t)
            return a, -2 * a
        a = derivative(lambda u: math.log(self.alpha(u)), t)
        return a, derivative(lambda u: self.sigma(u) ** 2, t) - 2 * a * self.sigma(t) ** 2


def fresh(x, N):
    """x plus a new normal with gain N."""
    return Affine(x.A, x.b, [*x.noises, N])


def euler_maruyama(M, x, t, s):
    a, g2 = M.a_g2(t)
    mean = x.scaled(1 + (s - t) * a).plus(M.score(t, x), -(s - t) * g2)
    return fresh(mean, math.sqrt(g2 * (t - s)) * M.I)


def ancestral_ddpm(M, x, t, s, variance):
    """Ho et al. 2020, in their letters."""
    abar_t, abar_s = M.alpha(t) ** 2, M.alpha(s) ** 2
    beta = 1 - abar_t / abar_s
    mean = x.plus(M.eps(t, x), -beta / math.sqrt(1 - abar_t)).scaled(1 / math.sqrt(1 - beta))
    tau2 = beta if variance == "transition" else (1 - abar_s) / (1 - abar_t) * beta
    return fresh(mean, math.sqrt(tau2) * M.I)


def ancestral(M, x, t, s, variance):
    r = M.alpha(t) / M.alpha(s)
    v = M.sigma(t) ** 2 - r**2 * M.sigma(s) ** 2
    mean = x.plus(M.score(t, x), v).scaled(1 / r)
    c2 = v if variance == "transition" else v * M.sigma(s) ** 2 / M.sigma(t) ** 2
    return fresh(mean, math.sqrt(c2) * M.I)


def reverse_diffusion(M, x, t, s):
    r = M.alpha(t) / M.alpha(s)
    v = M.sigma(t) ** 2 - r**2 * M.sigma(s) ** 2
    return fresh(x.scaled(2 - r).plus(M.score(t, x), v), math.sqrt(v) * M.I)


def ddim(M, x, t, s, eta):
    r = M.alpha(t) / M.alpha(s)
    v = M.sigma(t) ** 2 - r**2 * M.sigma(s) ** 2
    c = eta * math.sqrt(v) * M.sigma(s) / M.sigma(t)
    mean = M.data(t, x).scaled(M.alpha(s)).plus(M.eps(t, x), math.sqrt(max(0.0, M.sigma(s) ** 2 - c * c)))
    return mean if eta == 0 else fresh(mean, c * M.I)


def heun(M, x, t, s, gamma=0.0, s_noise=1.0, horizon=None):
    """Karras et al. 2022, algorithm 2, on y = x/alpha."""
    y = x.scaled(1 / M.alpha(t))
    if gamma:
        nu_hat = M.nu(t) * (1 + gamma)
        y = fresh(y, s_noise * math.sqrt(nu_hat**2 - M.nu(t) ** 2) * M.I)
        t = M.time(-math.log(nu_hat), t, horizon)
    h = M.nu(s) - M.nu(t)
    d = M.eps(t, y.scaled(M.alpha(t)))
    euler = y.plus(d, h)
    d2 = M.eps(s, euler.scaled(M.alpha(s)))
    return y.plus(d, h / 2).plus(d2, h / 2).scaled(M.alpha(s))


def dpm(M, x, t, s, order):
    h = M.lam(s) - M.lam(t)

    def semi(u, span, e):
        return x.scaled(M.alpha(u) / M.alpha(t)).plus(e, -M.sigma(u) * (math.exp(span) - 1))

    e = M.eps(t, x)
    if order == 1:
        return semi(s, h, e)
    if order == 2:
        m = M.time(M.lam(t) + h / 2, s, t)
        return semi(s, h, M.eps(m, semi(m, h / 2, e)))
    m1, m2 = M.time(M.lam(t) + h / 3, s, t), M.time(M.lam(t) + 2 * h / 3, s, t)
    D1 = M.eps(m1, semi(m1, h / 3, e)).plus(e, -1.0)
    u2 = semi(m2, 2 * h / 3, e).plus(D1, -M.sigma(m2) * 2 * ((math.exp(2 * h / 3) - 1) / (2 * h / 3) - 1))
    D2 = M.eps(m2, u2).plus(e, -1.0)
    return semi(s, h, e).plus(D2, -M.sigma(s) * 1.5 * ((math.exp(h) - 1) / h - 1))


def dpmpp_2m(M, x, t, s, past):
    h = M.lam(s) - M.lam(t)
    D = M.data(t, x)
    mixed = D if past is None else D.scaled(1 + h / (2 * past[1])).plus(past[0], -h / (2 * past[1]))
    return x.scaled(M.sigma(s) / M.sigma(t)).plus(mixed, M.alpha(s) * (1 - math.exp(-h))), (D, h)


def ula(M, x, t, step):
    return fresh(x.plus(M.score(t, x), step), math.sqrt(2 * step) * M.I)


def law(end, mean, cov):
    """Mean, covariance and cross-covariance with the start, of an Affine from N(mean, cov)."""
    cross = end.A @ cov
    return end.A @ mean + end.b, cross @ end.A.T + sum((N @ N.T for N in end.noises), np.zeros_like(cov)), cross
