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
from dataclasses import dataclass

from ..storage.read.base import Advance, File
from ..storage.write.staged_file import StagedFile
from ..tensors.dtypes import has_non_finite, is_masked, size_of_float
from ..tensors.quantised.methods import is_packed_in_floats
from .checksums import bad_checksum, combine, crc32
from .one_output_part import SMALL, PartRun

__all__ = ["THREADS", "CopyPiece", "copying", "ranges_of"]

# The ranges of bytes to copy, and the tasks that copy them.

BLOCK = 1 << 20
"""How many bytes are read at once: about the size of a core's cache."""
LOOKED_AT = 64 << 10
"""A task looks for NaN and infinite values in at most this many bytes of a tensor; most norms and biases have fewer."""
THREADS = 2
CHUNK = 8 << 20
"""The bytes of one task: enough to keep a disk busy, and few enough for two threads to share a tensor."""
BATCH = 256
"""The most tasks in one batch; a thread copies one batch after the other."""


@dataclass(slots=True)
class CopyPiece:
    """The bytes of one tensor within a ``CopyRange``; ``expected`` is the CRC-32 in the source file, if there is one.

    If several tasks copy these bytes, ``parts`` contains (first byte, CRC-32, number of bytes) for each task. ``dtype``
    is the dtype of the tensor if NaN and infinite values are looked for, else ''; ``unsound`` says whether any were
    found.
    """

    name: str
    nbytes: int
    expected: int | None = None
    dtype: str = ""
    unsound: bool = False
    crc: int = 0
    parts: list[tuple[int, int, int]] | None = None

    def look_at(self, begin: int, block: memoryview) -> None:
        """Look for NaN and infinite values in the first ``LOOKED_AT`` bytes of ``block``; any thread may call this.

        ``block`` are bytes of the tensor from the offset ``begin`` on.
        """
        size = size_of_float(self.dtype)
        skipped = -begin % size
        whole = block[skipped : skipped + min(LOOKED_AT, (len(block) - skipped) // size * size)]
        self.unsound = self.unsound or has_non_finite(self.dtype, bytes(whole))

    def done(self, begin: int, crc: int, nbytes: int) -> None:
        """Record that ``nbytes`` bytes from ``begin`` on were copied, and their CRC-32; any thread may call this."""
        if self.parts is None:
            self.crc = crc
        else:
            self.parts.append((begin, crc, nbytes))

    def checksum(self) -> int:
        """Return the CRC-32 of the copied bytes."""
        if self.parts is None:
            return self.crc
        return combine([(crc, length) for _, crc, length in sorted(self.parts)])


@dataclass(slots=True)
class CopyRange:
    """A range of bytes that is contiguous in the source and in the output."""

    source: File
    source_offset: int
    output: StagedFile
    output_offset: int
    pieces: list[CopyPiece]

    @property
    def nbytes(self) -> int:
        """The number of bytes of the range."""
        return sum(piece.nbytes for piece in self.pieces)

    def follows(self, other: CopyRange, size: int) -> bool:
        """Return whether this range begins at the end of ``other``, which has ``size`` bytes, in both files."""
        return (
            self.source is other.source
            and self.output is other.output
            and self.source_offset == other.source_offset + size
            and self.output_offset == other.output_offset + size
        )


def ranges_of(run: PartRun, pieces: dict[str, CopyPiece]) -> Iterator[CopyRange]:
    """Yield the ranges of all tensors whose bytes do not change, in the order of the output.

    The ``CopyPiece`` of each tensor is put into ``pieces``.
    """
    for key, (offset, nbytes) in run.part.layout.slots.items():
        if key not in run.copies:
            continue
        step, info = run.copies[key]
        assert step.source is not None
        assert info.storage is not None
        source = run.inputs.sources[step.source]
        whole = info.nbytes == info.storage.nbytes
        is_looked_at = size_of_float(info.dtype) and not (info.storage.big_endian or is_masked(key))
        is_packed = info.shape[1:] == (1,) and is_packed_in_floats(step.source_key, source.codes)
        dtype = info.dtype if is_looked_at and not is_packed else ""
        piece = pieces[key] = CopyPiece(info.storage.name, nbytes, info.storage.crc32 if whole else None, dtype)
        yield CopyRange(source.file(info), info.storage.offset + info.offset, run.file, offset, [piece])


def _joined(copies: Iterable[CopyRange]) -> list[CopyRange]:
    """Return the ranges in the order of the output; ranges that follow each other in both files are joined."""
    made: list[CopyRange] = []
    size = 0  # the size of the last range, which would be slow to sum again for thousands of pieces
    for copy in copies:
        if made and copy.follows(made[-1], size):
            made[-1].pieces.extend(copy.pieces)
        else:
            made.append(copy)
            size = 0
        size += copy.nbytes
    return made


@dataclass(slots=True)
class _Task:
    """A part of the range ``copy`` that starts at its byte ``begin``.

    ``slices`` contains (piece, offset within the piece, number of bytes) for each piece from which the task copies.
    """

    copy: CopyRange
    begin: int
    slices: list[tuple[CopyPiece, int, int]]

    @property
    def nbytes(self) -> int:
        return sum(length for _, _, length in self.slices)


def _tasks_of(copies: Sequence[CopyRange]) -> Iterator[_Task]:
    """Yield tasks of at most ``CHUNK`` bytes that together copy the ranges."""
    for copy in copies:
        begin, slices, size = 0, list[tuple[CopyPiece, int, int]](), 0
        for piece in copy.pieces:
            done = 0
            while True:
                length = min(piece.nbytes - done, CHUNK - size)
                if length < piece.nbytes and piece.parts is None:
                    piece.parts = []
                slices.append((piece, done, length))
                done, size = done + length, size + length
                if size >= CHUNK:
                    yield _Task(copy, begin, slices)
                    begin, slices, size = begin + size, [], 0
                if done >= piece.nbytes:
                    break
        if slices:
            yield _Task(copy, begin, slices)


def _batched(tasks: Iterable[_Task]) -> Iterator[list[_Task]]:
    """Yield the tasks in order, in lists: a list ends when it has half of ``CHUNK`` bytes, or ``BATCH`` tasks."""
    batch: list[_Task] = []
    size = 0
    for task in tasks:
        batch.append(task)
        size += task.nbytes
        if size >= CHUNK // 2 or len(batch) >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# Copying.


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
                piece.look_at(begin, part)
            self._crc = crc32(part, self._crc)
            self._done, at = self._done + len(part), at + len(part)
            if self._done < length:
                return
            piece.done(begin, self._crc, length)
            self._slice = next(self._left, None)
            self._crc = self._done = 0


class _Worker:
    """Runs copy tasks, and remembers the pairs of files between which the kernel cannot copy."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._local = threading.local()
        self._refused: set[tuple[int, int]] = set()
        self.stopped = False
        self._failure: BaseException | None = None

    def run_all(self, tasks: Iterable[_Task]) -> None:
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

    def run(self, task: _Task) -> None:
        copy = task.copy
        if task.nbytes < SMALL or not self._in_kernel(task):
            self._by_hand(task)
            return
        for _ in self._blocks(task):
            pass
        copy.output.start_writing(copy.output_offset + task.begin, task.nbytes)
        self._advance(task.nbytes)

    def _in_kernel(self, task: _Task) -> bool:
        """Let the kernel copy the bytes of a task; return False if the kernel cannot copy between these files."""
        copy, pair = task.copy, (id(task.copy.source), id(task.copy.output))
        if pair in self._refused:
            return False
        source_offset, output_offset = copy.source_offset + task.begin, copy.output_offset + task.begin
        if copy.output.copy_in_kernel(copy.source, source_offset, output_offset, task.nbytes) < task.nbytes:
            self._refused.add(pair)
            return False
        return True

    def _by_hand(self, task: _Task) -> None:
        output, at = task.copy.output, task.copy.output_offset + task.begin
        for block in self._blocks(task):
            output.write(at, block)
            if len(block) >= SMALL:
                output.start_writing(at, len(block))
            at += len(block)
            self._advance(len(block))

    def _blocks(self, task: _Task) -> Iterator[memoryview]:
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
    runs = _joined(copies)
    worker = _Worker(advance)
    batches = list(_batched(_tasks_of(runs)))
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
def _in_threads(worker: _Worker, batches: Sequence[list[_Task]]) -> Iterator[None]:
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
