"""Networks written down and built again."""

import inspect
import json
import math

import pytest
import torch

import halfbridge as hb
from halfbridge.nets import MLP, Sinusoidal
from halfbridge.nets.build import TYPES, build, describe
from halfbridge.nets.unet import UNet

THIRD = 1.0 / 3.0
NETS = [
    lambda: MLP(2),
    lambda: MLP((2, 3), hidden=8, depth=1, classes=4, time="fourier"),
    lambda: MLP(3, hidden=8, time="log_snr", process=hb.DiscreteVP([0.1, THIRD, 0.5])),
    lambda: UNet((1, 8, 8), width=8),
    lambda: UNet(
        torch.Size((3, 9, 13)),
        width=4,
        multipliers=[1, 3],
        blocks=1,
        attention=[13],
        heads=2,
        dropout=THIRD,
        classes=3,
        time="log_snr",
        process=hb.VE(THIRD, 50.0),
        fused_attention=True,
    ),
    lambda: UNet((1, 8, 8), width=4, attention=(), time="steps"),
    lambda: MLP((2, 3), hidden=8, learned_variance=True),
    lambda: UNet((2, 8, 8), width=4, learned_variance=True),
]


@pytest.mark.parametrize("make", NETS)
def test_a_network_comes_back_from_json_with_the_same_arguments_and_function(make):
    net = make()
    description = json.loads(json.dumps(describe(net)))
    for again in (build(description), type(net)(**net.config)):
        assert type(again) is type(net)
        assert again.config == net.config
        assert repr(again) == repr(net)
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(0.1).add_(torch.arange(p.numel()).view(p.shape) % 7, alpha=0.01)
        again.load_state_dict(net.state_dict())
        x = torch.linspace(-1, 1, 2 * math.prod(net.shape)).view(2, *net.shape)
        t = torch.tensor([0.3, 0.9])
        classes = (torch.tensor([0, -1]),) if net.classes else ()
        assert torch.equal(again.eval()(x, t, *classes), net.eval()(x, t, *classes))


class Wrapped(torch.nn.Module):
    """Holds another network and takes any constant, as Precondition does."""

    def __init__(self, net, **constants):
        super().__init__()
        self.net, self.constants = net, constants

    @property
    def config(self):
        return {"net": describe(self.net)} | self.constants


def test_a_network_inside_another_is_built_first(monkeypatch):
    monkeypatch.setitem(TYPES, "Wrapped", __name__)
    net = Wrapped(MLP(2, hidden=8, depth=1), sigma_data=THIRD)
    again = build(json.loads(json.dumps(describe(net))))
    assert type(again) is Wrapped
    assert again.net.config == net.net.config
    assert again.config == net.config
    with pytest.raises(ValueError, match="description of Wrapped lacks 'net'"):
        build({"type": "Wrapped", "sigma_data": 1.0})


def test_every_argument_is_written_down():
    for net in (MLP(2), UNet((1, 8, 8), width=4)):
        assert set(net.config) == set(inspect.signature(type(net)).parameters)


def test_what_is_left_out_has_its_default():
    assert build({"type": "MLP", "shape": 2}).config == MLP(2).config


def test_what_cannot_be_written_down_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"time is a module, Sinusoidal, and cannot be written down.* net="):
        describe(MLP(2, time=Sinusoidal(8)))
    linear = hb.LinearProcess(lambda t: torch.exp(-t), lambda t: torch.sqrt(-torch.expm1(-2 * t)), 3.0, 1e-3)
    with pytest.raises(ValueError, match=r"LinearProcess.*cannot be written down.* net="):
        describe(UNet((1, 8, 8), width=4, time="log_snr", process=linear))

    class UNet2(UNet):
        pass

    for net in (torch.nn.Linear(2, 2), UNet2((1, 8, 8), width=4), type("MLP", (torch.nn.Module,), {})()):
        with pytest.raises(ValueError, match=rf"net is a {type(net).__name__}, which cannot be written down.* net="):
            describe(net)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"type": "Unet", "shape": [1, 8, 8]}, "type = 'Unet', which is no network; did you mean 'UNet'"),
        ({"shape": 2}, "type = None, which is no network; there are 'MLP', 'UNet', 'Precondition'"),
        ({"type": "MLP", "shape": 2, "hiden": 3}, "MLP has no argument 'hiden'; did you mean 'hidden'"),
        ({"type": "UNet"}, "description of UNet lacks 'shape'"),
        ({"type": "MLP", "shape": [0]}, "shape"),
        ({"type": "MLP", "shape": 2, "time": "log_snr", "process": {"type": "VPP"}}, "which is no process"),
    ],
)
def test_a_description_of_no_network_is_refused_by_what_is_wrong(description, message):
    with pytest.raises(ValueError, match=message):
        build(description)
    with pytest.raises(TypeError, match="description is a str"):
        build("MLP")
    for key, value in {"hidden": "256", "depth": 2.5, "shape": [2.7], "classes": "3", "learned_variance": "no"}.items():
        with pytest.raises(TypeError, match=f"{key} = .* must be"):
            build({"type": "MLP", "shape": 2, key: value})
