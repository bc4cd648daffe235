"""Outlines of checkpoints (keys, shapes and dtypes), for comparisons. A second process can read one of two outlines."""

from __future__ import annotations

import marshal
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...tensors.info import TensorInfo
from ...util.notes import notes_on_some

__all__ = ["Outline", "beside", "outline_from_plain", "outline_of"]

# Work in a second process, so that two large headers are read at the same time on two cores.
#
# Headers are read by Python code, which threads cannot run in parallel. The other process is forked, so that nothing
# is imported again, and returns plain data. If anything goes wrong in it, the caller does the work itself, and gets
# the error itself.

_PIECE = 1 << 20
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Start ``work`` in another process, and yield a function that waits for the result of ``work`` and returns it.

    The result must be plain data. The yielded function returns None if the work failed. If the system cannot fork, or
    if other threads run, nothing is started and the function returns None. In a forked process, locks that other
    threads held would never be released.
    """
    if not hasattr(os, "fork") or threading.active_count() > 1:
        yield lambda: None
        return
    read, write = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until the child has no handlers of ours
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
    """Do the work in the child process, write its result to a pipe, and exit without a message, even after an error.

    ``write`` is the descriptor of the pipe, ``blocked`` the signals that were blocked before the fork.
    """
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
    """Wait for a child process, and return the data that it wrote to the pipe ``read``; None if it failed.

    Removes the child's process id from ``left``, the list of running children.
    """
    pieces = []
    while piece := os.read(read, _PIECE):
        pieces.append(piece)
    _, status = os.waitpid(left.pop(), 0)
    return marshal.loads(b"".join(pieces)) if status == 0 else None


@dataclass(frozen=True)
class Outline:
    """A checkpoint's path, the dtypes and shapes of its tensors by key, and notes.

    ``coded`` has the keys of tensors that hold quantised codes, each with the quantisation method and the name of the
    quantised tensor. ``quantisation`` has the checkpoint's quantisation settings. ``names`` maps the key of each stored
    part to the name of its quantised tensor.
    """

    path: str
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...]
    coded: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    quantisation: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def to_plain(self) -> Any:
        """Return the outline as plain data, without the positions of tensors in files.

        ``outline_from_plain`` turns this data into an outline again.
        """
        tensors = [(key, info.dtype, info.shape) for key, info in self.tensors.items()]
        return self.path, tensors, self.notes, dict(self.coded), dict(self.quantisation), dict(self.names)

    def only(self, keys: Collection[str]) -> Outline:
        """Return the outline with only the tensors of ``keys``, and without notes on the other tensors."""
        left_out = self.tensors.keys() - keys
        tensors = {key: info for key, info in self.tensors.items() if key in keys}
        return replace(self, tensors=tensors, notes=tuple(notes_on_some(self.notes, left_out)))


def outline_of(checkpoint: Checkpoint) -> Outline:
    """Return the outline of an open checkpoint: its keys, shapes, dtypes, codes and notes, without values."""
    stripped = [f"the prefix {', '.join(checkpoint.stripped)} was removed from the keys of {checkpoint.path}"]
    notes = (*checkpoint.notes, *(stripped if checkpoint.stripped else []))
    codes = checkpoint.codes
    said = checkpoint.quantisation if codes else {}
    coded = {one.codes: (one.method, one.name) for one in codes.tensors if one.codes} if said else {}
    return Outline(checkpoint.path, dict(checkpoint.items()), notes, coded, said, codes.names)


def outline_from_plain(data: Any) -> Outline:
    """Return the outline from the plain data that ``Outline.to_plain`` returned."""
    path, tensors, notes, coded, said, names = data
    found = {key: TensorInfo(dtype, shape) for key, dtype, shape in tensors}
    by_key = {key: (method, name) for key, (method, name) in coded.items()}
    return Outline(path, found, tuple(notes), by_key, said, names)
