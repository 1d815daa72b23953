"""Launches in Triton's interpreter whose programs run otherwise than one after another: a single one, at the end of a tensor
that nobody could walk through, or all of them backwards, as a GPU might.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def only_program(index: int) -> Iterator[list[tuple[int, ...]]]:
    """Every launch inside runs the program `index` of its grid's first axis only, and copies no argument; yields the grids."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    grids: list[tuple[int, ...]] = []

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        known = inspect.signature(self.fn).parameters
        bound = inspect.getcallargs(self.fn, *args, **{k: v for k, v in kwargs.items() if k in known})
        grid = (*self.grid, 1, 1)[:3]
        grids.append(grid)
        scope = interpreter._patch_lang(self.fn)
        try:
            interpreter.interpreter_builder.set_grid_dim(*grid)
            interpreter.interpreter_builder.set_grid_idx(index % grid[0], 0, 0)
            self.fn(**{k: v if k in self.constexprs else interpreter._implicit_cvt(v) for k, v in bound.items()})
        finally:
            scope.restore()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", call)
        yield grids


@contextmanager
def programs_backwards() -> Iterator[None]:
    """Every launch inside runs its programs from the last to the first."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder = interpreter.interpreter_builder
    forwards = type(builder).set_grid_idx

    def set_grid_idx(self: Any, *index: int) -> None:
        forwards(self, *(n - 1 - i for n, i in zip(self.grid_dim, index, strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(builder), "set_grid_idx", set_grid_idx)
        yield
