"""Work done in another process, beside this one: two large headers are read at once on two cores.

Reading a header is Python's own work, which threads of one process do by turns. The other process is forked, so that
nothing is imported anew, and gives back plain data. Whatever goes wrong in it, the caller does the work itself, and
meets the error itself.
"""

from __future__ import annotations

import marshal
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["beside"]

_PIECE = 1 << 20
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Start ``work`` in another process; what is given waits for it and returns its plain data, None where it failed.

    Where there is no forking, or other threads run, whose locks a forked process would never see released, nothing is
    started, and None is returned.
    """
    if not hasattr(os, "fork") or threading.active_count() > 1:
        yield lambda: None
        return
    read, write = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until the child no longer has our handlers
    child = os.fork()
    if child == 0:
        os.close(read)
        _work_and_end(work, write, blocked)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(write)
    left = [child]
    try:
        yield lambda: _result(read, left)
    finally:
        os.close(read)
        for one in left:
            with suppress(OSError):
                os.kill(one, signal.SIGKILL)
                os.waitpid(one, 0)


def _work_and_end(work: Callable[[], Any], write: int, blocked: set[Any]) -> None:
    """Do the work in the child, write what comes of it, and end without a word whatever happens."""
    status = 1
    try:
        for number in _STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        data = memoryview(marshal.dumps(work()))
        while data:
            data = data[os.write(write, data[:_PIECE]) :]
        status = 0
    finally:
        os._exit(status)


def _result(read: int, left: list[int]) -> Any:
    """Return what a child wrote, None where it did not end well."""
    pieces = []
    while piece := os.read(read, _PIECE):
        pieces.append(piece)
    _, status = os.waitpid(left.pop(), 0)
    return marshal.loads(b"".join(pieces)) if status == 0 else None
