"""Scores, laws and quadratures for the losses that differentiate a score."""

import itertools
import math

import numpy as np
import torch

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def all_signs(n, shape):
    """Every vector of signs, as probes of n samples: (2^d, n, *shape)."""
    vectors = torch.tensor(list(itertools.product([1.0, -1.0], repeat=math.prod(shape))), dtype=F64)
    return vectors.view(-1, 1, *shape).expand(-1, n, *shape).contiguous()


def frame(n, d, seed=3):
    """sqrt(d) times an orthonormal basis of its own for each of n samples, (d, n, d): the mean of v v^T over it is I."""
    return torch.linalg.qr(randn(n, d, d, seed=seed)).Q.permute(2, 0, 1).contiguous() * math.sqrt(d)


def hermite(n, d):
    """Nodes (n^d, d) and weights of N(0, I), exact for degree 2n - 1 in each coordinate."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(n))
    grid = torch.cartesian_prod(*[nodes] * d).view(-1, d)
    return grid, torch.cartesian_prod(*[weights / weights.sum()] * d).view(-1, d).prod(1)


class Mixture:
    """sum_k w_k N(m_k, C_k) under x = alpha x0 + sigma z, and the law of z given x, by formulas of its own."""

    def __init__(self, weights, means, covs, alpha=1.0, sigma=0.0):
        self.weights = torch.tensor(weights, dtype=F64)
        self.means = alpha * torch.tensor(means, dtype=F64)
        self.dim = self.means.shape[1]
        self.covs = alpha**2 * torch.tensor(covs, dtype=F64) + sigma**2 * torch.eye(self.dim, dtype=F64)
        self.sigma = sigma

    def parts(self, x):
        """log (w_k N(x; m_k, S_k)), (..., k)."""
        y = x[..., None, :] - self.means
        inner = (y * torch.linalg.solve(self.covs, y[..., None])[..., 0]).sum(-1)
        return self.weights.log() - 0.5 * (inner + torch.logdet(2 * math.pi * self.covs))

    def log_prob(self, x):
        return self.parts(x).logsumexp(-1)

    def score(self, x):
        return torch.func.vmap(torch.func.grad(self.log_prob))(x)

    def hessian(self, x):
        return torch.func.vmap(torch.func.hessian(self.log_prob))(x)

    def third(self, x):
        """grad_k d_i d_j log p, (n, i, j, k)."""
        return torch.func.vmap(torch.func.jacrev(torch.func.hessian(self.log_prob)))(x)

    def noise_given(self, x, n=4):
        """Nodes (m, d) and weights (m,) of z given one x (d,): exact for polynomials of degree 2n - 1."""
        share = self.parts(x).softmax(-1)
        nodes, weights = hermite(n, self.dim)
        eye = torch.eye(self.dim, dtype=F64)
        means = self.sigma * torch.linalg.solve(self.covs, (x - self.means)[..., None])[..., 0]
        roots = torch.linalg.cholesky(eye - self.sigma**2 * torch.linalg.inv(self.covs))
        z = means[:, None] + torch.einsum("kij,mj->kmi", roots, nodes)
        return z.flatten(0, 1), (share[:, None] * weights).flatten()


class Rows:
    """The noise of a training step, as an objective asks for it, with the normals of x_t given, such as rows of a quadrature;
    and, for signs, one direction for all rows."""

    def __init__(self, z, u=0.5, direction=None):
        self.z, self.u, self.direction = z, u, direction

    def uniform(self):
        return torch.full((len(self.z),), self.u, dtype=F64)

    def normal(self, draw=0):
        return self.z if draw == 0 else randn(*self.z.shape, seed=draw).to(self.z)

    def signs(self, draw=0):
        assert draw > 0  # its words are those of the normals of x_t
        if self.direction is not None:
            return self.direction.expand_as(self.z)
        return randn(*self.z.shape, seed=100 + draw).sign().to(self.z)


class Attending(torch.nn.Module):
    """Convolution, group norm, attention over the pixels, silu: what a U-Net is made of. x: (batch, 2, 2, 2)."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        generator = torch.Generator().manual_seed(5)
        self.inner = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 4)
        self.qkv = torch.nn.Conv2d(4, 12, 1)
        self.outer = torch.nn.Conv2d(4, 2, 3, padding=1)
        self.double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, dtype=F64, generator=generator))

    def forward(self, x, label):
        h = torch.nn.functional.silu(self.norm(self.inner(x)) * (1.0 + label.view(-1, 1, 1, 1)))
        parts = self.qkv(h).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (batch, 1, pixels, channels)
        q, k, v = (part.contiguous() for part in parts)  # or torch would not take its fused kernel
        if self.fused:
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.outer(h + mixed[:, 0].mT.reshape(h.shape))


def gradients(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
