"""SIGINT and SIGTERM, which end training after the step they fall in."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Heard", "Interrupted", "watch"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LEFT = (None, signal.SIG_IGN)
"""Handlers that are not replaced: one not of Python's making, and none, as nohup leaves it."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, and saved; the message says how to go on."""


class Heard:
    """Whether a signal came."""

    signal: signal.Signals | None = None


@contextmanager
def watch(active: bool) -> Iterator[Heard]:
    """Inside, the first of SIGNALS is noted only, and the next acts as it did before. Outside the main thread, where Python
    lets no one listen to signals, and where not `active`, they act as ever; one that is ignored (nohup) still is."""
    heard = Heard()
    if not active or threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)
        before.clear()

    def note(number: int, frame: FrameType | None) -> None:
        heard.signal = signal.Signals(number)
        restore()
        os.write(2, f"\n{heard.signal.name}: stopping after this step; once more to stop at once\n".encode())

    for number in SIGNALS:
        if (handler := signal.getsignal(number)) not in LEFT:
            before[number] = handler
            signal.signal(number, note)
    try:
        yield heard
    finally:
        restore()
