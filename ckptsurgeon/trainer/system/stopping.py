"""Signals that end a run: it finishes its step and saves. A second one does not wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["SIGNALS", "SIGNAL_NAMES", "StopSignal", "catch_stop_signals", "ignore_sigterm"]


SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP))
SIGNAL_NAMES = tuple(signal.Signals(number).name for number in SIGNALS)


@dataclass
class StopSignal:
    """The signal that came, '' while none did."""

    name: str = ""

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM."""
        return 128 + int(signal.Signals[self.name]) if self.name else 0


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Note SIGINT, SIGTERM and SIGHUP while the block runs; after the first one they do what they did before."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def note(number: int, _: object) -> None:
        stop.name = signal.Signals(number).name
        _restore(before)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.getsignal(number)
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        _restore(before)


def ignore_sigterm() -> None:
    """Hear no SIGTERM from here on.

    Whoever started several processes ends those that are left when one ended, and they are to say what is left.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # since it was made deaf
            signal.signal(number, handler)
