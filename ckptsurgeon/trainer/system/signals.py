"""Signals that stop a run, and worker processes that ignore them.

Ctrl-C sends its signal to all processes of a group, and a service manager or a job scheduler signals all processes of a
run. If the signal ended a data worker, the run would end before it can save.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = [
    "SIGNALS",
    "SIGNAL_NAMES",
    "StopSignal",
    "catch_stop_signals",
    "ignore_sigterm",
    "start_loader",
    "worker_options",
]

T = TypeVar("T")


def worker_options(workers: int) -> dict[str, Any]:
    """Return options that make a DataLoader start ``workers`` worker processes that ignore stop signals.

    The workers are forks of this process. By default, Python 3.14 would fork them from a server process. They would
    then not inherit blocked signals, would not be children of this process, and would have to import users' datasets by
    name.
    """
    context = "fork" if workers else None
    return {"num_workers": workers, "multiprocessing_context": context, "worker_init_fn": _ignore_stop_signals}


def _ignore_stop_signals(worker: int) -> None:
    """Make a data worker ignore stop signals, except a SIGTERM from its parent; for a DataLoader's ``worker_init_fn``.

    The exception is needed because the parent's interpreter, when it exits, sends a SIGTERM to its workers and waits
    for them without a time limit.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_exit_for, args=(os.getppid(),), daemon=True).start()


def _exit_for(parent: int) -> None:
    """Wait for stop signals without end; at a SIGTERM from the process with the id ``parent``, end this process.

    All other stop signals are ignored.
    """
    while True:
        found = signal.sigwaitinfo(SIGNALS)
        if found.si_signo == signal.SIGTERM and found.si_pid == parent:
            os._exit(0)


def start_loader(loader: Iterable[T]) -> Iterator[T]:
    """Start the worker processes of a data loader, and return its iterator.

    While the workers start, they do not ignore stop signals yet. So these signals are blocked in the workers and in
    this process.
    """
    with _blocked_signals():
        return iter(loader)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block stop signals inside the ``with`` block, also in processes that are started there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


SIGNALS = (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP))
SIGNAL_NAMES = tuple(signal.Signals(number).name for number in SIGNALS)


@dataclass
class StopSignal:
    """The stop signal that this process received: ``name`` is its name, '' before a signal is received."""

    name: str = ""

    @property
    def exit_code(self) -> int:
        """The exit status that shells expect after a signal: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM."""
        return 128 + int(signal.Signals[self.name]) if self.name else 0


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Yield a StopSignal that records a SIGINT, SIGTERM or SIGHUP inside the block.

    After the first signal, the former handlers are set again, so that a second signal ends the process.
    """
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
    """Ignore SIGTERM from now on.

    When a process has ended, torchrun terminates the other processes, but these still have to save and report.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # else ignore_sigterm was called in the meantime
            signal.signal(number, handler)
