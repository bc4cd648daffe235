"""Notices immediately that another rank has ended, even while this rank waits for its GPU.

The ranks form a ring. On each rank, a thread waits for a message from the previous rank. During training, no message is
sent. If a process dies, its connections are closed, and the next rank gets an error instead of a message. That next
rank then sends a message to the rank after it, and so on round the ring.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch

from .device_group import GRACE_S

__all__ = ["RankWatch"]

GONE, BYE = 0, 1
"""Messages between ranks. GONE: a rank died or had an error.

BYE: the sender left its ``RankWatch`` without an error.
"""
SEND_S = 30.0
"""The timeout of a message in seconds. The next rank always waits for the message, unless its process has ended."""


class RankWatch:
    """A ``with`` block in which the other ranks are watched; all ranks must enter and leave the block together.

    ``group`` is a gloo group that nothing else uses. If another rank ends, and the block has not ended ``GRACE_S``
    seconds later, ``give_up`` is called in the watching thread.
    """

    def __init__(self, group: Any, rank: int, size: int, give_up: Callable[[], None]) -> None:
        self._group, self._give_up = group, give_up
        self._before, self._behind = (rank - 1) % size, (rank + 1) % size
        self._left, self._has_sent = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch of the ranks", daemon=True)

    def __enter__(self) -> RankWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Send BYE (or GONE after an error) to the next rank, and wait for the message of the previous rank."""
        self._left.set()
        self._send(BYE if error is None else GONE)
        self._thread.join()

    def _watch(self) -> None:
        from torch import distributed

        message = torch.full((1,), GONE)
        with suppress(RuntimeError):  # the connection was closed: the process is gone
            distributed.recv(message, src=self._before, group=self._group)
        if int(message) != BYE:
            self._send(GONE)
            if not self._left.wait(GRACE_S):
                self._give_up()

    def _send(self, what: int) -> None:
        """Send the message ``what`` (GONE or BYE) to the next rank, unless this rank has already sent a message.

        The next rank receives only one message, so sending a second message would wait for ever.
        """
        from torch import distributed

        if not self._has_sent.acquire(blocking=False):
            return
        # The next rank may have ended. If it ends at this moment, gloo may wait for ever instead of raising an error.
        with suppress(RuntimeError):
            work = distributed.isend(torch.full((1,), what), dst=self._behind, group=self._group)
            if work is not None:
                work.wait(timedelta(seconds=SEND_S))
