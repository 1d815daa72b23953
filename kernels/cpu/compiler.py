"""numba, for loops that are built from plain functions: names replaced, stages vectorised, kernels cached on disk."""

import hashlib
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba

if getattr(numba.config, "DISABLE_JIT", False):
    raise ImportError("NUMBA_DISABLE_JIT is set")


def rebound(function: Callable[..., Any], **names: Any) -> Any:
    """The function with some of its globals replaced.

    Its precision, if it has one, becomes part of its name: numba names machine code by function, types of arguments and a count
    that starts anew in each process, so that code from its cache would otherwise call what this process compiled for another
    precision under the same name, or the reverse (a workspace half as large, written beyond its end).
    """
    found = {**function.__globals__, **names}
    fresh = types.FunctionType(function.__code__, found, function.__name__, None, function.__closure__)
    fresh.__qualname__ = (
        f"{function.__qualname__}_{names['REAL'].__name__}" if "REAL" in names else function.__qualname__
    )
    return fresh


def inlined(function: Callable[..., Any], **names: Any) -> Any:
    """The function, compiled into its callers; a call would stop the vectoriser."""
    return numba.njit(rebound(function, **names), inline="always")


def stages(functions: Iterable[Callable[..., Any]], names: dict[str, Any]) -> dict[str, Any]:
    """`names` and the compiled functions by their names, each with those before it: loops over blocks."""
    names = dict(names)
    for function in functions:
        names[function.__name__] = numba.njit(rebound(function, **names), error_model="numpy")
    return names


def fingerprint(*modules: types.ModuleType) -> str:
    """Of the files of those modules and of this one.

    A kernel has it as a free variable, which makes it part of numba's cache key. By itself that key knows the kernel's
    own file only, and would go on serving code compiled from an older version of what the kernel calls.
    """
    files = (__file__, *(str(module.__file__) for module in modules))
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def cached(build: Callable[[bool], Any]) -> Any:
    """build(cache), which compiles a kernel or reads it from numba's cache: beside its file, else in the user's cache
    folder, else nowhere.
    """
    try:
        return build(True)
    except (RuntimeError, OSError):  # numba found no folder to cache in, or one that cannot be written after all
        return build(False)


def direct(kernel: Any) -> Any:
    """The compiled function of a kernel with one signature: the dispatcher before it looks up the types of the arguments
    at every call, which costs as much as 0.2 us of work.
    """
    (compiled,) = kernel.overloads.values()
    return getattr(compiled, "entry_point", kernel)
