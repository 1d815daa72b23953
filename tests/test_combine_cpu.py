"""The numba backend of `combine` has the reference's bits, whatever the layout, the threads and the place in a tensor."""

import importlib
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, laid_out, shapes
from torch import Tensor

from halfbridge.kernels import Noise, combine, normal, use
from halfbridge.kernels.combine import combine_reference

pytest.importorskip("numba")
cpu = importlib.import_module("halfbridge.kernels.cpu.combine")

FLOATS = [torch.float32, torch.float64]
NOISE = Noise(0.7, 2**63 + 5, 3, 2**32 - 2)
COEFFICIENTS = [0.9, -1 / 3, 1e-30, 0.7, 1.1, -0.5, 0.3, -1e30, 0.13]


def vectors(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [normal(shape, 100, draw, dtype=dtype) for draw in range(count)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal with the signs of zeros; any NaN for any NaN."""
    signs = torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())
    return a.stride() == b.stride() and signs and torch.equal(a.nan_to_num(7.7), b.nan_to_num(7.7)) and same_nans(a, b)


def same_nans(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf())


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-2, 2) | st.sampled_from([0.0, 1.0, -0.0, 1e-45, 1e30]), min_size=1, max_size=9),
    st.lists(st.sampled_from(["plain", "shifted"]), min_size=9, max_size=9)
    | st.sampled_from(LAYOUTS).map(lambda layout: [layout] * 9)
    | st.lists(st.sampled_from(LAYOUTS), min_size=9, max_size=9),
    shapes(31, 64, 1025),
    st.sampled_from([None, NOISE]),
    st.none() | st.integers(0, 8) | st.sampled_from(LAYOUTS[:-1]),
    st.sampled_from([1.0, 1e-38, 1e-310, math.inf, math.nan, -0.0]),
)
def test_bits_are_those_of_the_reference(
    dtype: torch.dtype,
    coefficients: list[float],
    layouts: list[str],
    shape: tuple[int, ...],
    noise: Noise | None,
    target: int | str | None,
    special: float,
) -> None:
    def run(backend: str) -> Tensor:
        terms = [laid_out(normal(shape, 100, j, dtype=dtype), layouts[j]) for j in range(len(coefficients))]
        for v in terms[::2]:
            if v.numel() and v.is_contiguous():
                v.view(-1)[::3] *= special
        out = None
        if isinstance(target, str):
            out = laid_out(torch.full(shape, math.nan, dtype=dtype), target)
        elif target is not None:
            out = terms[target % len(terms)]
            out = terms[target % len(terms)] = out if out.is_contiguous() else out.clone()
        with use(backend):
            return combine(terms, coefficients, noise=noise, out=out)

    assert same_bits(run("numba"), run("reference"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("noise", [None, NOISE])
@pytest.mark.parametrize(
    "shape", [(1, 1023), (1, 1024), (2, 1025), (1, 3, 1365), (5, 1022), (700, 3), (2000, 1), (41, 401)]
)
def test_ends_of_blocks_leave_no_trace(dtype: torch.dtype, noise: Noise | None, shape: tuple[int, ...]) -> None:
    terms = vectors(6, shape, dtype)
    for count in range(1, 7):
        want = combine_reference(terms[:count], COEFFICIENTS[:count], noise)
        assert same_bits(cpu.combine_numba(terms[:count], COEFFICIENTS[:count], noise), want)
        out = terms[0].clone()
        assert same_bits(cpu.combine_numba([out, *terms[1:count]], COEFFICIENTS[:count], noise, out), want)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("noise", [None, NOISE])
def test_alignment_leaves_no_trace(dtype: torch.dtype, noise: Noise | None) -> None:
    x, y = vectors(2, (3, 77), dtype)
    want = cpu.combine_numba([x, y], [0.3, -1.7], noise)
    for shift in range(1, 20):
        memory = torch.zeros(shift + 2 * x.numel(), dtype=dtype)
        moved, out = memory[shift:].view(2, 3, 77)
        moved.copy_(x)
        assert same_bits(cpu.combine_numba([moved, y], [0.3, -1.7], noise, out), want)
        assert torch.equal(moved, x)
        assert not memory[:shift].any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("noise", [None, NOISE])
@pytest.mark.parametrize("shape", [(20_003,), (3, 7001), (6000, 3)])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_threads_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, noise: Noise | None, shape: tuple[int, ...], count: int
) -> None:
    terms = vectors(count, shape, dtype)
    want = cpu.combine_numba(terms, COEFFICIENTS[:count], noise)
    parts: list[tuple[int, int]] = []
    share = cpu.share

    def recording(work: Any, total: int, least: int) -> None:
        def part(begin: int, end: int) -> None:
            parts.append((begin, end))
            work(begin, end)

        share(part, total, least)

    monkeypatch.setattr(cpu, "share", recording)
    monkeypatch.setattr(cpu, "THREAD_SHARE", 1 << 10)
    monkeypatch.setattr(cpu, "NOISY_SHARE", 1)
    before = torch.get_num_threads()
    try:
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            parts.clear()
            assert same_bits(cpu.combine_numba(terms, COEFFICIENTS[:count], noise), want)
            assert len(parts) > threads
            out = terms[-1].clone()
            assert cpu.combine_numba([*terms[:-1], out], COEFFICIENTS[:count], noise, out) is out
            assert torch.equal(
                out, combine_reference([*terms[:-1], o := terms[-1].clone()], COEFFICIENTS[:count], noise, o)
            )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("noise", [None, NOISE])
def test_tensors_that_share_an_order_in_memory_need_no_reference(
    monkeypatch: pytest.MonkeyPatch, noise: Noise | None
) -> None:
    x, y = (v.to(memory_format=torch.channels_last) for v in vectors(2, (3, 5, 4, 6)))
    want = combine_reference([x, y], [0.5, -2.0], noise)
    monkeypatch.setattr(cpu, "combine_reference", lambda *_: pytest.fail("the reference ran"))
    got = cpu.combine_numba([x, y], [0.5, -2.0], noise)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert same_bits(got, want)
    assert same_bits(cpu.combine_numba([x, y], [0.5, -2.0], noise, y), want)


def test_noise_is_made_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = vectors(2, (300, 70))
    want = combine_reference([x, y], [0.5, -2.0], NOISE)
    for name in ("combine_reference", "add_noise"):
        monkeypatch.setattr(cpu, name, lambda *_: pytest.fail("a pass of its own"))
    monkeypatch.setattr(torch, "empty", lambda *_: pytest.fail("a temporary"))
    assert torch.equal(cpu.combine_numba([x, y], [0.5, -2.0], NOISE, y), want)


def test_a_lazily_negated_element_is_read_with_its_sign() -> None:
    z = torch.tensor([[1 + 2j]]).conj().imag
    assert z.is_contiguous()
    assert z.is_neg()
    assert cpu.combine_numba([z, z], [1.0, 2.0]).item() == -6.0


def test_integers_among_the_numbers_are_converted() -> None:
    x, y = vectors(2, (3, 4))
    want = combine_reference([x, y], [1.0, 2.0], Noise(2.0, 3, 4))
    assert torch.equal(cpu.combine_numba([x, y], [1, 2], Noise(2, 3, 4)), want)
    assert torch.equal(cpu.combine_numba([x, y], [1, 2]), combine_reference([x, y], [1.0, 2.0]))


def test_where_torch_rounds_unevenly_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = vectors(2, (3, 4))
    monkeypatch.setattr(cpu, "REPRODUCIBLE", False)
    monkeypatch.setattr(cpu, "combine_reference", lambda *_: "reference")
    assert cpu.combine_numba([x, y], [1.0, 2.0]) == "reference"


def test_multiply_adds_are_fused_where_those_of_torch_are() -> None:
    code = """
import torch
from halfbridge.kernels import normal
from halfbridge.kernels.combine import combine_reference
from halfbridge.kernels.cpu.combine import ROUNDINGS, combine_numba
x, y = normal((3, 501), 1), normal((3, 501), 2)
print(ROUNDINGS[torch.float32], torch.equal(combine_numba([x, y], [0.3, 1.1]), combine_reference([x, y], [0.3, 1.1])))
"""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    roundings, same = done.stdout.split()
    assert same == "True"
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # then the default is plain SSE
        assert roundings == "{2}"
        assert cpu.ROUNDINGS[torch.float32] == {1}
