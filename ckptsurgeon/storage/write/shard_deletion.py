"""Deletes a shard whose values are already in the output; keeps its header, so that an interrupted run can continue."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress

from ...errors import OutputError
from ...util.text import escape
from ..descriptors import sync, sync_folder
from ..read.consumed_shard import CONSUMED, MAGIC, ConsumedShard
from ..read.local import LocalFile
from .output_paths import output_error, remove_leftovers, temp_name

__all__ = ["check_deletable", "consume", "delete"]

SMALL = 64 << 10
"""Tensors of at most this many bytes are kept, because a plan reads them: shapes, zero points, quantisation states."""
BEGINNING = 4096
"""How many bytes at the beginning of a shard are always kept: they show its format."""
MOST_KEPT, FEWEST = 16 << 20, 8
"""The small tensors that are kept of a shard have at most ``MOST_KEPT`` bytes, and at most 1/``FEWEST`` of its size."""


def check_deletable(path: str, shown: str) -> None:
    """Raise OutputError if a file must not be deleted: it is a link or has hard links, or its folder is read-only."""
    found = os.lstat(path)
    if os.path.islink(path) or found.st_nlink > 1:
        what, how = "has another name (a hard link)", "Remove its other names"
        if os.path.islink(path):
            what, how = "is a link", "Use the folder that has the file itself"
        raise OutputError(
            f"{escape(shown)} cannot be consumed: it {what}, so deleting it would not free the data.",
            hint=f"{how}, or leave out --consume.",
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{escape(shown)} cannot be consumed: nothing can be deleted in its folder.",
            hint="Make the folder writable, or leave out --consume.",
        )


def consume(file: LocalFile, output: str) -> None:
    """Delete a safetensors shard, and write the ``.consumed`` file that replaces it; raises OutputError.

    ``output`` is the path of the output that has the values of the shard. The disk space of the shard is free
    immediately, even if other processes have it open.
    """
    try:
        with file.descriptor() as fd:
            assert fd is not None  # ensured by check_deletable
            found = os.fstat(fd)
            kept = list(_kept(fd))
            shard = ConsumedShard(
                found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, kept, os.path.abspath(output)
            )
            _leave(fd, file.path, shard)
        _unlink(file.path)
    except OSError as error:
        raise output_error(file.uri, error) from error
    file.close()


def delete(path: str) -> None:
    """Delete a source file and its ``.consumed`` file, if they exist; raises OutputError."""
    try:
        for one in (path, path + CONSUMED):
            with suppress(FileNotFoundError):
                os.unlink(one)
        remove_leftovers(path + CONSUMED)
    except OSError as error:
        raise output_error(path, error) from error


def _kept(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges (begin, end) of a shard that are kept: the header, and the smallest tensors."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    start = 8 + length
    entries = json.loads(os.pread(fd, length, 8))
    begun = max(start, min(BEGINNING, os.fstat(fd).st_size))
    spans = (one["data_offsets"] for key, one in entries.items() if key != "__metadata__")
    ranges = ((max(begun, start + begin), start + end) for begin, end in spans if end - begin <= SMALL)
    chosen, room = [(0, begun)], min(MOST_KEPT, os.fstat(fd).st_size // FEWEST)
    for begin, end in sorted(ranges, key=lambda one: one[1] - one[0]):
        room -= end - begin
        if begin < end and room >= 0:
            chosen.append((begin, end))
    last = (0, 0)
    for begin, end in sorted(chosen):
        if begin <= last[1]:
            last = (last[0], end)
        else:
            yield last
            last = (begin, end)
    yield last


def _leave(fd: int, path: str, shard: ConsumedShard) -> None:
    """Write the ``.consumed`` file of a shard next to it, and wait until it is on disk."""
    text = json.dumps(shard._asdict()).encode()
    temp = temp_name(path + CONSUMED)
    out = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for begin, end in shard.kept:
            _write(out, os.pread(fd, end - begin, begin), begin)
        _write(out, text + len(text).to_bytes(8, "little") + MAGIC, shard.kept[-1][1])
        sync(out)
        os.rename(temp, path + CONSUMED)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp)
        raise
    finally:
        os.close(out)
    sync_folder(os.path.dirname(os.path.abspath(path)))


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _unlink(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.unlink(path)
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)
