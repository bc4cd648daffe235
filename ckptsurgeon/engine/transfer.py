"""Moves unchanged bytes from file to file and takes their checksums on the way.

The kernel copies (``copy_file_range``, which shares blocks where a file system can) and the checksum is read from
the page cache right after; where the kernel cannot copy between two files, the bytes pass through here once.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

from ..storage.write.output_checks import output_error
from .checksums import bad_checksum, crc32
from .copies import Copy, Piece, Task, batched, joined, tasks_of

__all__ = ["SMALL", "THREADS", "Advance", "copying"]

BLOCK = 1 << 20
"""Bytes held at once: about what a core's cache holds."""
SMALL = 256 << 10
"""Below this many bytes the kernel is not asked to copy: reading and writing are as quick."""
THREADS = 2

_NO_KERNEL_COPY = {
    errno.EXDEV,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
    errno.EIO,
}
"""Where the kernel will not copy, or cannot say which of the two files failed: by hand, one knows."""

Advance = Callable[[int], None]
"""Called with the number of bytes just done, from any thread."""


class _Sums:
    """The CRC-32 of each slice of a task, from blocks that come in their order."""

    def __init__(self, slices: Sequence[tuple[Piece, int, int]]) -> None:
        self._left = iter(slices)
        self._slice = next(self._left, None)
        self._crc = self._done = 0

    def add(self, block: memoryview) -> None:
        """Take the block that follows."""
        at = 0
        while self._slice is not None:
            piece, begin, length = self._slice
            part = block[at : at + length - self._done]
            self._crc = crc32(part, self._crc)
            self._done, at = self._done + len(part), at + len(part)
            if self._done < length:
                return
            piece.done(begin, self._crc, length)
            self._slice = next(self._left, None)
            self._crc = self._done = 0


class _Worker:
    """Carries out tasks; knows for each pair of files whether the kernel copies between them."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._local = threading.local()
        self._refused: set[tuple[int, int]] = set()
        self.stopped = False
        self._failure: BaseException | None = None

    def run_all(self, tasks: Iterable[Task]) -> None:
        """Carry out tasks; a failure ends those of all other threads, too."""
        try:
            for task in tasks:
                if self.stopped:
                    return
                self.run(task)
        except BaseException as error:
            self._failure, self.stopped = self._failure or error, True
            raise

    def check(self) -> None:
        """Raise what has made a task fail."""
        if self._failure is not None:
            raise self._failure

    def run(self, task: Task) -> None:
        copy = task.copy
        if task.nbytes < SMALL or not self._in_kernel(task):
            self._by_hand(task)
            return
        for _ in self._blocks(task):
            pass
        copy.output.start_writing(copy.output_offset + task.begin, task.nbytes)
        self._advance(task.nbytes)

    def _in_kernel(self, task: Task) -> bool:
        """Copy within the kernel; False where it cannot, with nothing lost."""
        copy, pair = task.copy, (id(task.copy.source), id(task.copy.output))
        if pair in self._refused or not hasattr(os, "copy_file_range"):
            return False
        with copy.source.descriptor() as source, copy.output.descriptor() as output:
            if source is None or not self._ranges_copied(task, source, output):
                self._refused.add(pair)
                return False
        return True

    def _ranges_copied(self, task: Task, source: int, output: int) -> bool:
        copy, size, done = task.copy, task.nbytes, 0
        while done < size:
            try:
                moved = os.copy_file_range(
                    source, output, size - done,
                    copy.source_offset + task.begin + done, copy.output_offset + task.begin + done,
                )  # fmt: skip
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise output_error(copy.output.shown, error) from error
                moved = 0
            if moved == 0:  # refused, or the file shrank: reading says which
                return False
            done += moved
        return True

    def _by_hand(self, task: Task) -> None:
        output, at = task.copy.output, task.copy.output_offset + task.begin
        for block in self._blocks(task):
            output.write(at, block)
            if len(block) >= SMALL:
                output.start_writing(at, len(block))
            at += len(block)
            self._advance(len(block))

    def _blocks(self, task: Task) -> Iterator[memoryview]:
        """Yield what a task copies, block by block, and take the checksums; a block may hold many small pieces."""
        sums, copy, size, done = _Sums(task.slices), task.copy, task.nbytes, 0
        while done < size:
            block = self._view(min(BLOCK, size - done))
            copy.source.readinto(copy.source_offset + task.begin + done, block)
            sums.add(block)
            yield block
            done += len(block)
        sums.add(memoryview(b""))  # pieces of no bytes

    def _view(self, size: int) -> memoryview:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(BLOCK))
        view: memoryview = buffer[:size]
        return view


@contextmanager
def copying(copies: Iterable[Copy], advance: Advance) -> Iterator[Callable[[], None]]:
    """Carry out copies, in the order of what is written, while the body of the ``with`` does something else.

    All is done, and has its checksums, at the end.

    The body is given what raises the failure of a copy, so that it need not go on for nothing.
    Raises FormatError when a piece does not have the checksum that its source recorded, SourceError and
    OutputError when a file cannot be read or written; what the body raises ends the copies first.
    """
    runs = joined(copies)
    worker = _Worker(advance)
    batches = list(batched(tasks_of(runs)))
    if len(batches) < THREADS:
        for batch in batches:
            worker.run_all(batch)
        yield worker.check
    else:
        with _in_threads(worker, batches):
            yield worker.check
    for run in runs:
        for piece in run.pieces:
            if piece.expected is not None and piece.checksum() != piece.expected:
                raise bad_checksum(run.source, piece.name)


@contextmanager
def _in_threads(worker: _Worker, batches: Sequence[list[Task]]) -> Iterator[None]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="copy") as pool:
        futures = [pool.submit(worker.run_all, batch) for batch in batches]
        try:
            yield
            wait(futures, return_when=FIRST_EXCEPTION)
            worker.check()
        except BaseException:
            worker.stopped = True
            pool.shutdown(cancel_futures=True)
            raise
