"""Small networks and ends for tests of bridges that are trained."""

import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training.bridge import AffineRegressor, ReferenceChain, fit_bridge, ipf, reference_iterate
from halfbridge.training.bridge.regression import Batch

F64 = torch.float64
ONE = hb.OU(0.5, 1.0, 1.0)  # EQUATIONS.md H.3's experiment: T = 1, f = -x/2
NEAR0 = hb.reference.Gaussian([0.5, -1.0], [[0.8, 0.3], [0.3, 0.5]])
NEAR1 = hb.reference.Gaussian([-0.6, 0.4], [[0.6, -0.2], [-0.2, 1.0]])


def nets(d=2, hidden=8, depth=1, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [MLP(d, hidden=hidden, depth=depth).to(dtype) for _ in range(2)]


def awake(net, size=0.3, seed=1):
    """The network with random numbers where it starts from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(size * torch.randn(p.shape, generator=generator))
    return net.eval()


def exact_iterate(steps, half_bridges, p0=NEAR0, p1=NEAR1, process=ONE, **options):
    """pi^n of exact IPF, or of DSB's recursion with variance="fixed"."""
    regressor = AffineRegressor(**{"variance": "matched", **options})
    return list(ipf(reference_iterate(p0, p1, ReferenceChain(process, steps)), regressor, half_bridges))[-1]


def coupling_of(x, y):
    """Mean and covariance of the pairs."""
    z = torch.cat([x, y], 1).double()
    return z.mean(0), torch.cov(z.mT)


SMALL = {"steps": 3, "batch_size": 8, "cache_paths": 8, "monitor_paths": 16, "covariance_paths": 50}


def small(**changes):
    """A fit of 3 steps a half-bridge."""
    options = {"iterations": 2, **SMALL, **changes}
    start, end = (options.pop(name, law) for name, law in (("start", NEAR0), ("end", NEAR1)))
    both = options.pop("nets", None) or nets(dtype=F64)
    return fit_bridge(*both, start, end, options.pop("reference", ReferenceChain(ONE, 3)), **options)


def half_reference():
    return hb.training.bridge.ReferenceTransitions(ReferenceChain(ONE, 3))


def batch(n=7, shape=(2, 3)):
    g = torch.Generator().manual_seed(0)
    here, value = (torch.randn(n, *shape, generator=g, dtype=F64) for _ in range(2))
    label, gamma, known = torch.rand(3, n, generator=g, dtype=F64)
    return Batch(here, value, label, 0.1 + gamma, known)
