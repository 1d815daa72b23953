"""A small network on a few points, trained for a few steps."""

import torch

import halfbridge as hb
from halfbridge.nets import MLP
from halfbridge.training import data, fit_score


def network(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return MLP(2, hidden=8, depth=1, **options).to(dtype)


def train(net=None, x=None, process=hb.VP(), **changes):  # noqa: B008
    net = network() if net is None else net
    x = data.moons(64, 0).to(next(net.parameters())) if x is None else x
    return fit_score(net, x, process, **{"steps": 5, "batch_size": 16, **changes})


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])
