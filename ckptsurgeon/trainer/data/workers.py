"""Worker processes that leave signals to the process that made them: it ends them when it is done.

Ctrl-C goes to every process of a group, and what stops a service or a job signals all of its processes. A worker that
dies of that takes the run with it, before it can save.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..system.stopping import SIGNALS

__all__ = ["ignore_stop_signals", "start_loader"]

T = TypeVar("T")


def ignore_stop_signals(worker: int) -> None:
    """Ignore what ends programs, but for a SIGTERM of the parent's: the ``worker_init_fn`` of a DataLoader.

    With that one the interpreter ends the workers that are left at its own end, and it waits for them for ever.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_ended_by, args=(os.getppid(),), daemon=True).start()


def _ended_by(parent: int) -> None:
    """Take signals, and end the process where the parent wants that."""
    while True:
        found = signal.sigwaitinfo(SIGNALS)
        if found.si_signo == signal.SIGTERM and found.si_pid == parent:
            os._exit(0)


def start_loader(loader: Iterable[T]) -> Iterator[T]:
    """Return the iterator of a loader; signals wait until its workers are deaf, in this process too."""
    with _held_back():
        return iter(loader)


@contextmanager
def _held_back() -> Iterator[None]:
    """Let signals wait while the block runs; processes that it starts inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
