"""Lets the memory of one block be used again for the next one, instead of going back and forth to the kernel."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

__all__ = ["keep_freed_memory"]

KEPT = 31 << 20
"""Bytes of the block that is freed: the most that changes the threshold is 32 MB (DEFAULT_MMAP_THRESHOLD_MAX)."""


@cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed arrays of up to 31 MB; elsewhere this changes nothing.

    At first glibc takes memory for every array of more than 128 KB from the kernel, and gives it back. The kernel must
    clear each page of it, which cost a third of the time of a merge (400,000 page faults for each 750 MB). When a
    larger block is freed, glibc keeps all blocks up to that size, and up to twice as many bytes in all (see "dynamic
    mmap threshold" in mallopt(3)). So one block that is freed here is enough; its pages are never touched. A user who
    sets a threshold, as by MALLOC_MMAP_THRESHOLD_, turns this off.
    """
    with suppress(MemoryError):  # without it all is slower, but works
        bytearray(KEPT)
