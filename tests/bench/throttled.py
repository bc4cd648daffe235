"""Runs ``ckpt`` in several processes, each of which gets only so many bytes of files in a second.

    python throttled.py NUMBER BYTES_PER_SECOND convert model -o out …

So does a device that is slower than its network, such as an object store or a parallel file system. Each process waits
as long as its device would take for all bytes that it reads and writes; the kernel copies nothing. The processes are
forked when torch is imported. What the first one prints is in receipt.json.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class Device:
    """A device that transfers so many bytes in a second, one request after another."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free, self._lock = rate, time.monotonic(), threading.Lock()

    def wait(self, nbytes: int) -> None:
        """Wait until the device has transferred so many bytes more."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + nbytes / self._rate
            until = self._free
        time.sleep(max(0.0, until - time.monotonic()))


def throttle(rate: float) -> None:
    """Let all tensors that this process reads from local files and writes to them pass through one device."""
    from ckptsurgeon.storage.read.local import LocalFile
    from ckptsurgeon.storage.write.staged_file import StagedFile

    device = Device(rate)

    def slow(method: Callable[..., Any]) -> Callable[..., Any]:
        def transferred(file: Any, offset: int, what: Any) -> Any:
            device.wait(what if isinstance(what, int) else len(what))
            return method(file, offset, what)

        return transferred

    for owner, names in ((LocalFile, ("read", "readinto")), (StagedFile, ("read", "write"))):
        for name in names:
            setattr(owner, name, slow(getattr(owner, name)))
    StagedFile.copy_in_kernel = lambda *_: 0  # type: ignore[method-assign]


def run(rank: int, number: int, rate: float, words: Sequence[str]) -> None:
    """Be one of the processes, and end with the exit code of ``ckpt``."""
    from ckptsurgeon.cli import main

    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(number)}
        if not rank:
            os.dup2(os.open("receipt.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        throttle(rate)
        code = main(words)
    finally:
        os._exit(code)


def all_of_them(number: int, rate: float, words: Sequence[str]) -> int:
    """Start the processes, wait for them, and return 1 if one of them fails."""
    import torch.distributed  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in range(number):
        if not (child := os.fork()):
            run(rank, number, rate, words)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(all_of_them(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
