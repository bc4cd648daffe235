"""Which bytes of a file are there, how the others are asked for, and several things at once in threads."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["Intervals", "Range", "cut", "each", "joined"]

Range = tuple[int, int]
"""(begin, end) in bytes, ``end`` not among them."""


class Intervals:
    """A set of bytes, kept as ranges in order that neither overlap nor touch."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[Range]:
        return iter(zip(self._begins, self._ends, strict=True))

    def add(self, begin: int, end: int) -> None:
        """Put a range in."""
        if begin >= end:
            return
        first, last = bisect_left(self._ends, begin), bisect_right(self._begins, end)
        if first < last:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[last - 1])
        self._begins[first:last], self._ends[first:last] = [begin], [end]

    def missing(self, begin: int, end: int) -> list[Range]:
        """Return the parts of a range that are not in it."""
        found, at = [], begin
        for i in range(bisect_right(self._ends, begin), bisect_left(self._begins, end)):
            if at < self._begins[i]:
                found.append((at, self._begins[i]))
            at = self._ends[i]
        return [*found, (at, end)] if at < end else found


def joined(ranges: Iterable[Range], gap: int) -> list[Range]:
    """Join ranges that overlap, or have at most ``gap`` bytes between them."""
    found: list[Range] = []
    for begin, end in sorted(ranges):
        if found and begin - found[-1][1] <= gap:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def cut(ranges: Iterable[Range], most: int) -> list[Range]:
    """Cut ranges into pieces of at most ``most`` bytes."""
    return [(at, min(at + most, end)) for begin, end in ranges for at in range(begin, end, most)]


# Several things at once, in threads that nobody waits for once one of them has failed or the user has had enough.

T = TypeVar("T")


def each(items: Iterable[T], do: Callable[[T, threading.Event], None], number: int) -> None:
    """Do something for each of the items, in so many threads; raises what the first that fails raises.

    ``do`` is given an event too, which is set when what it does is no longer wanted. It may be waiting for a server
    then, and is left to itself.
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
