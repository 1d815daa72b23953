"""The exponential moving average of a network: its weights, its state, half parameters."""

import math

import pytest
import torch

from halfbridge.nets import EMA


def averaged_after(values, decay, warmup):
    """The value of an EMA of one number that starts at values[0] and sees values[1:]."""
    net = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(net.weight, values[0])
    ema = EMA(net, decay, warmup=warmup)
    for value in values[1:]:
        torch.nn.init.constant_(net.weight, value)
        ema.update()
    return ema.model.weight.item()


def test_without_warmup_the_average_is_the_exponential_sum_that_starts_at_the_initial_value():
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    expected = 0.9**5 * values[0] + sum(0.1 * 0.9 ** (5 - k) * values[k] for k in range(1, 6))
    assert averaged_after(values, 0.9, warmup=False) == pytest.approx(expected, rel=1e-14)


def test_warmup_forgets_the_initial_value_like_its_product_of_decays():
    gone = math.prod(k / (k + 9) for k in range(1, 11))
    assert averaged_after([1.0] + [0.0] * 10, 0.999, warmup=True) == pytest.approx(gone, rel=1e-12)
    assert gone == pytest.approx(1.0 / math.comb(19, 9), rel=1e-12)


def test_warmup_ends_where_it_reaches_the_decay():
    with_warmup = averaged_after([1.0] * 40 + [0.0] * 5, 0.5, warmup=True)
    assert with_warmup == pytest.approx(0.5**5, rel=1e-14)


def test_the_averaged_copy_has_its_own_memory_no_gradients_and_follows_buffers():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).train()
    ema = EMA(net, 0.9)
    net(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    ema.update()
    assert torch.equal(ema.model[1].running_mean, net[1].running_mean)
    assert ema.model[1].num_batches_tracked == 1
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training
    assert net.training
    assert ema.model[0].weight.data_ptr() != net[0].weight.data_ptr()


def test_an_ema_goes_on_from_its_state_to_the_last_bit():
    net = torch.nn.Linear(3, 3)

    def go_on(ema, steps):
        for k in steps:
            torch.nn.init.constant_(net.weight, math.sin(k))
            ema.update()

    whole, first, second = EMA(net, 0.99), EMA(net, 0.99), EMA(net, 0.99)
    go_on(whole, range(10))
    go_on(first, range(4))
    second.load_state_dict(first.state_dict())
    go_on(second, range(4, 10))
    assert torch.equal(whole.model.weight, second.model.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_half_parameters_do_not_stand_still(dtype):
    net = torch.nn.Linear(4, 4, bias=False).to(dtype)
    torch.nn.init.ones_(net.weight)
    ema = EMA(net, 0.9999, warmup=False)
    torch.nn.init.constant_(net.weight, 2.0)
    for _ in range(200):
        ema.update()
    assert torch.equal(ema.model.weight, torch.full((4, 4), 2 - 0.9999**200).to(dtype))
    assert ema.model(torch.ones(2, 4, dtype=dtype)).dtype == dtype


def test_an_ema_of_a_half_network_goes_on_from_its_state_to_the_last_bit():
    net = torch.nn.Linear(3, 3).to(torch.bfloat16)
    first, second = EMA(net, 0.99), EMA(net, 0.99)
    for k in range(30):
        torch.nn.init.constant_(net.weight, math.sin(k))
        if k == 20:
            second.load_state_dict(first.state_dict())
        for ema in (first, second)[: 1 if k < 20 else 2]:
            ema.update()
    one, other = first.state_dict(), second.state_dict()
    assert one["updates"] == other["updates"]
    for part in ("model", "wide"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    assert one["wide"]["weight"].dtype == torch.float32


def test_a_half_average_that_was_written_to_goes_on_from_there():
    net = torch.nn.Linear(1, 2, bias=False).to(torch.bfloat16)
    ema = EMA(net, 0.5, warmup=False)
    torch.nn.init.constant_(net.weight, 1.0)
    ema.update()
    ema.model.weight.copy_(torch.tensor([[3.0], [5.0]]))
    ema.update()
    assert torch.equal(ema.model.weight, torch.tensor([[2.0], [3.0]], dtype=torch.bfloat16))


def test_an_ema_follows_a_network_whose_parameters_are_replaced():
    net = torch.nn.Linear(2, 2, bias=False)
    ema = EMA(net, 0.5, warmup=False)
    start = net.weight.detach().clone()
    ema.update()
    net.weight = torch.nn.Parameter(start + 4)
    ema.update()
    assert torch.allclose(ema.model.weight, start + 2)


def test_an_ema_follows_a_network_whose_modules_and_buffers_are_replaced():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16())
    net.register_buffer("count", torch.zeros(()))
    ema = EMA(net, 0.5, warmup=False)
    ema.update()
    starts = [layer.weight.detach().clone() for layer in net]
    for k in (0, 1):
        net[k] = torch.nn.Linear(2, 2).to(starts[k].dtype)
        torch.nn.init.zeros_(net[k].weight)
    net.count = torch.ones(())
    ema.update()
    for layer, start in zip(ema.model, starts, strict=True):
        assert torch.equal(layer.weight, start / 2)
    assert ema.model.count == 1


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_an_ema_refuses_a_decay_outside_zero_to_one(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(torch.nn.Linear(1, 1), decay)


DECAYS = (0.3, 0.5, 0.7)


def mixed_net():
    """Parameters in three dtypes, and a buffer."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2).bfloat16(), torch.nn.Linear(2, 1).double())
    net.register_buffer("count", torch.zeros(()))
    return net


def set_all(net, k):
    with torch.no_grad():
        for j, p in enumerate(net.parameters()):
            p.fill_(math.sin(k + 10 * j))
        net.count.fill_(k)


@pytest.mark.parametrize("warmup", [True, False])
def test_each_of_several_averages_is_to_the_last_bit_the_average_of_its_decay_alone(warmup):
    net = mixed_net()
    several = EMA(net, DECAYS, warmup=warmup)
    alone = [EMA(net, decay, warmup=warmup) for decay in DECAYS]
    for k in range(30):
        set_all(net, k)
        for ema in (several, *alone):
            ema.update()
        assert several.rates() == tuple(ema.rate() for ema in alone)
    assert several.model is several.models[0]
    for model, ema in zip(several.models, alone, strict=True):
        ours, theirs = model.state_dict(), ema.model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    values = [model[0].weight[0, 0].item() for model in several.models]
    assert len(set(values)) == 3


def test_several_averages_read_the_parameters_once():
    net = mixed_net()
    ema = EMA(net, DECAYS)
    ema.update()
    first = ema._pairs
    assert len(first.averages) == 3
    assert len(first.parameters) == 6
    ema.update()
    assert ema._pairs is first


def test_several_averages_go_on_from_their_state_to_the_last_bit():
    net = mixed_net()
    whole, first, second = (EMA(net, DECAYS) for _ in range(3))
    for k in range(20):
        set_all(net, k)
        if k == 12:
            second.load_state_dict(first.state_dict())
        for ema in (whole, first) if k < 12 else (whole, second):
            ema.update()
    for a, b in zip(whole.models, second.models, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    for a, b in zip(whole._wide, second._wide, strict=True):
        assert a.keys() == b.keys() == {"1.weight", "1.bias"}
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert second.updates == 20


def test_a_state_of_one_average_written_before_there_were_several_still_loads():
    net = torch.nn.Linear(2, 2)
    ema = EMA(net, 0.9)
    ema.load_state_dict({"updates": 7, "model": {k: v + 1 for k, v in net.state_dict().items()}})
    assert torch.equal(ema.model.weight, net.weight + 1)
    assert ema.updates == 7
    assert set(ema.state_dict()) == {"updates", "decays", "model", "wide"}


@pytest.mark.parametrize(
    ("written", "read"), [((0.9, 0.99), 0.9), (0.9, (0.9, 0.99)), ((0.9, 0.99), (0.99, 0.9)), (0.999, 0.9)]
)
def test_a_state_of_other_decays_is_refused(written, read):
    net = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the state is of .*, this EMA has \(0\.9"):
        EMA(net, read).load_state_dict(EMA(net, written).state_dict())


@pytest.mark.parametrize("decay", [(), (0.9, 0.9), (0.9, 1.0)])
def test_no_decay_and_one_twice_are_refused(decay):
    with pytest.raises(ValueError, match=r"decay = "):
        EMA(torch.nn.Linear(1, 1), decay)
