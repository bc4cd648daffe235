"""Runs code in a child process that cannot change anything outside the process, and returns the code's result."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import safetensors
import torch

from .opened import writes
from .user_code import PROCESS_STATE

__all__ = ["in_child"]

Result = TypeVar("Result")
_SECONDS = 120.0
"""How many seconds a child process may take."""
_FORBIDDEN = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.utime", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill",
    "shutil.", "subprocess.", "socket.connect", "socket.sendto", "socket.getaddrinfo", "sqlite3.connect",
)  # fmt: skip
"""Prefixes of the audit events (https://docs.python.org/3/library/audit_events.html) that end the child process."""


def in_child(run: Callable[[], Result]) -> Result | None:
    """Call ``run`` in a child process and return its result, which must be plain data that can be pickled.

    Returns None if ``run`` fails, tries to write or to use the network, or takes too long, or if the system cannot
    fork.
    """
    if not hasattr(os, "fork"):
        return None
    with PROCESS_STATE:  # so that no other thread holds the lock at the fork: the child could never take it
        here, there = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it warns of other threads; the child has none
            child = os.fork()
        if not child:
            os.close(here)
            _run(run, there)
        os.close(there)
        try:
            raw = _received(here)
        finally:
            os.close(here)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return pickle.loads(raw) if raw else None  # noqa: S301 - the child is this program


def _run(run: Callable[[], Any], out: int) -> None:
    """Write the pickled result of ``run`` to the pipe ``out``, or nothing if ``run`` fails; then end this process."""
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
        sys.addaudithook(_refuse)
        torch.save = safetensors.serialize_file = _refused  # these functions write files without an audit event
        data = pickle.dumps(run())
        view = memoryview(len(data).to_bytes(8, "little") + data)
        while view:
            view = view[os.write(out, view) :]
    except BaseException:
        pass
    finally:
        os._exit(0)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN) or (event == "open" and writes(args[1], args[2])):
        os._exit(1)


def _refused(*_: object, **__: object) -> None:
    os._exit(1)


def _received(pipe: int) -> bytes:
    """Return the data that a child process wrote to a pipe; b"" if the data are incomplete or came too late."""
    until, data = time.monotonic() + _SECONDS, bytearray()
    while select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(pipe, 1 << 20)
        if not part:
            break
        data += part
    size = int.from_bytes(data[:8], "little")
    return bytes(data[8:]) if len(data) >= 8 and len(data) == size + 8 else b""
