"""Makes glibc reuse the memory of one block for the next block, instead of returning it to the kernel each time."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

__all__ = ["keep_freed_memory"]

KEPT = 31 << 20
"""The bytes of the block that is freed; only blocks of up to 32 MB (DEFAULT_MMAP_THRESHOLD_MAX) have an effect."""


@cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed arrays of up to 31 MB; with other C libraries this has no effect.

    By default, glibc gets the memory for each array of more than 128 KB from the kernel, and returns it when the array
    is freed. The kernel must clear each page, which took a third of the time of a merge (400,000 page faults for each
    750 MB). After a larger block was freed, glibc keeps all freed blocks up to the size of that block, and up to twice
    as many bytes in total (see "dynamic mmap threshold" in mallopt(3)). So it is enough to free one block here; its
    pages are never used. If a user sets a threshold, for example with MALLOC_MMAP_THRESHOLD_, this has no effect.
    """
    with suppress(MemoryError):  # not essential: everything works without it, but slower
        bytearray(KEPT)
