"""`ema_update`: the average of every tensor of a list, its kernel's table of addresses, and what it refuses."""

import ctypes
import importlib
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import DTYPES, LAYOUTS, inner_dtype, laid_out
from torch import Tensor

from halfbridge.kernels import ParameterAverages, ema_update, normal, use
from halfbridge.kernels.ema_update import ema_update_operator

BACKENDS = ["reference", "triton"]
gpu = importlib.import_module("halfbridge.kernels.gpu.ema_update")
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.sampled_from(
    [(1023,), (1024,), (2049,), (16, 130), (3, 700)]
)
pairs = st.tuples(
    shapes, st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)
)
MIXED = [
    ((3, 4), torch.float32),
    ((1025,), torch.float32),
    ((7,), torch.float64),
    ((2, 2, 2), torch.bfloat16),
    ((), torch.float32),
]


def tensors(seed: int, kinds: Any = MIXED) -> list[Tensor]:
    """normal((1, *shape)) without its batch axis."""
    return [normal((1, *shape), seed, draw, dtype=dtype)[0] for draw, (shape, dtype) in enumerate(kinds)]


def in_a_frame(t: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """(t laid out in memory of its own, all of that memory); what lies between is NaN."""
    placed = laid_out(t, "plain" if layout == "repeated" or t.dim() == 0 else layout)
    return placed, placed._base if placed._base is not None else placed


@settings(max_examples=60, deadline=None)
@given(st.lists(pairs, max_size=5), st.floats(0, 1) | st.sampled_from([1e-30, 1e-4, 0.5]))
def test_it_is_the_average_and_the_kernel_agrees_to_2_ulp(kinds: list[Any], weight: float) -> None:
    parameters = tensors(1, [(shape, dtype) for shape, dtype, *_ in kinds])
    parameters = [laid_out(p, how) if p.dim() else p for p, (*_, how) in zip(parameters, kinds, strict=True)]
    starts = tensors(2, [(shape, dtype) for shape, _, dtype, *_ in kinds])
    found = []
    for backend in BACKENDS:
        framed = [in_a_frame(a.clone(), how) for a, (*_, how, _) in zip(starts, kinds, strict=True)]
        with use(backend):
            ema_update([a for a, _ in framed], parameters, weight)
        found.append([a for a, _ in framed])
        for (a, frame), start, p in zip(framed, starts, parameters, strict=True):
            exact = start.double() + weight * (p.double() - start.double())
            assert close(a, exact, start, p, 3)
            assert frame.isnan().sum() == frame.numel() - a.numel()
    for one, other, start, p in zip(*found, starts, parameters, strict=True):
        assert close(other, one.double(), start, p, 2, roundings=2)


def close(got: Tensor, want: Tensor, start: Tensor, parameter: Tensor, ulps: float, roundings: int = 1) -> bool:
    """Within that many ulps of the larger operand in the dtype it is computed in, and so many roundings to its own; Triton's
    interpreter cuts off to bfloat16 where a GPU rounds."""
    size = torch.maximum(start.double().abs(), parameter.double().abs())
    own = torch.finfo(got.dtype).eps * (1 if got.dtype == torch.bfloat16 else 0.5)
    slack = ulps * torch.finfo(inner_dtype(got.dtype)).eps * size + roundings * own * want.abs()
    return bool(((got.double() - want).abs() <= slack + 2 * torch.finfo(got.dtype).smallest_normal).all())


@pytest.mark.parametrize("weight", [0.001, 0.1, 0.9])
def test_on_equal_dtypes_the_bits_are_those_of_lerp(weight: float) -> None:
    parameters, averages = tensors(1), tensors(2)
    others = [a.clone() for a in averages]
    torch._foreach_lerp_(others, parameters, weight)
    with use("reference"):
        ema_update(averages, parameters, weight)
    assert all(map(torch.equal, averages, others))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_0_and_1_keep_the_average_and_take_the_parameter(dtype: torch.dtype, backend: str) -> None:
    average, parameter = torch.tensor([1e4, 1e-4, 1.0], dtype=dtype), torch.tensor([1.0, 3e4, -1e-4], dtype=dtype)
    with use(backend):
        for weight, want in ((0.0, average.clone()), (1.0, parameter)):
            ema_update([average], [parameter], weight)
            assert torch.equal(average, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_several_averages_are_updated_as_each_alone(as_tensor: bool, backend: str) -> None:
    parameters, weights = tensors(1), [0.1, 0.5, 0.9, 0.0, 0.3]
    together = [tensors(k) for k in range(2, 7)]
    alone = [tensors(k) for k in range(2, 7)]
    with use(backend):
        ema_update(together, parameters, torch.tensor(weights, dtype=torch.float64) if as_tensor else weights)
        for averages, weight in zip(alone, weights, strict=True):
            ema_update(averages, parameters, weight)
    assert all(
        torch.equal(a, b) for one, other in zip(together, alone, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_in_memory_is_read_at_every_update(backend: str) -> None:
    parameters, averages, others = tensors(1), tensors(2), tensors(2)
    weight, kept = torch.tensor(0.0, dtype=torch.float64), ParameterAverages(averages, parameters)
    with use(backend):
        for number in (0.25, 0.75):
            weight.fill_(number)
            kept.update(weight)
            ema_update(others, parameters, number)
    assert all(map(torch.equal, averages, others))


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """The calls of a function of the kernel's module from now on."""
    calls, function = [], getattr(gpu, name)

    def count(*arguments: Any, **constants: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **constants)

    monkeypatch.setattr(gpu, name, count)
    return calls


def test_the_table_is_made_once_and_again_when_a_tensor_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Linear(5, 3)
    averages = [p.detach().clone() for p in net.parameters()]
    tables, launches = counted(monkeypatch, "table"), counted(monkeypatch, "launch")
    kept = ParameterAverages(averages, list(net.parameters()))
    old = [p.data for p in net.parameters()]  # kept alive, so that no address is used twice
    with use("triton"):
        for made, change in ((1, None), (1, None), (2, torch.Tensor.clone), (2, None), (3, torch.Tensor.double)):
            if change is not None:
                for p in net.parameters():
                    old.append(p.data)
                    p.data = change(p.data + 1)
            kept.update(1.0)
            assert len(tables) == made
            assert all(torch.equal(a, p.to(a.dtype)) for a, p in zip(averages, net.parameters(), strict=True))
    assert len(launches) == 5


def test_a_table_lives_as_long_as_a_graph_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter, average = normal((3, 4), 1), normal((3, 4), 2)
    kept = ParameterAverages([average], [parameter])
    with use("triton"):
        kept.update(0.5)
        table = weakref.ref(kept.parts[0].kept["groups"][0].table)
        monkeypatch.setattr(gpu, "capturing", lambda like: True)
        kept.update(0.5)  # a graph has its address now
        monkeypatch.undo()
        old, parameter.data = parameter.data, parameter.data.clone()
        kept.update(0.5)
    assert table() is not None
    assert kept.parts[0].kept["groups"][0].table is not table()
    assert old.shape == parameter.shape


def test_all_tensors_of_a_pair_of_dtypes_take_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = counted(monkeypatch, "launch")
    kinds = [((3,), torch.float32)] * 9 + [((2000,), torch.float32)] * 2 + [((4,), torch.bfloat16)] * 5
    averages = [t.float() for t in tensors(2, kinds)]
    with use("triton"):
        ema_update(averages, tensors(1, kinds), 0.5)
        assert len(launches) == 2
        ema_update([[t.clone() for t in averages] for _ in range(3)], tensors(1, kinds), [0.5] * 3)
    assert len(launches) == 4


def test_tensors_that_share_no_order_are_averaged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = counted(monkeypatch, "launch")
    parameter, want = normal((4, 6), 1), normal((6, 4), 2).T
    for average in (want.clone(), want.clone().T.contiguous().T, laid_out(want, "strided").clone()):
        assert average.shape == parameter.shape
        with use("triton"):
            ema_update([average], [parameter], 0.3)
        assert torch.allclose(average, want.lerp(parameter, 0.3))
    channels = normal((2, 3, 4, 4), 1).to(memory_format=torch.channels_last)
    average = torch.zeros_like(channels)
    launches.clear()
    with use("triton"):
        ema_update([average], [channels], 1.0)
    assert torch.equal(average, channels)
    assert len(launches) == 1


def test_only_what_lies_on_16_bytes_is_moved_by_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter moves anything; a GPU would stop at an address that the kernel wrongly calls aligned."""
    ways: list[tuple[int, list[int]]] = []
    rows, blend = counted(monkeypatch, "table"), gpu.blend

    def watched(row: Any, begin: Any, *rest: Any) -> None:
        [address] = row.handle.data.tolist()
        numbers = (ctypes.c_int64 * 3).from_address(address)
        ways.append((rest[8], list(numbers)))
        blend(row, begin, *rest)

    monkeypatch.setattr(gpu, "blend", watched)
    memory = torch.empty(2, 256, dtype=torch.float32)
    start = -(memory.data_ptr() // 4) % 4  # of the first element on 16 bytes
    places = [
        (0, 0, 32),
        (0, 65, 32),
        (33, 0, 32),
        (33, 65, 32),
        (0, 0, 16),
        (0, 0, 10),
    ]  # average, parameter, elements
    averages, parameters = (
        [memory[k, start + place[k] : start + place[k] + place[2]].fill_(1.0) for place in places] for k in (0, 1)
    )
    for average, parameter in zip(averages, parameters, strict=True):  # one at a time, for they share memory
        with use("triton"):
            ema_update([average], [parameter], 0.5)
    assert len(rows) == len(places)
    assert {way for way, _ in ways} == {16, 1}
    for way, numbers in ways:
        assert way == (16 if all(n % 16 == 0 for n in numbers) else 1)


def test_addresses_beyond_32_bits_are_counted() -> None:
    n = (1 << 31) + 4096 + 5
    memory = torch.empty(n, dtype=torch.float16)  # never touched: no memory is used
    rows = gpu.table([[memory], [memory]], 2048)
    assert len(rows) == -(-n // 2048)
    last = memory.data_ptr() + 2 * (n - 5)
    assert rows[-1].tolist() == [5, last, last]
    assert rows[0].tolist() == [2048, memory.data_ptr(), memory.data_ptr()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_that_want_gradients_are_only_read(backend: str) -> None:
    parameter = torch.nn.Parameter(normal((3, 4), 1))
    average = torch.zeros(3, 4)
    with use(backend):
        ema_update([average], [parameter], 0.5)
    assert not average.requires_grad
    assert torch.equal(average, parameter.detach() / 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight", [0.25, torch.tensor(0.25)])
def test_it_stays_in_one_compiled_graph(weight: Any, backend: str) -> None:
    parameters, averages, others = tensors(1), tensors(2), tensors(2)

    def step(averages: list[Tensor], parameters: list[Tensor]) -> Tensor:
        ema_update(averages, parameters, weight)
        return averages[0] * 2

    with use(backend):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(averages, parameters)
        assert torch.equal(compiled, step(others, parameters))
    assert all(map(torch.equal, averages, others))


def test_its_operator_keeps_the_rules_of_torch() -> None:
    for numbers, table in (([0.25, 0.5], None), (None, torch.tensor([0.25, 0.5]))):
        torch.library.opcheck(ema_update_operator, ([*tensors(2), *tensors(3)], tensors(1), numbers, table))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_lists_and_empty_tensors_are_no_work(backend: str) -> None:
    with use(backend):
        ema_update([], [], 0.5)
        ema_update([torch.ones(0, 3)], [torch.ones(0, 3)], torch.tensor(0.5))


X, B = torch.ones(2, 3), torch.zeros(20)


@pytest.mark.parametrize(
    ("averages", "parameters", "weight", "error", "message"),
    [
        ([X.clone()], [X, X], 0.5, ValueError, "`averages` has 1 tensors but `parameters` has 2"),
        ([[X.clone()], []], [X], [0.5, 0.5], ValueError, r"`averages\[1\]` has 0 tensors but `parameters` has 1"),
        ([torch.ones(3, 2)], [X], 0.5, ValueError, r"`averages\[0\]` has shape \(3, 2\) on cpu but `parameters\[0\]` has \(2, 3\)"),
        ([torch.ones(2, 3, device="meta")], [X], 0.5, ValueError, "on meta but"),
        ([torch.ones(2, 3).long()], [X], 0.5, ValueError, r"`averages\[0\]` has dtype torch.int64"),
        ([[X.clone()], [X.double()]], [X], [0.5, 0.5], ValueError, r"`averages\[1\]\[0\]` has dtype torch.float64"),
        ([X], [X], 0.5, ValueError, "average 0 of 1 shares its memory with parameter 0; clone it"),
        ([Y := X.clone(), Y], [X, X], 0.5, ValueError, "average 1 of 2 shares its memory with average 0"),
        ([B[:15], B[5:]], [B[:15].clone(), B[5:].clone()], 0.5, ValueError, "average 1 of 2 shares its memory with average 0"),
        ([B[:5].clone(), B[5:15]], [B[15:], B[:10]], 0.5, ValueError, "average 1 of 2 shares its memory with parameter 1"),
        ([X.to(torch.float8_e4m3fn)], [X], 0.5, ValueError, r"`averages\[0\]` has dtype torch.float8_e4m3fn"),
        ([torch.ones(1, 3).expand(2, 3)], [X], 0.5, ValueError, "repeats one element"),
        (X, [X], 0.5, TypeError, "`averages` is one tensor"),
        ([X.clone()], [1.0], 0.5, TypeError, "have a float"),
        ([X.clone()], [X], 1.5, ValueError, r"`weight` = 1.5 is not in \[0, 1\]; pass 1 - decay"),
        ([X.clone()], [X], float("nan"), ValueError, "`weight` = nan"),
        ([X.clone()], [X], "half", TypeError, "`weight` is a str"),
        ([X.clone()], [X], torch.ones(2), ValueError, r"`weight` has shape \(2,\) and dtype torch.float32; pass \(\)"),
        ([X.clone()], [X], torch.tensor(1), ValueError, "dtype torch.int64"),
        ([[X.clone()], [X.clone()]], [X], [0.5], ValueError, "for 2 lists of averages; pass a list of 2 numbers"),
        ([[X.clone()], [X.clone()]], [X], 0.5, ValueError, "for 2 lists of averages"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(
    averages: Any, parameters: Any, weight: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ema_update(averages, parameters, weight)


def test_a_weight_in_memory_that_is_none_is_refused_where_it_is_fetched() -> None:
    with use("reference"), pytest.raises(ValueError, match=r"`weight` = 1\.5"):
        ema_update([X.clone()], [X], torch.tensor(1.5))
