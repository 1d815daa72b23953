"""Many samples, in chunks that several processes share: the same bits however many processes there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from halfbridge.kernels.philox import integer
from halfbridge.solvers.field import Field
from halfbridge.solvers.run import sample
from halfbridge.solvers.solver import Solver
from halfbridge.training.workers import Workers, current

__all__ = ["in_chunks", "sample_rows"]


def sample_rows(
    field: Field | Callable[[int, int], Field],
    solver: Solver,
    *,
    grid: Any,
    n: int,
    shape: Sequence[int],
    seed: int,
    first: int = 0,
    chunk: int = 256,
    workers: Workers | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> torch.Tensor:
    """`hb.sample` of the samples first .. first + n - 1, at most `chunk` at a time; (n, *shape), in every process.

    field: or a function field(start, stop) that makes the field of the samples start .. stop - 1, for a network told their
    classes. Chunks, processes and progress are as of `in_chunks`. options: of `hb.sample`, such as prior.
    Raises ValueError for n < 1 or chunk < 1.
    """

    def make(start: int, stop: int) -> torch.Tensor:
        here = field if isinstance(field, Field) else field(start, stop)
        whole = (stop - start, *shape)
        return sample(
            here, solver, grid=grid, shape=whole, seed=seed, first=start, dtype=dtype, device=device, **options
        )

    more: dict[str, Any] = {"workers": workers, "dtype": dtype, "device": device, "progress": progress}
    return in_chunks(make, n, shape, first=first, chunk=chunk, **more)


def in_chunks(
    make: Callable[[int, int], torch.Tensor],
    n: int,
    shape: Sequence[int],
    *,
    first: int = 0,
    chunk: int = 256,
    workers: Workers | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Any] | None = None,
) -> torch.Tensor:
    """make(start, stop), (stop - start, *shape), of the samples first .. first + n - 1, at most `chunk` at a time; (n, *shape),
    in every process.

    Chunks begin at multiples of `chunk` of the global index, and whole ones are dealt to the processes in turn. A network's
    rounding may depend on the batch it is given, and here the batches do not depend on the processes: the bits are those of
    one process with as many threads (`accelerate launch` gives each process one, unless OMP_NUM_THREADS says otherwise).
    dtype, device: of what is made. progress: called with the number of samples done after each chunk.
    Raises ValueError for n < 1 or chunk < 1.
    """
    n, chunk = (integer(name, value, 1, 1 << 62, "pass at least 1") for name, value in (("n", n), ("chunk", chunk)))
    first = integer("first", first, 0, 1 << 64, "pass the global index of the first sample")
    workers = current() if workers is None else workers
    last = first + n
    starts = [max(first, at) for at in range(first - first % chunk, last, chunk)]
    stops = [*starts[1:], last]
    device = torch.device(device)
    workers.check_device(device, "the state")

    def made(start: int, stop: int) -> torch.Tensor:
        x = make(start, stop)
        if progress is not None:
            progress(stop - start)
        return x

    turns = -(-len(starts) // workers.count)
    mine = [made(starts[k], stops[k]) for k in range(workers.index, len(starts), workers.count)]
    if workers.count == 1:
        return torch.cat(mine)
    padded = torch.zeros(turns, min(chunk, n), *shape, dtype=dtype, device=device)
    for place, rows in zip(padded, mine, strict=False):
        place[: len(rows)] = rows
    parts = workers.gather(padded)
    return torch.cat([parts[k % workers.count][k // workers.count, : stops[k] - starts[k]] for k in range(len(starts))])
