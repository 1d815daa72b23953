"""States taken apart and put together: nothing is lost, and what cannot be taken apart is refused by its place."""

import math
import struct

import pytest
import torch

from halfbridge.nets import EMA, MLP
from halfbridge.training import checkpoint
from halfbridge.training.states import flatten, unflatten


def bits(x):
    return struct.pack(">d", x)


def assert_same(a, b):
    """Equal in type and to the last bit, keys and their order too."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)) if a.ndim else a.equal(b)
        return
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert [*a] == [*b]
        assert [type(k) for k in a] == [type(k) for k in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, float):
        assert bits(a) == bits(b)
    else:
        assert a == b


ODD_NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0]
STATES = {
    "floats": [0.1, -0.0, math.inf, -math.inf, math.nan, ODD_NAN, 5e-324, 1.7976931348623157e308, 1 / 3, 1e22],
    "integers": {"a": 2**200, "b": -(2**63), "c": True, "d": 0, "e": None},
    "integer keys": {0: 1.5, 1: torch.ones(2), "1": torch.zeros(3)},
    "keys that look like ours": {"$tensor": "x", "y": {"$float": [1], "$dict": 2}, "$tuple": []},
    "tuples": (1, (2, [3, ()]), {"betas": (0.9, 0.999)}),
    "empty": [{}, [], (), "", torch.zeros(0, 4)],
    "slashes": {"a/b": torch.ones(1), "a": {"b": torch.zeros(2)}},
    "a tensor": torch.arange(6.0).reshape(2, 3).T,
    "dtypes": [torch.ones(2, dtype=d) for d in checkpoint.DTYPES],
    "0-dim": {"step": torch.tensor(7), "scale": torch.tensor(2.0, dtype=torch.bfloat16), "on": torch.tensor(True)},
    "text": 'line\nüñ\ud800 "quoted" \\',
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_comes_back_bit_for_bit_through_a_checkpoint(name, tmp_path):
    tensors, record = flatten(STATES[name])
    checkpoint.write(tmp_path, tensors, {"state": record}, step=0)
    back = checkpoint.read(tmp_path)
    assert_same(unflatten(back.tensors, back.record["state"]), STATES[name])


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_training_goes_on_to_the_same_bits_from_a_state_that_was_taken_apart(optimizer, tmp_path):
    def parts():
        torch.manual_seed(0)
        net = MLP(2, hidden=8, depth=1)
        moment = {"momentum": 0.9} if optimizer is torch.optim.SGD else {"betas": (0.8, 0.99), "amsgrad": True}
        return net, optimizer(net.parameters(), lr=1e-2, **moment), EMA(net, 0.9)

    def train(net, optim, average, first, last):
        for k in range(first, last):
            g = torch.Generator().manual_seed(k)
            optim.zero_grad()
            x = torch.randn(4, 2, generator=g)
            (net(x, torch.ones(4)) - x).square().mean().backward()
            optim.step()
            average.update()

    whole = parts()
    train(*whole, 0, 6)
    half = parts()
    train(*half, 0, 3)
    tensors, record = flatten([part.state_dict() for part in half])
    checkpoint.write(tmp_path, tensors, {"state": record}, step=3)
    back = checkpoint.read(tmp_path)
    resumed = parts()
    for part, state in zip(resumed, unflatten(back.tensors, back.record["state"]), strict=True):
        part.load_state_dict(state)
    train(*resumed, 3, 6)
    for a, b in zip(whole, resumed, strict=True):
        assert_same(unflatten(*flatten(a.state_dict())), unflatten(*flatten(b.state_dict())))


def test_tensors_are_named_by_the_keys_that_lead_to_them():
    tensors, record = flatten({"net": {"first.weight": torch.ones(1)}, "optimizer": {"state": {0: [torch.zeros(2)]}}})
    assert [*tensors] == ["net/first.weight", "optimizer/state/0/0"]
    assert record["net"] == {"first.weight": {"$tensor": "net/first.weight"}}


def test_taking_apart_copies_no_tensor_and_keeps_no_graph():
    w = torch.ones(3, requires_grad=True)
    tensors, _ = flatten({"w": w})
    assert tensors["w"].data_ptr() == w.data_ptr()
    assert not tensors["w"].requires_grad


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {2, 3}]}, r"state\['a'\]\['1'\] is a set"),
        ({"f": len}, r"state\['f'\] is a builtin_function"),
        ({(1, 2): 0}, r"state has the key \(1, 2\)"),
        ({"a": {True: 0}}, r"state\['a'\] has the key True"),
        (torch.float32, "state is a dtype"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_by_its_place(state, message):
    with pytest.raises(TypeError, match=message):
        flatten(state)


def test_a_record_without_its_tensors_is_refused():
    tensors, record = flatten({"w": torch.ones(1)})
    with pytest.raises(ValueError, match="names a tensor 'w'"):
        unflatten({}, record)
    with pytest.raises(ValueError, match=r"key '\$tensor' beside others"):
        unflatten(tensors, {**record["w"], "more": 1})
