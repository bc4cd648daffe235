"""The memory of freed arrays is used for the next ones: glibc does not give it back to the kernel."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import ctypes, resource
from ckptsurgeon.util.freed_memory import keep_freed_memory
KEEP
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(6):
    if turn == 2:
        before = faults()
    blocks = [libc.malloc(SIZE) for _ in range(NUMBER)]
    for block in blocks:
        libc.memset(block, 1, SIZE)
    for block in reversed(blocks):
        libc.free(block)
print((faults() - before) * resource.getpagesize() >> 20)
"""


def megabytes(keep: str, number: int = 1, **environment: str) -> int:
    """Return how many megabytes the kernel gave in four turns, in each of which ``number`` MB were used and freed."""
    code = COUNT.replace("KEEP", keep).replace("SIZE", str(1 << 20)).replace("NUMBER", str(number))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return int(done.stdout)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have other allocators")


@needs_glibc
def test_freed_memory_is_used_again() -> None:
    assert megabytes("keep_freed_memory()", 16) < 8 < 60 < megabytes("", 16)


@needs_glibc
def test_no_more_than_the_limit_is_kept() -> None:
    assert megabytes("keep_freed_memory()", 128) > 400
    assert megabytes("keep_freed_memory(1 << 30)", 128) < 40
    assert megabytes("keep_freed_memory(1 << 30); keep_freed_memory()", 128) < 40  # the larger limit counts


@needs_glibc
def test_settings_of_the_user_stay() -> None:
    assert megabytes("keep_freed_memory(1 << 30)", 16, MALLOC_TRIM_THRESHOLD_="131072") > 60
    assert megabytes("keep_freed_memory(1 << 30)", 16, GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072") > 60
    for other in ({"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}):
        assert megabytes("keep_freed_memory(1 << 30)", 16, **other) < 8
