"""`python -m benchmarks.combine`: `combine` against eager torch and against the bandwidth of the triad, per backend.

Large states: k vectors into an output that exists, against the triad's time for the same bytes (k + 1 tensors; see
`benchmarks.triad` for what counts), against the plain expression a x + b y + ..., and against the chain of in-place
multiply-adds that a careful user would write; with noise against the chain with torch.randn. Small states: microseconds
over one torch.add, with the checks ("checked") and as a plan calls it ("planned").

Rows: backend, dtype, shape, vectors, noise, form, threads, peer, milliseconds of both (medians), the ratio of paired turns
with its 20 and 80 % quantiles, GB/s, and the largest error in units in the last place of sum_j |c_j v_j|. A result that is
off by more than 2 of these is not timed.
"""

import argparse
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import NORMAL, Case, refuse_above
from benchmarks.pairs import Pair, interleaved, provenance
from benchmarks.triad import on_threads, streamed, thread_counts, triad
from halfbridge.kernels import DeviceNoise, Noise, combine, normal, use
from halfbridge.kernels.dispatch import available, resolve

COEFFICIENTS = (0.97, -0.21, 0.3, 1.1, -0.07, 0.5)
NOISE = Noise(0.3, 3, 1)
ALLOWED = 2.0
DTYPES = (torch.float32, torch.float64)


class Row(NamedTuple):
    """One comparison; `pair.ratio` is against the peer's time, for the triad against that of as many bytes."""

    backend: str
    dtype: str
    shape: tuple[int, ...]
    vectors: int
    noise: bool
    form: str
    threads: int
    peer: str
    pair: Pair
    gigabytes_per_second: float
    error_ulp: float


class Arguments(NamedTuple):
    """Arguments of `combine`, with an output."""

    vectors: list[Tensor]
    coefficients: list[float]
    noise: Noise | None
    out: Tensor


def case(shape: tuple[int, ...], dtype: torch.dtype, count: int, noise: bool, device: str = "cpu") -> Arguments:
    vectors = [normal(shape, 1, j, dtype=dtype, device=device) for j in range(count)]
    return Arguments(vectors, list(COEFFICIENTS[:count]), NOISE if noise else None, torch.empty_like(vectors[0]))


def cases(device: str) -> Iterator[Case]:
    """A toy state, a batch of small images, and a state in main memory; the peer is the plain expression."""
    for shape in ((1, 2), (64, 3072), (1000, 10_000)):
        for count, noise in ((2, False), (2, True), (5, False)):
            c = case(shape, torch.float32, count, noise, device)
            error = checked_error(c, device)
            label = f"{shape} k={count}{' noise' if noise else ''}"
            yield Case(
                label,
                forms(c)["checked"],
                peers(c)["expression"],
                streamed(c.out.numel(), c.out.dtype, count + 1),
                error,
                "ulp of sum |c v|",
                "combine",
            )


def aot_cases() -> Iterator[tuple[str, Callable[[], Any], int, int]]:
    """Every dtype with and without noise, every number of inputs, samples of 1023 (not a multiple of 4) and of 12 elements
    (many to a tile), and numbers in device memory."""
    from halfbridge.kernels.gpu.combine import combine_triton

    noise = NOISE
    device = DeviceNoise(torch.tensor(0.5), torch.tensor([3, 1, 0]))

    def made(label: str, dtype: torch.dtype, count: int, noise: Any = None, shape: tuple[int, int] = (256, 4096),
             memory: bool = False) -> tuple[str, Callable[[], Any], int, int]:  # fmt: skip
        vectors, out = [torch.empty(shape, dtype=dtype) for _ in range(count)], torch.empty(shape, dtype=dtype)
        numbers = torch.full((count,), 0.5, dtype=torch.float64) if memory else [0.5] * count
        moved = (count + 1) * out.numel() * out.element_size()
        label = f"{str(dtype)[6:]}, {count} input{'s' * (count > 1)}{label}"
        return label, partial(combine_triton, vectors, numbers, noise, out), out.numel(), moved

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        yield made("", dtype, 2)
        yield made(", noise", dtype, 2, noise)
    for count in (1, 3, 4, 5, 6):
        yield made("", torch.float32, count)
        yield made(", noise", torch.float32, count, noise)
    yield made(", noise, numbers in memory", torch.float32, 2, device, memory=True)
    yield made(", noise, samples of 1023", torch.float32, 2, noise, (1024, 1023))
    yield made(", noise, samples of 12", torch.float32, 2, noise, (65536, 12))


def error_ulp(c: Arguments, samples: int = 500) -> float:
    """The largest error of some elements, in units in the last place of the sum of magnitudes, of which a normal's is counted
    as at least `NORMAL`; the sum is exact."""
    got = combine(c.vectors, c.coefficients, noise=c.noise, out=c.out)
    terms = list(zip(c.coefficients, c.vectors, strict=True))
    if c.noise is not None:
        with use("reference"):
            z = normal(tuple(c.out.shape), *c.noise[1:], torch.float64, c.out.device)
        terms.append((c.noise.scale, z))
    columns = [v.reshape(-1)[:: max(1, v.numel() // samples)].tolist() for _, v in terms]
    factors = [Fraction(torch.tensor(a, dtype=c.out.dtype).item()) for a, _ in terms]
    worst = Fraction(0)
    for value, *row in zip(got.reshape(-1)[:: max(1, got.numel() // samples)].tolist(), *columns, strict=True):
        products = [a * Fraction(v) for a, v in zip(factors, row, strict=True)]
        size = sum(map(abs, products))
        if c.noise is not None:
            size += abs(factors[-1]) * max(0, Fraction(NORMAL) - abs(Fraction(row[-1])))
        worst = max(worst, abs(Fraction(value) - sum(products)) / size)
    return float(worst) / torch.finfo(c.out.dtype).eps


def forms(c: Arguments) -> dict[str, Callable[[], Any]]:
    """`combine` as a user calls it and as a plan does."""
    run = resolve("combine", c.out.device.type, c.out.dtype, c.out.numel())
    return {
        "checked": lambda: combine(c.vectors, c.coefficients, noise=c.noise, out=c.out),
        "planned": lambda: run(c.vectors, c.coefficients, c.noise, c.out),
    }


def peers(c: Arguments) -> dict[str, Callable[[], Any]]:
    """What the user would write instead."""

    def expression() -> Tensor:
        total = c.coefficients[0] * c.vectors[0]
        for a, v in zip(c.coefficients[1:], c.vectors[1:], strict=True):
            total = total + a * v
        return total if c.noise is None else total + c.noise.scale * torch.randn_like(total)

    def chain() -> Tensor:
        torch.mul(c.vectors[0], c.coefficients[0], out=c.out)
        for a, v in zip(c.coefficients[1:], c.vectors[1:], strict=True):
            c.out.add_(v, alpha=a)
        return c.out if c.noise is None else c.out.add_(torch.randn_like(c.out), alpha=c.noise.scale)

    return {"expression": expression, "chain": chain}


def checked_error(c: Arguments, where: str) -> float:
    error = error_ulp(c)
    refuse_above(ALLOWED, error, f"combine on {where} at {tuple(c.out.shape)}")
    return error


def large(backend: str, elements: int, turns: int) -> Iterator[Row]:
    """States in main memory: k = 2 .. 6 against the triad and eager torch, k = 2 with noise against eager torch."""
    shape = (elements // 1000, 1000)
    for dtype in DTYPES:
        floor = triad(elements, dtype)
        for threads in thread_counts():
            with use(backend), on_threads(threads), torch.no_grad():
                for count, noise in ((2, False), (3, False), (4, False), (5, False), (6, False), (2, True)):
                    c = case(shape, dtype, count, noise)
                    error, ours = checked_error(c, backend), forms(c)["checked"]
                    moved = streamed(elements, dtype, count + 1)
                    for peer, other in {**({} if noise else {"triad": floor}), **peers(c)}.items():
                        pair = interleaved(ours, other, turns)
                        if peer == "triad":
                            pair = scaled(pair, moved / streamed(elements, dtype))
                        speed = moved / pair.ours[1] / 1e6
                        yield Row(
                            backend, name(dtype), shape, count, noise, "checked", threads, peer, pair, speed, error
                        )


def small(backend: str, turns: int, calls: int = 50) -> Iterator[Row]:
    """States of a few numbers, on one thread, against one torch.add into an output."""
    for shape in ((1, 2), (64, 64)):
        for dtype in DTYPES:
            with use(backend), on_threads(1), torch.no_grad():
                for count in range(2, 7):
                    c = case(shape, dtype, count, False)
                    error = checked_error(c, backend)
                    x, y, out = c.vectors[0], c.vectors[1], c.out
                    for form, ours in forms(c).items():
                        pair = interleaved(
                            ours, lambda x=x, y=y, o=out: torch.add(x, y, alpha=0.5, out=o), turns, calls
                        )  # type: ignore[misc]
                        speed = streamed(c.out.numel(), dtype, count + 1) / pair.ours[1] / 1e6
                        yield Row(backend, name(dtype), shape, count, False, form, 1, "add", pair, speed, error)


def scaled(pair: Pair, bytes_ratio: float) -> Pair:
    """The pair with the peer's time for `bytes_ratio` times its bytes."""
    low, middle, high = pair.peer
    a, b, c = pair.ratio
    return Pair(
        pair.ours,
        (low * bytes_ratio, middle * bytes_ratio, high * bytes_ratio),
        (a / bytes_ratio, b / bytes_ratio, c / bytes_ratio),
    )


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def show(row: Row) -> str:
    head = (
        f"{row.backend:10s}{row.dtype:8s}{row.shape!s:>14s} k={row.vectors} {'noise' if row.noise else '':5s} "
        f"{row.form:8s}{row.threads:2d}  {row.peer:11s}"
    )
    low, middle, high = row.pair.ratio
    ours, peer = row.pair.ours[1], row.pair.peer[1]
    if row.peer == "add":
        figures = f"{1e3 * ours:8.2f} us {1e3 * peer:8.2f} us {1e3 * (ours - peer):+8.2f} us over"
    else:
        figures = f"{ours:8.3f} ms {peer:8.3f} ms {row.gigabytes_per_second:8.1f} GB/s"
    return f"{head}{figures:38s} {middle:6.2f}  [{low:.2f}, {high:.2f}]  {row.error_ulp:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--backends", nargs="*", default=[name for name in available() if name != "triton"])
    arguments = parser.parse_args()
    print(provenance())
    print(
        f"{'backend':10s}{'dtype':8s}{'shape':>14s} vectors   form    thr {'peer':11s}"
        f"{'       ours        peer':38s}  ratio  [20 %, 80 %]  error/ulp"
    )
    for backend in arguments.backends:
        for row in small(backend, 5 * arguments.turns):
            print(show(row), flush=True)
        for elements in arguments.elements:
            for row in large(backend, elements, arguments.turns):
                print(show(row), flush=True)


if __name__ == "__main__":
    main()
