"""Makes glibc keep freed memory for later arrays, instead of returning it to the kernel."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

BLOCK = 31 << 20
"""Arrays of up to this many bytes get memory that was freed; glibc accepts at most 32 MB."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, as in glibc's malloc.h."""

_SETTINGS = ("mmap_max", "mmap_threshold", "top_pad", "trim_threshold")
"""The settings of glibc by which a user chooses what it keeps."""

_kept = [0]
"""The largest ``limit`` of all calls so far."""


def keep_freed_memory(limit: int = 2 * BLOCK) -> None:
    """Make glibc keep up to ``limit`` bytes of freed memory; with other C libraries this has no effect.

    By default, glibc gets the memory of each larger array from the kernel, and returns it when the array is freed. The
    kernel must clear each page: this took a third of the time of a merge, and a fifth of the time of a training step on
    a CPU. A lower limit than an earlier one has no effect, nor has any limit if the user has chosen one, for example
    with MALLOC_TRIM_THRESHOLD_ (mallopt(3)).
    """
    if limit <= _kept[0] or sys.platform != "linux" or _is_chosen():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, BLOCK)  # if only one of both is set, the other stays at 128 KB
        mallopt(_TRIM_THRESHOLD, limit)
        _kept[0] = limit


def _is_chosen() -> bool:
    """Return whether the user has set one of ``_SETTINGS`` in the environment."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{one.upper()}_" in os.environ or f"glibc.malloc.{one}=" in tunables for one in _SETTINGS)
