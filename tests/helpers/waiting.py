"""Waiting for what another process does: for a fact, never for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["LONGEST_S", "wait_until"]

LONGEST_S = 60
"""After so long it is said that a fact did not come to be."""
_LOOK_S = 0.005


def wait_until(reached: Callable[[], bool]) -> None:
    """Return as soon as a fact is so; it fails after a minute."""
    end, never = time.monotonic() + LONGEST_S, threading.Event()
    while not reached():
        assert time.monotonic() < end, f"not so after {LONGEST_S} seconds"
        never.wait(_LOOK_S)
