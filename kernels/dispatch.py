"""Which implementation of a kernel runs: one table, one rule, one way to override it.

The rule: what `use(name)` forces; else Triton for tensors on a GPU and numba for tensors on the CPU, where they are
installed and have the kernel; else the eager reference. **A backend that lacks a kernel, or lacks it for a dtype, runs
that kernel's reference**, which has the same meaning and the same precision; a backend that has no kernel at all is
refused. A later backend is a row of the table: no caller changes.

A compiler is not waited for where eager torch would be done sooner: unless forced, an implementation with a
`load_cost` runs only once the eager work of this process has cost as much as loading it. Time depends on that, the
numbers do not.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

BACKENDS = ("reference", "numba", "triton")
PREFERRED = {"cpu": "numba", "cuda": "triton"}


class Implementation(NamedTuple):
    """A backend's version of a kernel: imported when it is first needed, so that importing the package stays cheap."""

    module: str
    function: str
    dtypes: tuple[torch.dtype, ...] | None = None  # None: all that the reference takes
    load_cost: int = 0  # elements that the reference makes in the time of the first call


CALL_COST = 10_000  # elements that cost as much as an eager call's overhead (normals: 0.4 ms against 40 ns each)
TABLE: dict[tuple[str, str], Implementation] = {
    ("combine", "reference"): Implementation("halfbridge.kernels.combine", "combine_reference"),
    ("langevin", "reference"): Implementation("halfbridge.kernels.langevin", "langevin_reference"),
    ("normal", "reference"): Implementation("halfbridge.kernels.normal", "fill_reference"),
    ("normal", "numba"): Implementation(
        "halfbridge.kernels.normal_numba",
        "fill_numba",
        dtypes=(torch.float32,),
        load_cost=1 << 22,
    ),
}

_forced: ContextVar[str | None] = ContextVar("halfbridge_kernels_backend", default=None)
_spent: dict[tuple[str, str], int] = {}  # eager work so far, in elements, where something faster waits to be loaded
_loaded: dict[tuple[str, str], Callable[..., Any]] = {}
_broken: set[str] = set()


def resolve(kernel: str, device: str, dtype: torch.dtype, elements: int = 0) -> Callable[..., Any]:
    """The function that runs `kernel` on tensors of that device type and dtype, for a request of that many elements."""
    forced = _forced.get()
    if forced is not None:
        check_runs_on(forced, device)
    name = forced or PREFERRED.get(device, "reference")
    entry = TABLE.get((kernel, name))
    if entry is None or (entry.dtypes is not None and dtype not in entry.dtypes):
        return load(kernel, "reference")
    if forced is not None or name == "reference":
        return load(kernel, name)
    if installed(name) and pays(kernel, name, elements):
        try:
            return load(kernel, name)
        except ImportError as error:
            give_up(name, error)
    return load(kernel, "reference")


def pays(kernel: str, name: str, elements: int) -> bool:
    """Whether it is loaded, or the eager work so far, with this request, has cost as much as loading it."""
    key = (kernel, name)
    if key in _loaded:
        return True
    _spent[key] = _spent.get(key, 0) + elements + CALL_COST
    return _spent[key] >= TABLE[key].load_cost


def backend(device: torch.device | str = "cpu") -> str:
    """Name of the backend that runs for tensors on `device`: what `use` forces, else the fastest that is installed."""
    kind = torch.device(device).type
    forced = _forced.get()
    if forced is not None:
        check_runs_on(forced, kind)
        return forced
    return PREFERRED[kind] if PREFERRED.get(kind) in available() else "reference"


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force one backend inside a `with` block: "reference", "numba" or "triton".

    Holds for this thread (or async task) and nests. "triton" on CPU tensors means Triton's interpreter and needs
    TRITON_INTERPRET=1. ValueError for an unknown name, RuntimeError for a backend that cannot run here.
    """
    if name not in BACKENDS:
        raise ValueError(f"`name` = {name!r} is no backend; pass one of {', '.join(BACKENDS)}")
    if name not in available():
        reason = "is not installed" if any(key[1] == name for key in TABLE) else "has no kernels yet"
        raise RuntimeError(f"`name` = {name!r}: this backend {reason}; available here: {', '.join(available())}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def available() -> tuple[str, ...]:
    """The backends that have at least one kernel and whose package is installed."""
    return tuple(name for name in BACKENDS if any(key[1] == name for key in TABLE) and installed(name))


def check_runs_on(name: str, device: str) -> None:
    """Refuse a forced backend for tensors it cannot handle."""
    if name == "numba" and device != "cpu":
        raise RuntimeError(
            f"backend 'numba' was forced but the tensors are on {device}; move them to the CPU or leave `use`"
        )
    if name == "triton" and device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "backend 'triton' was forced but the tensors are on the CPU; set TRITON_INTERPRET=1 before the start to "
            f"run Triton's interpreter, or use one of {', '.join(n for n in available() if n != 'triton')}"
        )


def installed(name: str) -> bool:
    return name == "reference" or (name not in _broken and found(name))


@functools.cache
def found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def give_up(name: str, error: ImportError) -> None:
    """A package is found but fails to import (numba before it supports the installed numpy, say): say so once."""
    _broken.add(name)
    warnings.warn(
        f"the {name!r} backend is installed but fails to import ({error}); the reference runs", RuntimeWarning, 4
    )


def load(kernel: str, name: str) -> Callable[..., Any]:
    key = (kernel, name)
    if key not in _loaded:
        entry = TABLE[key]
        _loaded[key] = getattr(importlib.import_module(entry.module), entry.function)
    return _loaded[key]
