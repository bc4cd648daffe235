"""Pauses the cyclic garbage collector, or makes it run rarely: headers are many small objects that all stay in use."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collect_rarely", "no_collection", "rare_collection"]

RARELY = (10_000_000, 50, 50)
"""The thresholds of a command: two headers of 92,000 tensors make a million objects, which all stay in use."""


def collect_rarely() -> None:
    """Let the cyclic garbage collector run rarely from now on."""
    gc.set_threshold(*RARELY)


@contextmanager
def rare_collection() -> Iterator[None]:
    """Let the cyclic garbage collector run rarely within the ``with`` block, to save time."""
    thresholds = gc.get_threshold()
    collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause the cyclic garbage collector within the ``with`` block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
