"""Faults of single calls to the kernel, by strace."""

from __future__ import annotations

import functools
import subprocess

import pytest

from .disks import needs

__all__ = ["fault", "traced"]


@functools.cache
def _may_trace() -> bool:
    return subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


def traced() -> None:
    """Skip the test where processes cannot be traced."""
    needs("strace")
    if not _may_trace():
        pytest.skip(reason="tracing is not allowed here")


def fault(call: str, what: str, when: str, log: str = "/dev/null") -> tuple[str, ...]:
    """Return what to put before a command: ``when`` numbers the calls, ``what`` is error=NAME or signal=NAME."""
    return ("strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={when}")
