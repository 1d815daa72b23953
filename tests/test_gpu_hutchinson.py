"""Probes and their dots in Triton, run by its interpreter: the reference's signs to the bit, its sums to 2 ulp."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import only_program
from layouts import DTYPES, LAYOUTS, inner_dtype, laid_out, shapes
from torch import Tensor

from halfbridge.kernels import hutchinson_dot, hutchinson_probe, normal, use

pytest.importorskip("triton")
probe = pytest.importorskip("halfbridge.kernels.gpu.hutchinson_probe")
dot = pytest.importorskip("halfbridge.kernels.gpu.hutchinson_dot")

KINDS = ["rademacher", "gaussian"]
seeds = st.integers(0, 2**64 - 1)
firsts = st.one_of(st.integers(0, 2**64 - 1000), st.integers(2**32 - 20, 2**32))
draws = st.integers(0, 2**32 - 1)


def dot_in_triton(jv: Tensor, *arguments: Any, tile: int | None = None) -> Tensor:
    """With outputs full of NaN before the launch, and tiles of that size: the interpreter sums element by element."""
    with pytest.MonkeyPatch.context() as patch, use("triton"):
        if tile is not None:
            patch.setattr(dot, "TILE", dict.fromkeys((2, 4, 8), tile))
            patch.setattr(dot, "PART", 2)
            patch.setattr(dot, "PARTS", 4)
        patch.setattr(dot, "torch", SimpleNamespace(empty=lambda *a, **k: torch.full(*a, torch.nan, **k)))
        return hutchinson_dot(jv, *arguments)


def error(got: Tensor, jv: Tensor, *arguments: Any) -> float:
    """In ulp relative to sum |v w|, with the kernels' own normals; less an ulp of those in bfloat16, to which the interpreter
    truncates where a GPU rounds."""
    with use("triton"):
        v = hutchinson_probe(tuple(jv.shape), *arguments, dtype=jv.dtype)
    terms = (v.double() * jv.double())[..., None].flatten(1)
    size = terms.abs().sum(1)
    off = (got.double() - terms.sum(1)).abs()
    if jv.dtype == torch.bfloat16 and "gaussian" in arguments:
        off -= 2.0**-7 * size
    return float((off / size.clamp_min(1e-300)).max()) / torch.finfo(got.dtype).eps if len(got) else 0.0


@settings(deadline=None, max_examples=30)
@given(shapes(63, 64, 65, 127, 128, 129, 600, 4096, 4100), seeds, draws, firsts, st.sampled_from(DTYPES))
def test_signs_are_the_references(shape: tuple[int, ...], seed: int, draw: int, first: int, dtype: torch.dtype) -> None:
    with use("reference"):
        want = hutchinson_probe(shape, seed, draw, first, dtype=dtype)
    with use("triton"):
        got = hutchinson_probe(shape, seed, draw, first, dtype=dtype, out=torch.full(shape, torch.nan, dtype=dtype))
    assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(5000, 1), (2100, 2), (700, 12), (70, 130), (40, 384), (3, 9000)])
def test_samples_and_tiles_meet_without_a_seam(shape: tuple[int, int]) -> None:
    got = torch.full((1, shape[0] * shape[1] + 1), torch.nan)[:, 1:].view(1, *shape)  # off alignment
    probe.hutchinson_probe_triton(got, 2**63 + 5, [9], 2**32 - 2, 0)
    with use("reference"):
        assert torch.equal(got[0], hutchinson_probe(shape, 2**63 + 5, 9, 2**32 - 2))


def test_draws_that_follow_on_each_other_share_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Any] = []
    launch = probe.launch
    monkeypatch.setattr(
        probe, "launch", lambda kernel, grid, *a, **k: (grids.append(grid), launch(kernel, grid, *a, **k))
    )
    monkeypatch.setattr("halfbridge.kernels.gpu.launch.DRAWS", 3)
    chosen = [4, 5, 6, 7, 9, 2**32 - 1]
    out = torch.full((6, 3, 200), torch.nan)
    probe.hutchinson_probe_triton(out, 3, chosen, 11, 0)
    assert [grid[1] for grid in grids] == [3, 1, 1, 1]
    with use("reference"):
        assert torch.equal(out, torch.stack([hutchinson_probe((3, 200), 3, draw, 11) for draw in chosen]))


def test_a_start_skips_whole_counters() -> None:
    part = torch.full((1, 2, 600), torch.nan)
    probe.hutchinson_probe_triton(part, 3, [1], 0, 384)
    with use("reference"):
        assert torch.equal(part[0], hutchinson_probe((2, 1000), 3, 1)[:, 384:984])


@settings(deadline=None, max_examples=30)
@given(
    shapes(63, 64, 65, 127, 128, 129, 256, 600),
    seeds,
    draws,
    firsts,
    st.sampled_from(KINDS),
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
)
def test_dots_are_the_sums_to_2_ulp(
    shape: tuple[int, ...], seed: int, draw: int, first: int, kind: Any, dtype: torch.dtype, layout: str
) -> None:
    jv = laid_out(normal(shape, 5, dtype=dtype), layout)
    got = dot_in_triton(jv, seed, draw, first, kind, tile=128)
    assert got.dtype == inner_dtype(dtype)
    assert got.shape == shape[:1]
    assert error(got, jv, seed, draw, first, kind) <= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "tile"), [(700, 128), (4100, None), (17_000, None)])
def test_tiles_and_parts_of_long_samples_add_up(size: int, tile: int | None, kind: Any, dtype: torch.dtype) -> None:
    batch = 1 if tile is None else 2
    jv = normal((batch, size), 5, dtype=dtype)
    assert error(dot_in_triton(jv, 7, 2, 2**32 - 1, kind, tile=tile), jv, 7, 2, 2**32 - 1, kind) <= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [4, 600, 5000])
def test_sums_that_cancel_are_right_to_an_ulp_of_what_is_left(size: int, dtype: torch.dtype) -> None:
    """Large terms that add up to zero, and a small one: sums in a single number would lose it."""
    half = normal((3, size // 2 - 1), 1, dtype=dtype) * 2.0**20
    small = torch.full((3, 2), 2.0**-20, dtype=dtype)
    order = torch.randperm(size // 2 - 1, generator=torch.Generator().manual_seed(0))
    jv = torch.cat([half, small, -half[:, order]], 1) * hutchinson_probe((3, size), 7, dtype=dtype)
    assert torch.allclose(dot_in_triton(jv, 7, tile=512), torch.full((3,), 2.0**-19, dtype=dtype), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("kind", "dtype"), [*(("rademacher", dtype) for dtype in DTYPES), ("gaussian", torch.float32)])
@pytest.mark.parametrize("size", [3, 300])
def test_a_sample_does_not_depend_on_its_batch(size: int, kind: Any, dtype: torch.dtype) -> None:
    count = 100 // size + 4
    jv = normal((count, size), 5, dtype=dtype)
    whole = dot_in_triton(jv, 7, 2, 2**32 - 10, kind, tile=128)
    for start, stop in ((0, 1), (1, 3), (count - 1, count)):
        part = dot_in_triton(jv[start:stop].clone(), 7, 2, 2**32 - 10 + start, kind, tile=128)
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("size", [5, 300])
def test_several_draws_give_the_bits_of_single_ones(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(dot, "TILE", dict.fromkeys((2, 4, 8), 128))
    monkeypatch.setattr(dot, "PART", 1)
    monkeypatch.setattr(dot, "PARTS", 4)
    chosen, jv = [4, 5, 2**32 - 1], normal((3, 2, size), 5)
    for kind in KINDS:
        block = dot.hutchinson_dot_triton(jv, 3, chosen, 11, kind)
        single = [dot.hutchinson_dot_triton(jv[k : k + 1], 3, [draw], 11, kind)[0] for k, draw in enumerate(chosen)]
        assert torch.equal(block, torch.stack(single))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [300, 3000])
def test_what_is_not_finite_stays_so(size: int, dtype: torch.dtype) -> None:
    jv = hutchinson_probe((4, size), 0, dtype=dtype)
    jv[0, 7] *= torch.inf
    jv[1, size - 1] *= -torch.inf
    jv[2, 9] = torch.nan
    got = dot_in_triton(jv, 0, tile=512)
    assert got[:2].tolist() == [torch.inf, -torch.inf]
    assert got[2].isnan()
    assert got[3] == size


def test_gradients_are_the_probes() -> None:
    jv = normal((3, 70), 1).requires_grad_()
    with use("triton"):
        hutchinson_dot(jv, 4, 6).sum().backward()
    with use("reference"):
        assert torch.equal(jv.grad, hutchinson_probe((3, 70), 4, 6))


@pytest.mark.parametrize(("batch", "size"), [(1 << 21, 1028), (2, (1 << 30) + 4), ((1 << 20) + 1, 2051)])
def test_beyond_two_to_the_31_elements(batch: int, size: int) -> None:
    """Memory is taken where it is touched: by the last program, and by the test."""
    out = torch.empty((1, batch, size), dtype=torch.float16)
    blocks = -(-size // 128)
    tiles = -(-batch * blocks // 32)
    with only_program(tiles - 1) as grids:
        probe.hutchinson_probe_triton(out, 5, [2], 0, 0)
    assert grids == [(tiles, 1, 1)]
    assert out.numel() > 2**31
    last = torch.full((1, 1, 100 + size % 128), torch.nan)
    start = size - size % 128 - 128
    with use("reference"):
        probe_reference(last, batch - 1, start)
    assert torch.equal(out[0, -1, start : start + last.shape[2]].float(), last[0, 0])


def probe_reference(out: Tensor, sample: int, start: int) -> None:
    from halfbridge.kernels.hutchinson_probe import hutchinson_probe_reference

    hutchinson_probe_reference(out, 5, [2], sample, start)


@pytest.mark.parametrize(("batch", "size"), [(1 << 21, 1028), (2, (1 << 30) + 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_dots_beyond_two_to_the_31_elements(monkeypatch: pytest.MonkeyPatch, kind: str, batch: int, size: int) -> None:
    jv = torch.empty((1, batch, size), dtype=torch.float16)
    width = min(4096, 2048 if size == 1028 else 4096)
    begin = size - 1028 if size == 1028 else (size - 1) // (dot.PART * width) * dot.PART * width
    rows = 4096 // width
    jv[0, -rows:, begin:] = 1.0
    results: list[Tensor] = []
    empty = lambda *a, **k: (results.append(torch.zeros(*a, **k)), results[-1])[1]  # noqa: E731
    monkeypatch.setattr(dot, "torch", SimpleNamespace(empty=empty))
    programs = -(-batch // rows) * -(-size // (dot.PART * width))
    with only_program(programs - 1):
        dot.hutchinson_dot_triton(jv, 5, [2], 0, kind)
    v = torch.empty((1, 1, size - begin), dtype=torch.float64)
    if kind == "rademacher":
        probe_reference(v, batch - 1, begin)
    else:
        from halfbridge.kernels.normal import fill_reference

        fill_reference(v, 5, [2], batch - 1, begin)
    got = results[-1].reshape(-1)[-2:].sum() if size > 1028 else results[0][0, -1]
    assert float(got) == pytest.approx(float(v.sum()), abs=1e-3 * (size - begin) ** 0.5)
