"""Runs tasks in threads, and yields their results in order, with a bounded number of unfinished tasks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

T = TypeVar("T")

THREADS = min(8, len(os.sched_getaffinity(0)))


def in_order(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the result of each task, in the order of the tasks; the tasks run in threads.

    About two tasks per thread are submitted at a time. If a task fails, its error is raised, and no more tasks start.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="patch") as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > 2 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
