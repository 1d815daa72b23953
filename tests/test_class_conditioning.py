"""Class labels of the MLP and the U-Net: 0 .. n - 1, and -1 for no class."""

import math

import pytest
import torch

from halfbridge.nets.mlp import MLP
from halfbridge.nets.unet import UNet


def make(kind, classes):
    if kind == "MLP":
        net = MLP((1, 8, 8), hidden=16, depth=1, classes=classes)
    else:
        net = UNet((1, 8, 8), width=8, multipliers=(1, 2), blocks=1, classes=classes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(p[0].numel() if p.ndim > 1 else 4))
    return net.double().eval()


KINDS = ["MLP", "UNet"]
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_keeps_its_own_class(kind):
    net = make(kind, 3)
    classes = torch.tensor([2, -1, 0, 1])
    rows = torch.cat([net(X[i : i + 1], T[i : i + 1], classes[i : i + 1]) for i in range(4)])
    assert torch.allclose(net(X, T, classes), rows, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_classes_and_no_class_are_alike(kind):
    net = make(kind, 3)
    outs = [net(X, T, torch.full((4,), c)) for c in (-1, 0, 1, 2)]
    for i in range(4):
        for j in range(i):
            assert (outs[i] - outs[j]).square().mean().sqrt() > 0.01 * outs[i].std()


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_moves_its_own_vector_alone_and_no_class_the_first(kind):
    net = make(kind, 3)
    net(X, T, torch.tensor([-1, 1, 1, -1])).square().sum().backward()
    moved = net.class_embedding.vectors.weight.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == [True, False, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (None, TypeError, "classes is None, but this network has 3"),
        (2, TypeError, "classes is a int"),
        (torch.tensor([0, 1, 2, 3]), ValueError, r"classes holds 3, but this network has 0 \.\. 2"),
        (torch.tensor([0, 1, 2, -2]), ValueError, "classes holds -2"),
        (torch.tensor([0, 1, 2]), ValueError, r"classes has shape \(3,\) for a batch of 4"),
        (torch.tensor([[0, 1, 2, 1]]), ValueError, r"classes has shape \(1, 4\)"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), TypeError, "classes has dtype torch.float32"),
    ],
)
def test_classes_that_there_are_not_are_refused(kind, classes, error, message):
    with pytest.raises(error, match=message):
        make(kind, 3)(X, T, classes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_without_classes_takes_none(kind):
    net = make(kind, 0)
    assert net.classes == 0
    assert net.class_embedding.vectors is None
    with pytest.raises(ValueError, match="network without; build it with classes=n"):
        net(X, T, torch.zeros(4, dtype=torch.int64))


def test_classes_change_no_other_number_of_an_untrained_network():
    """The vectors are drawn after the layers of the time, so seeds of networks without classes keep their meaning."""
    nets = []
    for classes in (0, 3):
        torch.manual_seed(0)
        nets.append(MLP(2, hidden=8, depth=1, classes=classes))
    without, with_classes = nets
    assert torch.equal(without.time_layers[2].weight, with_classes.time_layers[2].weight)
    assert with_classes.parameter_count == without.parameter_count + 4 * 8
