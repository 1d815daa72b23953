"""A kernel is compiled once for a run, not again for a step's numbers: by the key under which Triton files its compiled code."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from halfbridge.kernels import (
    DeviceNoise,
    Noise,
    combine,
    edm_input,
    ema_update,
    error_norm,
    hutchinson_dot,
    hutchinson_probe,
    langevin,
    mixture_field,
    normal,
    use,
)

pytest.importorskip("triton")
jit = pytest.importorskip("triton.runtime.jit")
MODULES = (
    "combine",
    "edm_precondition",
    "ema_update",
    "error_norm",
    "hutchinson_dot",
    "hutchinson_probe",
    "langevin",
    "mixture_field",
    "normal",
)
NUMBERS = (1.0, 0.3, 2.0**-30, 0.1, 16.0)  # bit patterns that 16 divides, and others
NOISES = [Noise(c, seed, draw, first) for c, seed in zip(NUMBERS, (1, 16, 17, 2**63, 0), strict=True) for draw, first in
          ((0, 0), (1, 1), (16, 64), (17, 3), (2**32 - 1, 2**63))]  # fmt: skip
X = torch.linspace(-1.0, 1.0, 64).view(4, 16)
WORDS = torch.zeros(len(NUMBERS), 3, dtype=torch.int64)  # rows that do not all begin on 16 bytes
VALUES = torch.ones(len(NUMBERS))
LONG = X.repeat(1, 512)
MEANS, WEIGHTS = torch.linspace(-1.0, 1.0, 30).view(15, 2), torch.zeros(15)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The keys of the launches so far, by kernel; none runs."""
    compiler = importlib.import_module("triton.compiler.compiler")
    backend = compiler.make_backend(importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32))
    found: dict[str, set[str]] = {}

    def note(kernel: Any, tiles: Any, like: Any, *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
        made = jit.JITFunction(kernel.fn, do_not_specialize=kernel.kwargs.get("do_not_specialize"))
        bind = jit.create_function_from_signature(made.signature, made.params, backend)
        found.setdefault(kernel.fn.__name__, set()).add(str((bind(*arguments, **constants)[1], num_warps)))

    for name in MODULES:
        monkeypatch.setattr(importlib.import_module(f"halfbridge.kernels.gpu.{name}"), "launch", note)
    return found


RUNS: list[Callable[[], Any]] = [
    lambda: [combine([X, X], [c, -c], noise=noise) for c in NUMBERS for noise in NOISES],
    lambda: [
        combine([X, X], VALUES[:2], noise=DeviceNoise(VALUES[i], WORDS[i, :3]))
        for i in range(len(NUMBERS))
    ],
    lambda: [normal(X.shape, *noise[1:]) for noise in NOISES],
    lambda: [hutchinson_probe(X.shape, *noise[1:]) for noise in NOISES],
    lambda: [hutchinson_dot(X, *noise[1:]) for noise in NOISES],
    lambda: [langevin(X, X, snr=c, scale=c, factor=c, noise=noise._replace(scale=1.0)) for c in NUMBERS for noise in NOISES],
    lambda: [langevin(LONG, LONG, snr=c, noise=Noise(1.0, 3, draw)) for c in NUMBERS for draw in (1, 16)],
    lambda: [error_norm([X], [c], X, X, rtol=c, atol=c) for c in NUMBERS],
    lambda: [ema_update([X.clone()], [X], c) for c in (1.0, 0.3, 2.0**-30)],
    lambda: [edm_input(X, torch.ones(4), c) for c in NUMBERS],
    lambda: [
        mixture_field(X.view(-1)[:2 * n].view(n, 2), MEANS, WEIGHTS, variances=v, alpha=v, gain=g, offset=o, log_density=True)
        for n in (1, 2, 3, 4) for v in NUMBERS for g, o in ((v, 1.0), (0.3, v))
    ],
]  # fmt: skip


@pytest.mark.parametrize("run", range(len(RUNS)))
def test_a_step_is_not_compiled_anew(run: int, keys: dict[str, set[str]]) -> None:
    with use("triton"):
        RUNS[run]()
    assert keys
    assert {name: len(kinds) for name, kinds in keys.items() if len(kinds) > 1} == {}
