"""Helps to fetch a file in ranges: a set of received ranges, functions that join and cut ranges, and threads."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Intervals", "Range", "cut", "joined", "run_in_threads"]

Range = tuple[int, int]
"""(begin, end) in bytes; ``end`` is exclusive."""


class Intervals:
    """A set of bytes of a file, such as the received bytes, kept as sorted ranges that neither overlap nor touch."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[Range]:
        return iter(zip(self._begins, self._ends, strict=True))

    def add(self, begin: int, end: int) -> None:
        """Add the bytes from the offset ``begin`` up to the offset ``end`` (exclusive)."""
        if begin >= end:
            return
        first, last = bisect_left(self._ends, begin), bisect_right(self._begins, end)
        if first < last:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[last - 1])
        self._begins[first:last], self._ends[first:last] = [begin], [end]

    def missing(self, begin: int, end: int) -> list[Range]:
        """Return the parts of a range that are not in the set."""
        found, at = [], begin
        for i in range(bisect_right(self._ends, begin), bisect_left(self._begins, end)):
            if at < self._begins[i]:
                found.append((at, self._begins[i]))
            at = self._ends[i]
        return [*found, (at, end)] if at < end else found


def joined(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Return the ranges, sorted; ranges that overlap or have at most ``gap`` bytes between them are joined."""
    found: list[Range] = []
    for begin, end in sorted(ranges):
        if found and begin - found[-1][1] <= gap:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def cut(ranges: Iterable[Range], most: int) -> list[Range]:
    """Return the ranges cut into pieces of at most ``most`` bytes."""
    return [(at, min(at + most, end)) for begin, end in ranges for at in range(begin, end, most)]


# Runs work in several threads; does not wait for the other threads if one thread fails or the user interrupts.

T = TypeVar("T")


def run_in_threads(items: Iterable[T], do: Callable[[T, threading.Event], None], number: int) -> None:
    """Call ``do`` for each item, in ``number`` threads; raises the first error that a call raises.

    The arguments of ``do`` are the item and an event. The event is set if the work is no longer needed, for example
    after an error. Then this function does not wait for calls that are still running, such as a call that waits for a
    server.
    """
    waiting, stopped = deque(items), threading.Event()
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stopped.is_set():
                try:
                    item = waiting.popleft()
                except IndexError:
                    break
                do(item, stopped)
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)

    threads = [threading.Thread(target=work, name="fetch", daemon=True) for _ in range(min(number, len(waiting)))]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            error = ends.get()
            if error is not None:
                raise error
    finally:
        stopped.set()
