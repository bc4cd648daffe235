"""Runs tasks in threads and gives their results in order, with few of them waiting at a time."""

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
    """Yield the result of each task, in the order of the tasks, which run in threads.

    At most two tasks for each thread run or wait. If one fails, its error is raised and the others are not begun.
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
