"""How much memory a test may take, and how much of its own time it may compute for.

What costs more than linear is stopped, a slow machine is not.
Some machines are three times as slow as others, and one that is busy is slower still. So the limit
follows the machine: it is as long as half a billion turns of a loop in Python take there. A cost that grows as the
square of a file's size takes hours with the files that are tried, and where a bound is missing there is no end.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

__all__ = ["allowed_s", "in_time", "little_memory"]

TURNS = 1_000_000
TIMES = 500


@cache
def allowed_s() -> int:
    """Return the limit in seconds of processor time, measured once: some 40 where a million turns take 0.08."""
    began = time.process_time()
    total = 0
    for turn in range(TURNS):
        total += turn & 7
    return max(round(TIMES * (time.process_time() - began)), 1)


@contextmanager
def in_time() -> Iterator[None]:
    """Fail what computes for longer than the limit."""
    limit = allowed_s()

    def late(*_: object) -> None:
        raise TimeoutError(f"over {limit} seconds")

    former = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process take half a gigabyte more, and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (512 << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
