"""The U-Net: its parts against their formulas, and what holds for images of any size."""

import math

import pytest
import torch
from torch.nn import functional

import halfbridge as hb
from halfbridge.nets import as_field
from halfbridge.nets.unet import UNet
from halfbridge.nets.unet_blocks import AttentionBlock, ResidualBlock, group_norm


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(net, seed=0):
    """`net` with every parameter random and every layer of gain about 1: layers that start at zero would hide the rest."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            gain = 1.0 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.5
            p.copy_(gain * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net.eval()


def small(shape=(1, 8, 8), **options):
    return trained(UNet(shape, **({"width": 8, "multipliers": (1, 2), "blocks": 1, "heads": 2} | options)).double())


def normed(x, norm):
    """GroupNorm, written out: mean and variance over the pixels and channels of each group."""
    groups = x.reshape(len(x), norm.num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(2, keepdim=True) + 1e-6)
    return scaled.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]


SIZES = [(n, n) for n in range(8, 34)] + [(9, 13), (13, 8), (8, 33), (31, 10)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("start", range(3))
def test_images_of_every_size_from_8_up_keep_their_shape_and_their_maps_are_halved_rounding_up(start, channels):
    for size in SIZES[start::3]:
        net = trained(UNet((channels, *size), width=4, multipliers=(1, 1, 2), blocks=1))
        maps = []
        net.middle[0].register_forward_hook(lambda module, args, out, maps=maps: maps.append(tuple(out.shape[2:])))
        out = net(drawn(1, *net.shape, dtype=torch.float32), torch.tensor([0.3]))
        assert out.shape == (1, channels, *size)
        assert out.std() > 0.01
        assert maps == [tuple(math.ceil(n / 4) for n in size)]


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (0, 8, 8), (8, 8), (1, 1, 8, 8)])
def test_smaller_images_and_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape = .*8 or more|shape = .*must be .channels, height, width."):
        UNet(shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 7}, "width = 7"),
        ({"multipliers": ()}, r"multipliers = \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers = \(1, 0\)"),
        ({"multipliers": (1,) * 6}, "6 levels, but images of 8 x 9 are one pixel at level 5"),
        ({"blocks": 0}, "blocks = 0"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"heads": 3}, "heads = 3 must be positive and divide the 128 channels"),
        ({"heads": 0, "attention": ()}, "heads = 0"),
        ({"classes": -1}, "classes = -1"),
        ({"time": "fourrier"}, "did you mean 'fourier'"),
        ({"attention": (9, 4)}, "attention = .9, 4. asks for maps of 4, which no level has.* maps are 9, 5, 3"),
        ({"attention": (3, 3)}, "attention = .3, 3. names a level twice"),
        ({"attention": (8,)}, "maps of 8, which no level has"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        UNet((1, 8, 9), **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", (1, 8.5, 9)),
        ("multipliers", (1, 1.5)),
        ("multipliers", 2),
        ("width", 8.0),
        ("attention", 8),
        ("heads", "4"),
        ("classes", "3"),
    ],
)
def test_what_is_not_a_whole_number_is_refused_and_not_cut_off(name, value):
    with pytest.raises(TypeError, match=rf"{name} = .* must be (a )?whole number"):
        UNet(**({"shape": (1, 8, 9)} | {name: value}))


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"x of shape \(2, 1, 9, 8\).*takes x of shape \(batch, 1, 8, 9\)"):
        UNet((1, 8, 9), width=4)(torch.zeros(2, 1, 9, 8), torch.zeros(2))
    with pytest.raises(ValueError, match=r"t of shape \(1,\)"):
        UNet((1, 8, 9), width=4)(torch.zeros(2, 1, 8, 9), torch.zeros(1))


def test_an_untrained_network_returns_zero_and_learns_at_its_second_step():
    net = UNet((1, 8, 8), width=8, classes=2)
    x, t, c = drawn(2, 1, 8, 8, dtype=torch.float32), torch.tensor([0.2, 0.9]), torch.tensor([0, 1])
    assert not net(x, t, c).any()
    with torch.no_grad():
        net.last.weight.fill_(0.1)
        for block in net.modules():
            if isinstance(block, ResidualBlock):
                assert not block.conv2.weight.any()
    net(x, t, c).square().sum().backward()
    assert all(block.conv2.weight.grad.any() for block in net.modules() if isinstance(block, ResidualBlock))


@pytest.mark.parametrize(("channels", "out"), [(4, 4), (4, 12)])
def test_a_residual_block_is_its_formula(channels, out):
    block = trained(ResidualBlock(channels, out, 6, dropout=0.5).double())
    x, label = drawn(2, channels, 5, 7), drawn(2, 6, seed=1)
    scale, shift = (label @ block.modulate.weight.T + block.modulate.bias)[:, :, None, None].split(out, dim=1)
    h = functional.conv2d(functional.silu(normed(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    h = functional.silu((1 + scale) * normed(h, block.norm2) + shift)
    h = functional.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    skip = x if channels == out else functional.conv2d(x, block.skip.weight, block.skip.bias)
    assert torch.allclose(block(x, label), (skip + h) / math.sqrt(2), rtol=1e-12, atol=1e-12)


def test_halving_averages_windows_and_what_there_is_of_them_at_odd_edges():
    block = ResidualBlock(1, 1, 2, 0.0, "down").double()
    x = drawn(1, 1, 5, 8)
    want = torch.stack([torch.stack([x[0, 0, i : i + 2, j : j + 2].mean() for j in (0, 2, 4, 6)]) for i in (0, 2, 4)])
    assert torch.allclose(block(x, torch.zeros(1, 2).double())[0, 0] * math.sqrt(2), want, rtol=1e-14)


@pytest.mark.parametrize("size", [(5, 8), (6, 7), (33, 21)])
def test_doubling_repeats_each_value_over_the_window_that_it_came_from(size):
    block = ResidualBlock(1, 1, 2, 0.0, "up").double()
    x = drawn(1, 1, *((n + 1) // 2 for n in size))
    rows, columns = (torch.arange(n) // 2 for n in size)
    out = block(x, torch.zeros(1, 2).double(), size)
    assert torch.allclose(out[0, 0] * math.sqrt(2), x[0, 0][rows][:, columns], rtol=1e-14)


def test_the_network_is_its_blocks_wired_as_a_u():
    """With one block a level: what the way down hands across is met in reverse, each with its own label."""
    net = small((2, 9, 8), attention=(5,), classes=3)
    x, t, c = drawn(2, 2, 9, 8), torch.tensor([0.2, 0.8]).double(), torch.tensor([2, -1])
    label = functional.silu(net.time_layers(net.time(t)) + net.class_embedding.vectors.weight[[3, 0]])
    (top, low), (rise, end), meet = net.down, net.up, lambda a, b: torch.cat([a, b], dim=1)
    first = net.first(x)
    above = top.blocks[0](first, label)
    halved = net.downsample[0](above, label)
    below = low.attention[0](low.blocks[0](halved, label))
    h = net.middle[1](net.middle_attention(net.middle[0](below, label)), label)
    h = rise.attention[0](rise.blocks[0](meet(h, below), label))
    h = rise.attention[1](rise.blocks[1](meet(h, halved), label))
    h = net.upsample[0](h, label, (9, 8))
    h = end.blocks[1](meet(end.blocks[0](meet(h, above), label), first), label)
    assert torch.allclose(net(x, t, c), net.last(functional.silu(net.norm(h))), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_is_its_formula_and_does_not_know_where_a_pixel_is(fused):
    block = trained(AttentionBlock(6, 2, fused).double())
    x = drawn(2, 6, 3, 4)
    tokens = normed(x, block.norm).reshape(2, 6, 12)
    q, k, v = (torch.einsum("oc,nci->noi", w, tokens) + b[:, None] for w, b in zip(
        block.qkv.weight.split(6), block.qkv.bias.split(6), strict=True
    ))  # fmt: skip
    heads = []
    for channels in (slice(0, 3), slice(3, 6)):
        weights = torch.einsum("nci,ncj->nij", q[:, channels], k[:, channels]) / math.sqrt(3)
        heads.append(torch.einsum("nij,ncj->nci", weights.exp() / weights.exp().sum(2, keepdim=True), v[:, channels]))
    h = torch.einsum("oc,nci->noi", block.out.weight, torch.cat(heads, dim=1)) + block.out.bias[:, None]
    out = block(x)
    assert torch.allclose(out, (x + h.reshape(x.shape)) / math.sqrt(2), rtol=1e-12, atol=1e-12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(block(x.flatten(2)[:, :, order].view(x.shape)), out.flatten(2)[:, :, order].view(x.shape))


def test_groups_divide_the_channels_and_hold_at_least_four():
    groups = {c: group_norm(c).num_groups for c in (1, 2, 6, 7, 8, 24, 34, 64, 128, 192, 1024)}
    assert groups == {1: 1, 2: 1, 6: 1, 7: 1, 8: 2, 24: 6, 34: 2, 64: 16, 128: 32, 192: 32, 1024: 32}


@pytest.mark.parametrize(
    ("attention", "maps"),
    [
        (None, {(4, 3): 6}),  # 2 blocks down, 3 up, 1 in the middle
        ((), {}),
        ((13,), {(13, 9): 5}),
        ((7, 4), {(7, 5): 5, (4, 3): 6}),
    ],
)
def test_attention_is_at_the_maps_that_are_asked_for_and_nowhere_else(attention, maps):
    net = small((1, 13, 9), multipliers=(1, 1, 2), blocks=2, attention=attention)
    seen = []
    for module in net.modules():
        if isinstance(module, AttentionBlock):
            module.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[2:])))
    net(drawn(1, 1, 13, 9), torch.tensor([0.3]).double())
    assert {size: seen.count(size) for size in seen} == maps


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"multipliers": (1,), "attention": ()}, False),
        ({"multipliers": (1,), "attention": (28,)}, True),
        ({"multipliers": (1, 2, 2), "attention": ()}, True),
    ],
)
def test_a_corner_reaches_the_opposite_one_through_attention_or_depth(options, reached):
    """Without the group norms, through whose variances every pixel reaches every other anyhow."""
    net = small((1, 28, 17), **options)
    for module in [*net.modules()]:
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    x = drawn(1, 1, 28, 17).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, torch.tensor([0.3]).double())[0, 0, 0, 0], x)
    assert bool(gradient[0, 0, -1, -1] != 0) == reached
    assert gradient[0, 0, 0, 0] != 0


def test_each_sample_keeps_its_own_time_and_samples_do_not_mix():
    net = small((2, 9, 8))
    x, t = drawn(4, 2, 9, 8), torch.tensor([0.1, 0.4, 0.7, 0.9]).double()
    out = net(x, t)
    rows = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    assert torch.allclose(out, rows, rtol=1e-12, atol=1e-13)
    moved = net(x, torch.tensor([0.1, 0.5, 0.7, 0.9]).double())
    assert [bool((moved[i] - out[i]).abs().max() > 1e-3) for i in range(4)] == [False, True, False, False]


def test_dropout_drops_in_train_mode_alone():
    x, t = drawn(2, 1, 8, 8), torch.tensor([0.1, 0.4]).double()
    net, without = small(dropout=0.3), small()
    assert torch.equal(net(x, t), without(x, t))
    assert torch.equal(without.train()(x, t), without.eval()(x, t))
    net.train()
    torch.manual_seed(0)
    first, second = net(x, t), net(x, t)
    assert (first - second).abs().max() > 1e-2
    torch.manual_seed(0)
    assert torch.equal(net(x, t), first)


def test_a_mirrored_network_on_mirrored_images_gives_the_mirror_image():
    """Nothing prefers a side: refutes padding, halving and doubling that are off by a pixel."""
    net, mirrored = (small((1, 16, 8), multipliers=(1, 2, 2)) for _ in range(2))
    x, t = drawn(2, 1, 16, 8), torch.tensor([0.2, 0.6]).double()
    for axis in (2, 3):
        with torch.no_grad():
            for name, p in mirrored.named_parameters():
                original = net.get_parameter(name)
                p.copy_(original.flip(axis) if p.ndim == 4 else original)
        assert torch.allclose(mirrored(x.flip(axis), t), net(x, t).flip(axis), rtol=1e-11, atol=1e-12)
        assert not torch.allclose(mirrored(x, t), net(x, t), rtol=1e-2)


def test_derivatives_forward_backward_and_second_are_right():
    """Exact divergences go forward, and losses that hold derivatives of the network go through it twice."""
    net = small((1, 8, 8), width=4, classes=2, time="log_snr", process=hb.VP())
    x, t, c = drawn(1, 1, 8, 8).requires_grad_(), torch.tensor([0.3]).double().requires_grad_(), torch.tensor([1])
    call = lambda x, t: net(x, t, c)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, t), fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (x, t), fast_mode=True)


def hand_count(features, classes):
    """Of UNet((2, 9, 8), width=8, multipliers=(1, 2), blocks=1, attention=(5,)), layer by layer."""

    def conv(a, b, side):
        return side * side * a * b + b

    def linear(a, b):
        return a * b + b

    def residual(a, b):
        skip = 0 if a == b else conv(a, b, 1)
        return 2 * a + conv(a, b, 3) + linear(features, 2 * b) + 2 * b + conv(b, b, 3) + skip

    attention = 2 * 16 + linear(16, 3 * 16) + linear(16, 16)
    label = linear(8, features) + linear(features, features) + (classes + 1) * features
    down = residual(8, 8) + residual(8, 8) + residual(8, 16) + attention
    middle = residual(16, 16) + attention + residual(16, 16)
    up = residual(16 + 16, 16) + attention + residual(16 + 8, 16) + attention
    up += residual(16, 16) + residual(16 + 8, 8) + residual(8 + 8, 8)
    return conv(2, 8, 3) + label + down + middle + up + 2 * 8 + conv(8, 2, 3)


def test_parameters_are_counted_as_by_hand():
    net = UNet((2, 9, 8), width=8, multipliers=(1, 2), blocks=1, attention=(5,), classes=3)
    assert net.parameter_count == hand_count(features=32, classes=3)
    assert f"{net.parameter_count} parameters" in repr(net)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 8, 8), {"width": 32, "multipliers": (1, 2)}),
        ((1, 8, 8), {"width": 32}),
        ((1, 28, 28), {}),
        ((3, 32, 32), {"width": 128, "multipliers": (1, 2, 2, 2), "attention": (16,)}),
        ((3, 32, 32), {"width": 128, "multipliers": (1, 2, 2, 2), "attention": (16,), "blocks": 4}),
    ],
)
def test_the_docstring_states_the_count(shape, options):
    with torch.device("meta"):
        count = UNet(shape, **options).parameter_count
    assert f"| {count:,} |".replace(",", " ") in UNet.__doc__


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_network_of_any_dtype_is_a_field_on_states_of_that_dtype(dtype):
    net = small((1, 8, 9)).to(dtype)
    x = drawn(3, 1, 8, 9).to(dtype)
    seen = []
    net.time.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    out = as_field(net, hb.VP()).evaluate(0.3, x)
    assert out.dtype == dtype
    assert seen == [torch.float32]
    exact = as_field(net.double(), hb.VP()).evaluate(0.3, x.double())
    assert (out.double() - exact).square().mean().sqrt() < 3 * torch.finfo(dtype).eps * exact.square().mean().sqrt()


def test_under_autocast_the_result_is_still_like_x():
    for net in (small((1, 8, 9)).float(), trained(hb.nets.MLP((1, 8, 9), hidden=16))):
        x, t = drawn(2, 1, 8, 9, dtype=torch.float32), torch.tensor([0.1, 0.4])
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x, t)
        exact = net(x, t)
        assert out.dtype == torch.float32
        assert 1e-4 < (out - exact).square().mean().sqrt() / exact.std() < 0.03


def test_channels_last_changes_nothing_but_the_layout():
    net = small((3, 9, 8)).float()
    x, t = drawn(2, 3, 9, 8, dtype=torch.float32), torch.tensor([0.1, 0.4])
    plain = net(x, t)
    last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), t)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert torch.allclose(last, plain, rtol=1e-4, atol=1e-5)


def test_a_learned_variance_is_as_many_channels_again_after_the_prediction():
    net, plain = (
        small((3, 8, 8), learned_variance=True),
        UNet((3, 8, 8), width=8, multipliers=(1, 2), blocks=1, heads=2),
    )
    assert net.parameter_count == plain.parameter_count + 3 * (9 * 8 + 1)
    state = net.state_dict()
    plain.double().load_state_dict(state | {name: state[name][:3] for name in ("last.weight", "last.bias")})
    x, t = drawn(2, 3, 8, 8), torch.tensor([0.3, 0.3]).double()
    assert net(x, t).shape == (2, 6, 8, 8)
    assert torch.allclose(as_field(net, hb.VP(), learned_variance=True).evaluate(0.3, x), plain(x, t), atol=1e-12)
    assert not UNet((3, 8, 8), width=8, learned_variance=True)(x.float(), t).any()


def test_forward_mode_takes_maps_in_channels_last():
    """torch's forward-mode rule of group norm refuses them: in `exact_derivatives` it sees contiguous ones."""
    net, x = small((2, 8, 8), attention=(4,)), drawn(2, 2, 8, 8)
    for method in (hb.Hutchinson(3, mode="forward"), hb.HutchPP(6, mode="forward")):  # probes one by one and together
        field = as_field(net.to(memory_format=torch.contiguous_format), hb.VP())
        wanted = hb.divergence(lambda x, field=field: field.noise(0.4, x), x, method).trace
        field = as_field(net.to(memory_format=torch.channels_last), hb.VP())
        for state in (x, x.to(memory_format=torch.channels_last)):
            found = hb.divergence(lambda x, field=field: field.noise(0.4, x), state, method).trace
            assert torch.allclose(found, wanted, rtol=1e-10)


def test_the_whole_network_is_one_graph():
    net = small((1, 8, 8), classes=2, time="log_snr", process=hb.VP())
    x, t, c = drawn(2, 1, 8, 8), torch.tensor([0.1, 0.4]).double(), torch.tensor([0, -1])
    whole = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.equal(whole(x, t, c), net(x, t, c))
