"""Time grids: n steps from the noise at T down to t_end, and the checks of any grid that a user brings.

A grid is a 1-D float64 array of n + 1 times in the direction of integration. Formulas: Song et al. 2021 (uniform),
Lu et al. 2022 (half log-SNR), Karras et al. 2022, equation 5 (rho).
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halfbridge.solvers.processes.base import Process

Grid = NDArray[np.float64]


def uniform(process: Process, n: int, t_end: float | None = None) -> Grid:
    """n equal steps in t from T to t_end (default t_min): shape (n + 1,).

    ValueError unless n >= 1 and 0 <= t_end < T.
    """
    n, t_end = _check_request(process, n, t_end)
    return _finish(process, _between(process.T, t_end, n), process.T, t_end)


def quadratic(process: Process, n: int, t_end: float | None = None) -> Grid:
    """n equal steps in sqrt(t) from T to t_end (default t_min): shape (n + 1,).

    ValueError unless n >= 1 and 0 <= t_end < T.
    """
    n, t_end = _check_request(process, n, t_end)
    return _finish(process, _between(math.sqrt(process.T), math.sqrt(t_end), n) ** 2, process.T, t_end)


def half_log_snr(process: Process, n: int, t_end: float | None = None) -> Grid:
    """n equal steps in lambda = log(alpha/sigma) from T to t_end (default t_min): shape (n + 1,).

    ValueError unless n >= 1 and 0 < t_end < T: lambda is infinite at 0, where there is no noise.
    """
    n, t_end = _check_request(process, n, t_end)
    if t_end == 0 and process.sigma(0.0) == 0:
        raise ValueError(
            "`t_end` = 0 is at infinite half log-SNR; end at a t_end > 0, or use grids.karras(process, n, t_end=0)"
        )
    levels = _between(process.half_log_snr(process.T), process.half_log_snr(t_end), n)
    return _finish(process, process.time_at(levels), process.T, t_end)


def karras(process: Process, n: int, rho: float = 7.0, t_end: float | None = None) -> Grid:
    """n equal steps in nu^(1/rho), nu = sigma/alpha, from T to t_end (default t_min): shape (n + 1,).

    With t_end = 0, where there is no noise: n - 1 such steps from T to t_min and a last one to 0, as in EDM. ValueError
    unless n >= 1, rho > 0, 0 <= t_end < T.
    """
    n, t_end = _check_request(process, n, t_end)
    rho = _check_rho(rho)
    if t_end == 0 and process.sigma(0.0) == 0:
        times = karras(process, n - 1, rho) if n > 1 else np.array([process.T])
        return np.append(times, 0.0)
    roots = _between(process.nu(process.T) ** (1 / rho), process.nu(t_end) ** (1 / rho), n)
    return _finish(process, process.time_at(-rho * np.log(roots)), process.T, t_end)


def check(process: Process, grid: Sequence[float] | NDArray[Any] | Tensor) -> Grid:
    """The grid as a new float64 array, if a Field on this process can be integrated along it.

    grid: a list or tuple of floats, or a float64 array or tensor. TypeError for another dtype. ValueError unless it has
    at least two times, finite, strictly decreasing, inside [0, T], and ends at 0 only where sigma(0) = 0,
    or where the process itself says that sampling ends there (t_min = 0).
    """
    times = _as_array(grid)
    rising = np.flatnonzero(np.diff(times) >= 0)
    if rising.size:
        i = int(rising[0])
        advice = (
            "pass grid[::-1] to go from noise to data" if (np.diff(times) > 0).all() else "sort it, without repeats"
        )
        raise ValueError(
            f"`grid` must decrease from noise to data, but grid[{i}] = {float(times[i])!r} and "
            f"grid[{i + 1}] = {float(times[i + 1])!r}; {advice}"
        )
    if times[0] > process.T:
        raise ValueError(
            f"grid[0] = {float(times[0])!r} is beyond T = {process.T!r} of {process!r}; start the grid at T or below"
        )
    if times[-1] < 0:
        raise ValueError(
            f"grid[{len(times) - 1}] = {float(times[-1])!r} is negative; the data is at 0, so end there or above"
        )
    if times[-1] == 0:
        _check_zero_end(process)
    return times


def check_times(grid: Sequence[float] | NDArray[Any] | Tensor) -> Grid:
    """The grid as a new float64 array, if an SDE or ODE can be integrated along it, in either direction.

    TypeError for a dtype other than float64. ValueError unless it has at least two times, finite and strictly monotone.
    """
    times = _as_array(grid)
    steps = np.diff(times)
    wrong = np.flatnonzero(steps * np.sign(steps[0]) <= 0)
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"`grid` must run strictly one way, but grid[{i}] = {float(times[i])!r} and "
            f"grid[{i + 1}] = {float(times[i + 1])!r}, against its first step; sort it, without repeats"
        )
    return times


def _between(first: float, last: float, n: int) -> Grid:
    """n + 1 evenly spaced numbers, as a convex combination: no digits lost near a `last` far below `first`."""
    i = np.arange(n + 1)
    return ((n - i) * first + i * last) / n


def _finish(process: Process, times: Grid, first: float, last: float) -> Grid:
    """The exact end points, and the check that the steps between them can be told apart in float64."""
    times[0], times[-1] = first, last
    if not (np.diff(times) < 0).all():
        raise ValueError(
            f"{len(times) - 1} steps between {first!r} and {last!r} repeat a time of {process!r}; use fewer"
        )
    return times


def _check_rho(rho: Any) -> float:
    if not isinstance(rho, numbers.Real) or not 0 < float(rho) < math.inf:
        raise ValueError(f"`rho` = {rho!r} must be positive and finite; EDM's is 7, large ones space log nu evenly")
    return float(rho)


def _check_request(process: Process, n: Any, t_end: Any) -> tuple[int, float]:
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or int(n) < 1:
        raise ValueError(f"`n` = {n!r} must be a whole number of steps, at least 1")
    if t_end is None:
        return int(n), process.t_min
    if not isinstance(t_end, numbers.Real) or not 0 <= float(t_end) < process.T:
        raise ValueError(f"`t_end` = {t_end!r} must be a number in [0, T) with T = {process.T:g} of {process!r}")
    if t_end == 0:
        _check_zero_end(process)
    return int(n), float(t_end)


def _check_zero_end(process: Process) -> None:
    if process.t_min > 0 and process.sigma(0.0) > 0:
        raise ValueError(
            f"the grid ends at 0, where {process!r} still has sigma = {process.sigma(0.0):.6g}; "
            f"end it at t_min = {process.t_min:g} or another positive time"
        )


def _as_array(grid: Any) -> Grid:
    if isinstance(grid, Tensor):
        if grid.requires_grad:
            raise ValueError("`grid` requires grad, but times are not differentiated; pass grid.detach()")
        grid = grid.cpu().numpy()
    elif isinstance(grid, list | tuple):
        for i, time in enumerate(grid):
            if not isinstance(time, float | int) or isinstance(time, bool):
                raise TypeError(f"grid[{i}] is a {type(time).__name__}; pass Python floats or a float64 array")
        if grid and all(isinstance(time, int) for time in grid):
            raise TypeError(
                f"`grid` holds integers only, {_shown(grid)}; write times as floats: {float(grid[0])!r}, ..."
            )
        grid = np.array(grid, dtype=np.float64)
    elif not isinstance(grid, np.ndarray):
        raise TypeError(f"`grid` is a {type(grid).__name__}; pass a list of floats or a 1-D float64 array of times")
    if grid.dtype != np.float64:
        why = "1e-3 is 0.0010000000475 there" if grid.dtype == np.float32 else "times are real numbers"
        raise TypeError(
            f"`grid` has dtype {grid.dtype}, and must be float64 ({why}); make it in float64 from the start"
        )
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"`grid` has shape {grid.shape}; pass at least two times in one dimension, such as [T, t_min]")
    bad = np.flatnonzero(~np.isfinite(grid))
    if bad.size:
        raise ValueError(f"grid[{int(bad[0])}] = {grid[bad[0]]} is not a finite time")
    return np.array(grid, dtype=np.float64)


def _shown(grid: Sequence[float]) -> str:
    return str(list(grid)) if len(grid) <= 4 else f"[{grid[0]}, {grid[1]}, ..., {grid[-1]}]"
