"""The memory of a block that was computed is used for the next one: glibc does not give it back to the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource
from ckptsurgeon.engine.compute.reading import keep_freed_memory
KEEP
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(b"x" * (1 << 20))
before = faults()
for _ in range(64):
    bytearray(b"x" * (1 << 20))
print((faults() - before) * resource.getpagesize() >> 20)
"""


def megabytes(keep: str) -> int:
    """Return how many megabytes the kernel gave while 64 arrays of a megabyte, and copies, were made and freed."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT.replace("KEEP", keep)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have other allocators")
def test_freed_arrays_are_used_again() -> None:
    assert megabytes("keep_freed_memory()") < 16 < 64 <= megabytes("")
