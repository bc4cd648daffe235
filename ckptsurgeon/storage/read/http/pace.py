"""How long a server may take: for the head of an answer, for the next bytes, and for next to nothing at all.

A server that sends ``100 Continue`` for ever or a byte a second never lets a socket time out, so every read of a
connection is counted. httpx tells of each connection that it makes (https://www.python-httpx.org/advanced/extensions/,
"trace"); its ``read`` is replaced there.
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

__all__ = ["LONGEST_WAIT_S", "Pace", "Paces", "allowing", "follow", "timeout_s", "watch"]

TIMEOUT_S = 60.0
SLOWEST = 1024
"""Bytes of a body that come in a second at least."""
LONGEST_WAIT_S = 60.0
"""A server that asks for more patience than this is given up."""
_VARIABLE = "CKPTSURGEON_TIMEOUT"

_asked: list[float] = []
_now = threading.local()


def timeout_s() -> float:
    """Return the seconds without progress after which a server is given up: as asked, or as the environment says."""
    if _asked:
        return _asked[-1]
    said = os.environ.get(_VARIABLE, "")
    return checked_seconds(said, _VARIABLE) if said else TIMEOUT_S


def checked_seconds(said: str, name: str) -> float:
    """Return a number of seconds; raises ConfigError where a text is none."""
    try:
        found = float(said)
    except ValueError:
        found = math.nan
    if not 0 < found < 1e6:
        raise ConfigError(f"{name} is {escape(said)!r}, not a number of seconds.", hint=f"Write {name} 60.")
    return found


@contextmanager
def allowing(seconds: str) -> Iterator[None]:
    """Let servers have so many seconds without progress, in every thread, until the block ends."""
    _asked.append(checked_seconds(seconds, "--timeout"))
    try:
        yield
    finally:
        _asked.pop()


class Pace:
    """The time that an exchange with a server has; what is raised where it takes more is ``error`` of a text."""

    def __init__(self, limit_s: float, error: Callable[[str], Exception]) -> None:
        self._limit, self._error = limit_s, error
        self._head_until: float | None = None
        self._until: float | None = None
        self._came = 0

    def asked(self) -> None:
        """A request is sent, and the head of its answer is waited for."""
        self._head_until = time.monotonic() + self._limit

    def answered(self) -> None:
        """The head has come, and a body follows."""
        self._head_until = None
        if self._until is None:
            self._until = time.monotonic() + self._limit

    def left(self) -> float:
        """Return the seconds that the next bytes may take; raises the error where there are none."""
        in_head = self._head_until is not None
        until = self._head_until if in_head else self._until
        left = self._limit if until is None else until - time.monotonic()
        if left <= 0:
            what = "no answer" if in_head else f"only {self._came} bytes more"
            raise self._error(f"{what} within {self._limit:g} s")
        return left

    def count(self, nbytes: int) -> None:
        """So many bytes have come; enough of them begin the time anew."""
        if self._head_until is not None:
            return
        self._came += nbytes
        if self._came >= self._limit * SLOWEST:
            self._until, self._came = time.monotonic() + self._limit, 0


class Paces:
    """The pace of each thread that asks a hub: its client asks on its own, and again as long as one byte came."""

    def __init__(self) -> None:
        self._kept = threading.local()

    def asked(self, what: str) -> None:
        """A thread sends a request; the same one again has no time of its own."""
        if getattr(self._kept, "what", None) != what:
            self._kept.what, self._kept.pace = what, Pace(timeout_s(), _too_slow)
        follow(self._kept.pace)
        self._kept.pace.asked()

    def answered(self, *, again: bool) -> None:
        """The head of an answer has come; one that is no success, ``again`` False, leaves the next its own time."""
        pace = getattr(self._kept, "pace", None)
        if pace is not None:
            pace.answered()
            self._kept.what = self._kept.what if again else None


def _too_slow(why: str) -> SourceError:
    return SourceError(f"the hub is too slow: {why}.", hint="Try again later; --timeout SECONDS waits longer.")


def follow(pace: Pace | None) -> None:
    """Let what this thread reads from now on keep a pace, None for any."""
    _now.pace = pace


def watch(event: str, info: dict[str, Any]) -> None:
    """Count what a new connection reads: to be given to httpx as the extension "trace" of a request."""
    if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
        stream = info["return_value"]
        stream.read = _counted(stream.read)


def _counted(plain: Callable[..., bytes]) -> Callable[..., bytes]:
    def read(max_bytes: int, timeout: float | None = None) -> bytes:
        pace: Pace | None = getattr(_now, "pace", None)
        if pace is None:
            return plain(max_bytes, timeout)
        left = pace.left()
        data = plain(max_bytes, left if timeout is None else min(timeout, left))
        pace.count(len(data))
        return data

    return read
