"""What a caller changes from call to call under torch.compile does not make a graph of every value."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from halfbridge.kernels import (
    Noise,
    combine,
    edm_input,
    edm_output,
    ema_update,
    error_norm,
    langevin,
    mixture_field,
    mixture_log_density,
    normal,
)

F64 = torch.float64
X, MEANS = (normal((3, 4), j, dtype=F64) for j in range(2))
LOGS = torch.zeros(3, dtype=F64)


def average(x: Tensor, w: float) -> Tensor:
    kept = [x.clone(), 2 * x]
    ema_update(kept, [x.cos(), x.sin()], w)
    return kept[0] + kept[1]


def averages(x: Tensor, w: float) -> Tensor:
    kept = [[x.clone()], [2 * x]]
    ema_update(kept, [x.cos()], [w, 0.5 * w])
    return kept[0][0] + kept[1][0]


def langevin_of(x: Tensor, **numbers: float) -> Tensor:
    return langevin(x, x.cos(), **{"snr": 0.16, "noise": Noise(1.0, 2**63 + 3, 2), **numbers})


CALLS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "combine": lambda x, c: combine([x.sin(), x.cos(), x], [c, 1 - c, 0.25]),
    "combine's noise": lambda x, c: combine([x], [2.0], noise=Noise(c, 2**64 - 1, 3)),
    "combine, all of it": lambda x, c: combine([x, x.cos()], [1.0, c], noise=Noise(2 * c, 7, 3)),
    "edm_input": lambda x, c: edm_input(x, c)[0] + edm_input(x, c)[1][:, None],
    "edm_output": lambda x, c: edm_output(x, x.cos(), c),
    "ema_update": average,
    "ema_update of lists": averages,
    "error_norm": lambda x, c: error_norm([x, x.cos()], [c, -0.2], x, x.sin(), rtol=1e-3, atol=1e-6),
    "error_norm's tolerances": lambda x, c: error_norm([x, x.cos()], [0.3, -0.2], x, x.sin(), rtol=c, atol=1e-3 * c),
    "langevin's snr": lambda x, c: langevin_of(x, snr=c),
    "langevin's scale and factor": lambda x, c: langevin_of(x, scale=-c, factor=c),
    "mixture_field": lambda x, c: mixture_field(x, MEANS, LOGS, c, 1 - c, alpha=c, offset=2 * c),
    "mixture_field's reach": lambda x, c: mixture_field(x, MEANS, LOGS, 0.7, 0.2, alpha=c, reach=9 + c),
    "mixture_log_density": lambda x, c: mixture_log_density(x, MEANS, LOGS, c),
}  # fmt: skip


UNDIFFERENTIATED = ("ema_update", "error_norm", "error_norm's")


def compiled(f: Any, backend: str) -> tuple[Any, CompileCounterWithBackend]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    return torch.compile(f, fullgraph=True, backend=counter), counter


COMPILED = ("combine, all of it", "edm_output", "ema_update", "error_norm", "langevin's snr", "mixture_field")


@pytest.mark.parametrize(
    ("name", "backend"), [(name, "aot_eager") for name in CALLS] + [(name, "inductor") for name in COMPILED]
)
def test_twenty_values_make_two_graphs_and_eager_results(name: str, backend: str) -> None:
    run, counter = compiled(CALLS[name], backend)
    with torch.no_grad():
        for k in range(1, 21):
            value = 0.0437 * k
            assert torch.allclose(run(X, value), CALLS[name](X, value), rtol=1e-13, atol=1e-13)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", [name for name in CALLS if name.split()[0] not in UNDIFFERENTIATED])
def test_gradients_follow_the_values(name: str) -> None:
    run, counter = compiled(CALLS[name], "aot_eager")
    for k in range(1, 6):
        x, value = X.clone().requires_grad_(), 0.137 * k
        got, want = (torch.autograd.grad(f(x, value).square().sum(), x)[0] for f in (run, CALLS[name]))
        assert torch.allclose(got, want, rtol=1e-11, atol=1e-11)
    assert counter.frame_count == 2


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("edm")])
def test_the_first_value_is_a_constant_of_its_graph_and_later_ones_are_in_host_memory(name: str) -> None:
    made: list[list[Any]] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        made.append([node for node in graph.graph.nodes if node.target is torch.ones])
        return graph.forward

    run = torch.compile(CALLS[name], fullgraph=True, backend=keep)
    torch._dynamo.reset()
    with torch.no_grad():
        run(X, 0.7), run(X, 0.3)
    first, second = made
    assert not first
    assert {node.kwargs["device"] for node in second} == {"cpu"}


@pytest.mark.parametrize("name", CALLS)
def test_batches_of_any_size_make_two_graphs(name: str) -> None:
    run, counter = compiled(lambda x: CALLS[name](x, 0.7), "aot_eager")
    with torch.no_grad():
        for batch in range(2, 12):
            x = normal((batch, 4), 0, dtype=F64)
            assert torch.allclose(run(x), CALLS[name](x, 0.7), rtol=1e-13, atol=1e-13)
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("call", "bad", "message"),
    [
        (CALLS["combine"], math.nan, r"`coefficients\[0\]` = nan is not finite"),
        (CALLS["combine's noise"], math.inf, "`noise.scale` = inf is not finite"),
        (CALLS["edm_input"], -1.0, "`sigma` = -1.0 is no standard deviation"),
        (CALLS["ema_update"], 1.5, r"`weight` = 1.5 is not in \[0, 1\]"),
        (CALLS["error_norm's tolerances"], -1.0, "`rtol` = -1.0 is negative"),
        (CALLS["langevin's snr"], -1.0, "`snr` = -1.0 gives no step"),
        (CALLS["mixture_field"], -1.0, "`variances` = -1.0 is not positive"),
    ],
)
def test_a_later_value_is_checked_too(call: Any, bad: float, message: str) -> None:
    torch._dynamo.reset()
    run = torch.compile(call, backend="aot_eager")  # fullgraph would wrap an error that is found while tracing
    with torch.no_grad():
        run(X, 0.7), run(X, 0.3)
        with pytest.raises(ValueError, match=message):
            run(X, bad)
