"""Normals made in Triton kernels, run by its interpreter: the documented words, the exact normals of them, any place."""

from typing import Any

import numpy as np
import pytest
import torch
from counters import normal_in_python
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import only_program, programs_backwards

from halfbridge.kernels import normal, normal_block, use

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
normals = pytest.importorskip("halfbridge.kernels.gpu.normals")
noise = pytest.importorskip("halfbridge.kernels.gpu.noise")
module = pytest.importorskip("halfbridge.kernels.gpu.normal")

BOUND = {torch.float32: 1.2e-6, torch.float64: 1e-14}
seeds = st.integers(0, 2**64 - 1)


@triton.jit
def pairs_kernel(x, y, words, N: tl.constexpr, DTYPE: tl.constexpr) -> None:
    t = tl.arange(0, N)
    a, b = normals.pair(tl.load(words + t).to(tl.uint32), tl.load(words + N + t).to(tl.uint32), DTYPE)
    tl.store(x + t, a)
    tl.store(y + t, b)


def exact_pairs(w0: Any, w1: Any) -> tuple[Any, Any]:
    """sqrt(-2 ln u0) (cos, sin)(2 pi u1) in float64, the logarithm from the nearer end."""
    w0, w1 = w0.astype(np.float64), w1.astype(np.float64)
    r = np.sqrt(-2 * np.where(w0 < 2**31, np.log((w0 + 0.5) / 2**32), np.log1p(-(2**32 - w0 - 0.5) / 2**32)))
    angle = 2 * np.pi * ((w1 + 0.5) / 2**32)
    return r * np.cos(angle), r * np.sin(angle)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_is_box_muller_of_its_words_to_the_stated_error(dtype: torch.dtype) -> None:
    n = 1 << 17
    rng = np.random.default_rng(0)
    w0 = np.concatenate(
        [2 ** rng.uniform(0, 32, n // 4), 2**32 - 2 ** rng.uniform(0, 32, n // 4), rng.integers(0, 2**32, n // 2)]
    )
    w0 = np.clip(w0, 0, 2**32 - 1).astype(np.int64)
    w0[:12] = [
        0,
        1,
        2,
        2**31 - 1,
        2**31,
        2**31 + 1,
        2**32 - 1,
        2**32 - 2,
        3037000499,
        3037000500,
        1257966796,
        1257966797,
    ]
    w1 = rng.integers(0, 2**32, n)
    corner = [q * 2**30 + k for q in range(4) for k in (0, 1, 2**29 - 1, 2**29, 2**30 - 1)]
    w1[: len(corner)] = corner
    x, y = torch.full((n,), torch.nan, dtype=dtype), torch.full((n,), torch.nan, dtype=dtype)
    inner = tl.float64 if dtype == torch.float64 else tl.float32
    pairs_kernel[(1,)](x, y, torch.from_numpy(np.stack([w0, w1])), N=n, DTYPE=inner)
    for got, want in zip((x, y), exact_pairs(w0, w1), strict=True):
        assert np.abs(got.double().numpy() - want).max() < BOUND[dtype]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9), st.integers(1, 70), seeds, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 20), st.booleans()
)
def test_the_words_are_those_of_the_reference(
    batch: int, size: int, seed: int, draw: int, first: int, double: bool
) -> None:
    dtype = torch.float64 if double else torch.float32
    with use("triton"):
        got = normal((batch, size), seed, draw, first, dtype, out=torch.full((batch, size), torch.nan, dtype=dtype))
    with use("reference"):
        want = normal((batch, size), seed, draw, first, dtype)
    assert ((got - want).abs() <= 2 * BOUND[dtype]).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 342, 517, 520, 680, 1021, 1024, 5000])
def test_tiles_and_ragged_samples_meet_without_a_seam(size: int) -> None:
    with use("triton"), programs_backwards():
        got = normal((7, size), 2**63 + 5, 9, 2**32 - 2)
    with use("reference"):
        want = normal((7, size), 2**63 + 5, 9, 2**32 - 2)
    assert (got - want).abs().max() < 2 * BOUND[torch.float32]


def test_many_short_samples_and_draws_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Any] = []
    monkeypatch.setattr(
        module, "launch", lambda kernel, grid, *a, **k: launches.append(grid) or original(kernel, grid, *a, **k)
    )
    from halfbridge.kernels.gpu.launch import launch as original

    draws = [4, 5, 6, 9, 10, 2**32 - 1]
    with use("triton"):
        got = normal_block((700, 2), 3, draws, first=11)
    assert [grid[1] for grid in launches] == [3, 2, 1]
    with use("reference"):
        want = normal_block((700, 2), 3, draws, first=11)
    assert (got - want).abs().max() < 2 * BOUND[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_normals_are_the_float32_ones_rounded(dtype: torch.dtype) -> None:
    with use("triton"):
        assert torch.equal(normal((5, 33), 3, dtype=dtype), normal((5, 33), 3).to(dtype))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 6))
def test_a_sample_does_not_depend_on_its_batch(size: int, start: int, count: int) -> None:
    with use("triton"):
        whole = normal((30, size), 7, 2, first=2**32 - 10)
        part = normal((count, size), 7, 2, first=2**32 - 10 + start)
    assert torch.equal(part, whole[start : start + count])


@triton.jit
def start_kernel(out, tile: tl.int64, blocks: tl.uint32, COUNTERS: tl.constexpr, BIG: tl.constexpr) -> None:
    row, block = noise.tile_start(tile.to(tl.int64), blocks.to(tl.uint32), COUNTERS, BIG)
    tl.store(out, row.to(tl.int64))
    tl.store(out + 1, block.to(tl.int64))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31 - 1), st.integers(1, 2**32 - 1), st.sampled_from([16, 256]))
def test_a_tile_finds_its_first_counter(tile: int, blocks: int, counters: int) -> None:
    out = torch.zeros(2, dtype=torch.int64)
    for big in (True, False) if tile * counters < 2**32 else (True,):
        start_kernel[(1,)](out, tile, blocks, COUNTERS=counters, BIG=big)
        assert out.tolist() == list(divmod(tile * counters, blocks))


@pytest.mark.parametrize("counters", [2**32 - 2**20, 2**32, 2**33])
def test_a_run_of_two_to_the_32_counters_divides_in_64_bits(counters: int) -> None:
    meta = torch.empty((1 << 10, counters >> 8), device="meta")
    tiling = noise.tiling(meta, 1024, True)
    assert tiling.tiles * 256 == counters
    assert tiling.big == (counters >= 2**32)


@pytest.mark.parametrize(("batch", "size"), [(1 << 21, 1028), (2, (1 << 30) + 4), ((1 << 20) + 1, 2051)])
def test_beyond_two_to_the_31_elements(batch: int, size: int) -> None:
    out = torch.empty((1, batch, size), dtype=torch.float32)  # memory is taken where it is touched: one tile
    blocks = -(-size // 4)
    tiles = -(-batch * blocks // (module.BLOCK // 4))
    with only_program(tiles - 1) as grids:
        module.fill_triton(out, 5, (2,), 0, 0)
    assert grids == [(tiles, 1, 1)]
    first = (tiles - 1) * (module.BLOCK // 4)
    row, block = divmod(first, blocks)
    element = 4 * block
    assert batch * size > 2**31
    assert float(out[0, row, element]) == pytest.approx(normal_in_python(5, 2, row, element), abs=2e-6)
    assert float(out[0, -1, -1]) == pytest.approx(normal_in_python(5, 2, batch - 1, size - 1), abs=2e-6)
