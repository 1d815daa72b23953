"""Networks with random weights, and their fields compared to the last bit."""

import torch

import halfbridge as hb
from halfbridge.nets import MLP

P = hb.VP(0.2, 15.0)
X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def random_mlp(seed=0, **options):
    return randomise(MLP(2, **{"hidden": 16, "depth": 1, **options}), seed)


def randomise(net, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return net.eval()


def assert_same_field(a, b, x=X, t=0.4):
    assert a.process == b.process
    assert a.predicts == b.predicts
    with torch.no_grad():
        assert torch.equal(a.noise(t, x), b.noise(t, x))
