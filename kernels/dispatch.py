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
import sys
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
    call_cost: int = 0  # elements that cost the reference as much as a call's overhead


TABLE: dict[tuple[str, str], Implementation] = {
    ("combine", "reference"): Implementation("halfbridge.kernels.combine", "combine_reference"),
    ("combine", "numba"): Implementation(
        "halfbridge.kernels.cpu.combine",
        "combine_numba",
        dtypes=(torch.float32, torch.float64),
        load_cost=1 << 29,  # 0.6 s against 1 ns for an element of a sum, 2 us for a call
        call_cost=2000,
    ),
    ("combine", "triton"): Implementation("halfbridge.kernels.gpu.combine", "combine_triton"),
    ("edm_input", "reference"): Implementation("halfbridge.kernels.edm_precondition", "edm_input_reference"),
    ("edm_input", "triton"): Implementation("halfbridge.kernels.gpu.edm_precondition", "edm_input_triton"),
    ("edm_output", "reference"): Implementation("halfbridge.kernels.edm_precondition", "edm_output_reference"),
    ("edm_output", "triton"): Implementation("halfbridge.kernels.gpu.edm_precondition", "edm_output_triton"),
    ("edm_scale", "reference"): Implementation("halfbridge.kernels.edm_precondition", "edm_scale_reference"),
    ("edm_scale", "triton"): Implementation("halfbridge.kernels.gpu.edm_precondition", "edm_scale_triton"),
    ("ema_update", "reference"): Implementation("halfbridge.kernels.ema_update", "ema_update_reference"),
    ("ema_update", "triton"): Implementation("halfbridge.kernels.gpu.ema_update", "ema_update_triton"),
    ("error_norm", "reference"): Implementation("halfbridge.kernels.error_norm", "error_norm_reference"),
    ("error_norm", "triton"): Implementation("halfbridge.kernels.gpu.error_norm", "error_norm_triton"),
    ("hutchinson_dot", "reference"): Implementation("halfbridge.kernels.hutchinson_dot", "hutchinson_dot_reference"),
    ("hutchinson_dot", "triton"): Implementation("halfbridge.kernels.gpu.hutchinson_dot", "hutchinson_dot_triton"),
    ("hutchinson_probe", "reference"): Implementation(
        "halfbridge.kernels.hutchinson_probe", "hutchinson_probe_reference"
    ),
    ("hutchinson_probe", "triton"): Implementation(
        "halfbridge.kernels.gpu.hutchinson_probe", "hutchinson_probe_triton"
    ),
    ("langevin", "reference"): Implementation("halfbridge.kernels.langevin", "langevin_reference"),
    ("langevin", "triton"): Implementation("halfbridge.kernels.gpu.langevin", "langevin_triton"),
    ("mixture_field", "reference"): Implementation("halfbridge.kernels.mixture_reference", "mixture_field_reference"),
    ("mixture_field", "triton"): Implementation("halfbridge.kernels.gpu.mixture_field", "mixture_field_triton"),
    ("normal", "reference"): Implementation("halfbridge.kernels.normal", "fill_reference"),
    ("normal", "numba"): Implementation(
        "halfbridge.kernels.cpu.normal",
        "fill_numba",
        dtypes=(torch.float32, torch.float64),
        load_cost=1 << 22,  # 0.2 s against 40 ns for a normal, 0.4 ms for a call
        call_cost=10_000,
    ),
    ("normal", "triton"): Implementation("halfbridge.kernels.gpu.normal", "fill_triton"),
    ("normal_sum", "reference"): Implementation("halfbridge.kernels.normal_sum", "normal_sum_reference"),
    ("normal_sum", "numba"): Implementation(
        "halfbridge.kernels.cpu.normal_sum",
        "normal_sum_numba",
        dtypes=(torch.float32, torch.float64),
        load_cost=1 << 22,  # as normal's, whose stages it is made of
        call_cost=10_000,
    ),
}

IMPORTED = 16  # how much sooner a kernel pays once its package is there

_forced: ContextVar[str | None] = ContextVar("halfbridge_kernels_backend", default=None)
_spent: dict[tuple[str, str], int] = {}  # eager work so far, in elements, where something faster waits to be loaded
_loaded: dict[tuple[str, str], Callable[..., Any]] = {}
_broken: set[str] = set()


def resolve(kernel: str, device: str, dtype: torch.dtype, elements: int = 0) -> Callable[..., Any]:
    """The function that runs `kernel` on tensors of that device type and dtype, for a request of that many elements."""
    return select(kernel, device, dtype, elements)[1]


def select(kernel: str, device: str, dtype: torch.dtype, elements: int = 0) -> tuple[str, Callable[..., Any]]:
    """`resolve`, with the name of the backend that the function belongs to."""
    forced = _forced.get()
    if forced is not None:
        check_runs_on(forced, device)
    name = forced or PREFERRED.get(device, "reference")
    key = (kernel, name)
    entry = TABLE.get(key)
    lacking = entry is None or (entry.dtypes is not None and dtype not in entry.dtypes)
    loaded = device == "cpu" and key in _loaded
    if lacking or (forced is None and not loaded and not ready(kernel, name, device, elements)):
        key = (kernel, "reference")
    return key[1], _loaded.get(key) or load(*key)


def ready(kernel: str, name: str, device: str, elements: int) -> bool:
    """Whether a backend's kernel is loaded, or can be and pays; a backend that is installed and cannot be is given up."""
    if name == "reference":
        return True
    if not installed(name) or not pays(kernel, name, elements):
        return False
    if reason := hindrance(name, device):
        give_up(name, f"cannot run here ({reason})")
        return False
    try:
        load(kernel, name)
    except ImportError as error:
        give_up(name, f"fails to import ({error})")
        return False
    return True


def pays(kernel: str, name: str, elements: int) -> bool:
    """Whether it is loaded, or the eager work so far, with this request, has cost as much as loading it: mostly the
    import of its package, after which a kernel comes from the compiler's cache in 10 ms.
    """
    key, entry = (kernel, name), TABLE[kernel, name]
    if key in _loaded:
        return True
    _spent[key] = _spent.get(key, 0) + elements + entry.call_cost
    return _spent[key] >= entry.load_cost // (IMPORTED if name in sys.modules else 1)


def backend(device: torch.device | str = "cpu") -> str:
    """Name of the backend that runs for tensors on `device`: what `use` forces, else the fastest that can run there."""
    kind = torch.device(device).type
    forced = _forced.get()
    if forced is not None:
        check_runs_on(forced, kind)
        return forced
    name = PREFERRED.get(kind, "reference")
    return name if name in available() and not hindrance(name, kind) else "reference"


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
    if reason := hindrance(name, device):
        raise RuntimeError(f"backend {name!r} was forced but cannot run on {device} here: {reason}")


def hindrance(name: str, device: str) -> str:
    """Why an installed backend cannot run on that device: Triton without a driver, or without a compiler to bind it."""
    return driver_error() if name == "triton" and device not in ("cpu", "meta") else ""


@functools.cache
def driver_error() -> str:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # whatever it is, eager torch still runs
        return f"Triton finds no driver: {error}"
    return ""


def installed(name: str) -> bool:
    return name == "reference" or (name not in _broken and found(name))


@functools.cache
def found(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def give_up(name: str, why: str) -> None:
    """A package is found but of no use (numba before it supports the installed numpy, say): say so once."""
    _broken.add(name)
    warnings.warn(f"the {name!r} backend is installed but {why}; the reference runs", RuntimeWarning, 4)


def load(kernel: str, name: str) -> Callable[..., Any]:
    key = (kernel, name)
    if key not in _loaded:
        entry = TABLE[key]
        _loaded[key] = getattr(importlib.import_module(entry.module), entry.function)
    return _loaded[key]
