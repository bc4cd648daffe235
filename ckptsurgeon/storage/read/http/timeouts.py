"""Limits how long a server may take to begin its response, and how slowly it may send the rest.

If a server sends ``100 Continue`` for ever, or one byte each second, the socket never times out. So the bytes of every
read are counted: the method ``read`` of each connection is replaced by one that counts. httpx reports each connection
that it makes (https://www.python-httpx.org/advanced/extensions/, "trace").
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ....errors import ConfigError, SourceError
from ....util.text import escape

__all__ = [
    "LONGEST_WAIT_S",
    "ThreadTimeLimits",
    "TimeLimit",
    "count_reads",
    "limit_reads",
    "server_timeout",
    "timeout_s",
]

TIMEOUT_S = 60.0
"""How many seconds a server may take without progress, if the user sets no other limit."""
SLOWEST = 1024
"""The fewest bytes of a body that a server must send in a second."""
LONGEST_WAIT_S = 60.0
"""If a server asks to wait for more than this many seconds, the request is not repeated."""
_VARIABLE = "CKPTSURGEON_TIMEOUT"

_asked: list[float] = []
_now = threading.local()


def timeout_s() -> float:
    """Return the seconds that a server may take without progress: from the option, the environment, or the default."""
    if _asked:
        return _asked[-1]
    said = os.environ.get(_VARIABLE, "")
    return checked_seconds(said, _VARIABLE) if said else TIMEOUT_S


def checked_seconds(said: str, name: str) -> float:
    """Return the text ``said`` as a number of seconds; raises ConfigError if it is not such a number.

    ``name`` is the option or variable from which the text comes.
    """
    try:
        found = float(said)
    except ValueError:
        found = math.nan
    if not 0 < found < 1e6:
        raise ConfigError(
            f"{name} is {escape(said)!r}, not a number of seconds above 0 and below 1000000.",
            hint="Write a number, such as 60.",
        )
    return found


@contextmanager
def server_timeout(seconds: str) -> Iterator[None]:
    """Until the block ends, set the seconds that servers may take without progress, for all threads."""
    _asked.append(checked_seconds(seconds, "--timeout"))
    try:
        yield
    finally:
        _asked.pop()


class TimeLimit:
    """The time limit of one request and its response; ``error`` is a function that returns the error for a timeout."""

    def __init__(self, limit_s: float, error: Callable[[str], Exception]) -> None:
        self._limit, self._error = limit_s, error
        self._head_until: float | None = None
        self._until: float | None = None
        self._came = 0

    def asked(self) -> None:
        """Start the time limit for the head (the headers) of the response to a request; ``answered`` ends it."""
        self._head_until = time.monotonic() + self._limit

    def answered(self) -> None:
        """Record that the head of the response was received: from now on, the time limit for the body applies."""
        self._head_until = None
        if self._until is None:
            self._until = time.monotonic() + self._limit

    def left(self) -> float:
        """Return the seconds that are left for the next bytes; raises the exception of ``error`` if none are left."""
        in_head = self._head_until is not None
        until = self._head_until if in_head else self._until
        left = self._limit if until is None else until - time.monotonic()
        if left <= 0:
            what = "no answer" if in_head else f"only {self._came} more bytes"
            raise self._error(f"{what} within {self._limit:g} s")
        return left

    def count(self, nbytes: int) -> None:
        """Count received bytes of the body; if the server was fast enough, the time limit starts again."""
        if self._head_until is not None:
            return
        self._came += nbytes
        if self._came >= self._limit * SLOWEST:
            self._until, self._came = time.monotonic() + self._limit, 0


class ThreadTimeLimits:
    """The time limits of requests to a hub, for each thread.

    Without them, huggingface_hub would retry for ever as long as single bytes are received.
    """

    def __init__(self) -> None:
        self._kept = threading.local()

    def asked(self, what: str) -> None:
        """Start the time limit of this thread's request ``what``.

        A retry of the same request does not get more time.
        """
        if getattr(self._kept, "what", None) != what:
            self._kept.what, self._kept.pace = what, TimeLimit(timeout_s(), _too_slow)
        limit_reads(self._kept.pace)
        self._kept.pace.asked()

    def answered(self, *, again: bool) -> None:
        """Start the time limit of the body, after the head of a response was received.

        If ``again`` is True, a repetition of the request by this thread shares this time limit; otherwise it gets a new
        one.
        """
        pace = getattr(self._kept, "pace", None)
        if pace is not None:
            pace.answered()
            self._kept.what = self._kept.what if again else None


def _too_slow(why: str) -> SourceError:
    return SourceError(f"the hub is too slow: {why}.", hint="Try again later; --timeout SECONDS waits longer.")


def limit_reads(pace: TimeLimit | None) -> None:
    """Apply a time limit to everything that this thread reads from now on; None removes the limit."""
    _now.pace = pace


def count_reads(event: str, info: dict[str, Any]) -> None:
    """Make each new connection count the bytes that it reads; httpx calls this function as its extension "trace"."""
    if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
        stream = info["return_value"]
        stream.read = _counted(stream.read)


def _counted(plain: Callable[..., bytes]) -> Callable[..., bytes]:
    def read(max_bytes: int, timeout: float | None = None) -> bytes:
        pace: TimeLimit | None = getattr(_now, "pace", None)
        if pace is None:
            return plain(max_bytes, timeout)
        left = pace.left()
        data = plain(max_bytes, left if timeout is None else min(timeout, left))
        pace.count(len(data))
        return data

    return read
