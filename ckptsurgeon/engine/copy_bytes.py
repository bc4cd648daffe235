"""Copies unchanged bytes from file to file, and computes their checksums at the same time.

The kernel copies the bytes (``copy_file_range``, which shares blocks if the file system can). Right after, this process
reads the bytes from the page cache to compute the checksum. If the kernel cannot copy between two files, this process
reads and writes the bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

from ..tensors.dtypes import size_of_float
from .checksums import bad_checksum, crc32
from .copy_ranges import CopyPiece, CopyRange, CopyTask, batched, joined, tasks_of
from .part_run import SMALL

__all__ = ["THREADS", "Advance", "copying"]

BLOCK = 1 << 20
"""How many bytes are read at once: about the size of a core's cache."""
LOOKED_AT = 64 << 10
"""A task looks for NaN and infinite values in at most this many bytes of a tensor; most norms and biases have fewer."""
THREADS = 2

Advance = Callable[[int], None]
"""A function that is called with the number of bytes that were just copied, from any thread."""


class _SliceChecksums:
    """Computes the CRC-32 of each slice of a copy task; it receives the blocks of the task in order."""

    def __init__(self, slices: Sequence[tuple[CopyPiece, int, int]]) -> None:
        self._left = iter(slices)
        self._slice = next(self._left, None)
        self._crc = self._done = 0

    def add(self, block: memoryview) -> None:
        """Update the CRC-32 of the current slice with the next bytes of the task.

        If the slice is now complete, record its CRC-32; the following bytes belong to the next slice.
        """
        at = 0
        while self._slice is not None:
            piece, begin, length = self._slice
            part = block[at : at + length - self._done]
            if piece.dtype and not self._done:
                _look_at(piece, begin, part)
            self._crc = crc32(part, self._crc)
            self._done, at = self._done + len(part), at + len(part)
            if self._done < length:
                return
            piece.done(begin, self._crc, length)
            self._slice = next(self._left, None)
            self._crc = self._done = 0


def _look_at(piece: CopyPiece, begin: int, part: memoryview) -> None:
    """Look for NaN and infinite values in the first bytes of ``part``, at most ``LOOKED_AT`` bytes.

    ``part`` are the bytes of the tensor ``piece`` from the offset ``begin`` on.
    """
    size = size_of_float(piece.dtype)
    skipped = -begin % size
    piece.look_at(part[skipped : skipped + min(LOOKED_AT, (len(part) - skipped) // size * size)])


class _Worker:
    """Runs copy tasks, and remembers the pairs of files between which the kernel cannot copy."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._local = threading.local()
        self._refused: set[tuple[int, int]] = set()
        self.stopped = False
        self._failure: BaseException | None = None

    def run_all(self, tasks: Iterable[CopyTask]) -> None:
        """Run tasks one after the other; if one fails, also stop the tasks of all other threads."""
        try:
            for task in tasks:
                if self.stopped:
                    return
                self.run(task)
        except BaseException as error:
            self._failure, self.stopped = self._failure or error, True
            raise

    def check(self) -> None:
        """Raise the error that made a task fail."""
        if self._failure is not None:
            raise self._failure

    def run(self, task: CopyTask) -> None:
        copy = task.copy
        if task.nbytes < SMALL or not self._in_kernel(task):
            self._by_hand(task)
            return
        for _ in self._blocks(task):
            pass
        copy.output.start_writing(copy.output_offset + task.begin, task.nbytes)
        self._advance(task.nbytes)

    def _in_kernel(self, task: CopyTask) -> bool:
        """Let the kernel copy the bytes of a task; return False if the kernel cannot copy between these files."""
        copy, pair = task.copy, (id(task.copy.source), id(task.copy.output))
        if pair in self._refused:
            return False
        source_offset, output_offset = copy.source_offset + task.begin, copy.output_offset + task.begin
        if copy.output.copy_in_kernel(copy.source, source_offset, output_offset, task.nbytes) < task.nbytes:
            self._refused.add(pair)
            return False
        return True

    def _by_hand(self, task: CopyTask) -> None:
        output, at = task.copy.output, task.copy.output_offset + task.begin
        for block in self._blocks(task):
            output.write(at, block)
            if len(block) >= SMALL:
                output.start_writing(at, len(block))
            at += len(block)
            self._advance(len(block))

    def _blocks(self, task: CopyTask) -> Iterator[memoryview]:
        """Yield the bytes that a copy task copies, in blocks of at most ``BLOCK`` bytes.

        Meanwhile the CRC-32 of each slice in ``task.slices`` is computed and recorded. A block is valid only
        until the next one, because all blocks use the same buffer.
        """
        sums, copy, size, done = _SliceChecksums(task.slices), task.copy, task.nbytes, 0
        while done < size:
            block = self._view(min(BLOCK, size - done))
            copy.source.readinto(copy.source_offset + task.begin + done, block)
            sums.add(block)
            yield block
            done += len(block)
        sums.add(memoryview(b""))  # completes pieces of 0 bytes

    def _view(self, size: int) -> memoryview:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(BLOCK))
        view: memoryview = buffer[:size]
        return view


@contextmanager
def copying(copies: Iterable[CopyRange], advance: Advance) -> Iterator[Callable[[], None]]:
    """Copy ranges of bytes, in the order of the output, while the body of the ``with`` does something else.

    ``advance`` is called with the number of bytes that were just copied. The ``with`` yields a function that raises the
    error of a failed copy: the body can call it to stop early. After the ``with``, all copies are done, and all pieces
    have their checksums.

    Raises FormatError if a piece does not match the checksum in its source, SourceError and OutputError if a file
    cannot be read or written. If the body raises an exception, the copies are stopped first; then the ``with`` raises
    the exception.
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
def _in_threads(worker: _Worker, batches: Sequence[list[CopyTask]]) -> Iterator[None]:
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
