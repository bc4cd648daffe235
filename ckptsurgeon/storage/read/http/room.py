"""Room on this machine for what comes from elsewhere: some is left to everybody else, however much is sent."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["Room", "existing", "room"]

LEFT = 1 << 30
SHARE = 0.05
"""So many bytes stay free, or on a small file system this part of it."""
EVERY = 16 << 20
"""After so many bytes it is looked again."""


def room(found: os.statvfs_result) -> int | None:
    """Return how many bytes may be written to a file system, None where it does not say."""
    if not found.f_blocks:
        return None
    left = min(LEFT, int(found.f_blocks * found.f_frsize * SHARE))
    return max(0, found.f_bavail * found.f_frsize - left)


def existing(path: str) -> str:
    """Return a path, or the nearest folder above it that is there."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


class Room:
    """Looks now and then whether there is room for what is written; ``look`` gives a file system's figures."""

    def __init__(self, look: Callable[[], os.statvfs_result]) -> None:
        self._look = look
        self._known = 0

    def take(self, nbytes: int) -> bool:
        """Whether there is room for so many more bytes."""
        if self._known < nbytes:
            found = room(self._look())
            if found is not None and found < nbytes:
                return False
            self._known = EVERY if found is None else min(EVERY, found)
        self._known -= nbytes
        return True
