"""Faults of single calls to the kernel, by strace."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from .disks import needs

__all__ = ["calls_in", "fault", "traced", "watch"]


@functools.cache
def _may_trace() -> bool:
    return subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


def traced() -> None:
    """Skip the test where processes cannot be traced."""
    needs("strace")
    if not _may_trace():
        pytest.skip(reason="tracing is not allowed here")


def watch(log: Path, calls: Iterable[str]) -> tuple[str, ...]:
    """Return what to put before a command: every process of it keeps a ``log``, a folder, of these calls."""
    shutil.rmtree(log, ignore_errors=True)
    log.mkdir()
    return ("strace", "-ff", "-qq", "-y", "-o", str(log / "of"), "-e", f"trace={','.join(calls)}")


def fault(log: Path, call: str, what: str, when: str) -> tuple[str, ...]:
    """Return the same for one call that meets a fault: ``when`` numbers it, ``what`` is error=NAME or signal=NAME."""
    return (*watch(log, [call]), "-e", f"inject={call}:{what}:when={when}")


def calls_in(log: Path, place: Path, *, injected: bool = False) -> set[str]:
    """Return the names of the calls that had to do with files below a place; of those that a fault met, if so."""
    lines = [line for file in log.iterdir() for line in file.read_text(errors="replace").splitlines()]
    below = re.compile(re.escape(str(place)) + "[/>]")  # a name, or a descriptor of the place itself
    mark = "(INJECTED)" if injected else ""
    return {line.split("(")[0] for line in lines if mark in line and below.search(line)}
