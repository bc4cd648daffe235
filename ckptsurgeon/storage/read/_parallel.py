"""Several things at once, in threads that nobody waits for once one of them has failed or the user has had enough."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["each"]

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
