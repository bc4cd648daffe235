"""How much memory a test may take, and how much of its own time it may compute for.

What costs more than linear is stopped, a slow machine is not.
Some machines are three times as slow as others, and one that is busy is slower still. So the limit
follows the machine: it is as long as half a billion turns of a loop in Python take there. A cost that grows as the
square of a file's size takes hours with the files that are tried, and where a bound is missing there is no end.
"""

from __future__ import annotations

import faulthandler
import io
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

from ckptsurgeon.cli import main

from .forked import Forked, as_ckpt

__all__ = ["allowed_s", "bounded", "in_time", "little_memory"]

TURNS = 1_000_000
TIMES = 500
LEAST_S = 10


@cache
def allowed_s() -> int:
    """Return the limit in seconds of processor time, measured once: some 40 where a million turns take 0.08."""
    began = time.process_time()
    total = 0
    for turn in range(TURNS):
        total += turn & 7
    return max(round(TIMES * (time.process_time() - began)), 1)


def _part_of_the_limit(share: int) -> int:
    """Return one part of so many of the limit in seconds, but not less than ten.

    What takes half a second alone takes several in a process forked from a large one, on cores that others use too.
    """
    return max(allowed_s() // share, LEAST_S)


@contextmanager
def in_time(share: int = 1) -> Iterator[None]:
    """Fail what computes for longer than the limit; of a smaller file ask for a ``share``, one part of so many."""
    limit = _part_of_the_limit(share)

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
    resource.setrlimit(resource.RLIMIT_AS, (_taken() + (512 << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def bounded(*args: object, memory: int, share: int = 1) -> Forked:
    """Run ``ckpt`` in a forked process that may take so many bytes more, and compute for as long as the limit.

    Of a smaller file ask for a ``share``: then it may take and compute one part of so many.
    If it computes for longer, it says where, and SIGXCPU ends it; if it waits for much longer, it says where, and the
    test fails. Started anew it would only import the same again.
    """

    seconds = _part_of_the_limit(share)  # measured here once, and not in each forked process

    def work() -> int:
        most = _taken() + memory // share
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        faulthandler.register(signal.SIGXCPU, file=2, chain=True)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, 2 * seconds))
        return as_ckpt(*args)

    _import_what_it_needs(str(args[0]))
    done = Forked(work)
    done.ended(10 * allowed_s())
    return done


@cache
def _import_what_it_needs(verb: str) -> None:
    """Let a verb look at a file that is no checkpoint: what it imports is there when it is forked."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main([verb, __file__])


def _taken() -> int:
    """Return how many bytes of address space this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
