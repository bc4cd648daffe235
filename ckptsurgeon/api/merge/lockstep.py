"""Keeps runs that read the same files at one pace, so that the system reads each block from the disk once.

A run that is ahead waits for the slower runs. These then find, in the page cache, the blocks that it has read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Condition
from typing import TypeVar

from ...errors import CheckpointError
from ..inputs.argument_types import Progress

__all__ = ["AHEAD", "in_lockstep"]

AHEAD = 32 << 20
"""A run waits if it has written more bytes than the slowest run, by more than this number."""

T = TypeVar("T")


def in_lockstep(runs: Sequence[Callable[[Progress], T]], progress: Progress | None = None) -> list[T]:
    """Return the results of ``runs``, each in its own thread; none gets more than ``AHEAD`` bytes ahead of another one.

    Each run is called with a function of (bytes done, total bytes), which it must call while it works; ``progress`` is
    called with the sums over all runs. If a run fails, the others are stopped when they next call this function, and
    its error is raised.
    """
    pace = _Pace(len(runs), progress)
    with ThreadPoolExecutor(max(1, len(runs)), thread_name_prefix="ckpt-window") as pool:
        futures = [pool.submit(pace.run, index, run) for index, run in enumerate(runs)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pace.stop()
            raise
        return [future.result() for future in futures]


class _StoppedError(CheckpointError):
    """Raised in a run to end it, because another run has failed."""


class _Pace:
    def __init__(self, number: int, progress: Progress | None) -> None:
        self._done, self._totals = [0] * number, [0] * number
        self._running, self._stopped = {*range(number)}, False
        self._progress, self._moved = progress, Condition()

    def run(self, index: int, run: Callable[[Progress], T]) -> T:
        try:
            return run(lambda done, total: self._advance(index, done, total))
        finally:
            with self._moved:
                self._running.discard(index)
                self._moved.notify_all()

    def stop(self) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify_all()

    def _advance(self, index: int, done: int, total: int) -> None:
        with self._moved:
            before = self._slowest()
            self._done[index], self._totals[index] = done, total
            if self._progress is not None:
                self._progress(sum(self._done), sum(self._totals))
            if self._slowest() != before:  # to wake all runs for each block would take as long as the merging
                self._moved.notify_all()
            self._moved.wait_for(lambda: self._stopped or done - self._slowest() <= AHEAD)
            if self._stopped:
                raise _StoppedError("stopped, because another output of this run failed.")

    def _slowest(self) -> int:
        return min((self._done[index] for index in self._running), default=0)
