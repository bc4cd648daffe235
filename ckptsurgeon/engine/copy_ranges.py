"""Lists the ranges of bytes to copy: joins neighbouring ranges, and splits large ranges into tasks for threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..storage.read.base import File
from ..storage.write.staging import StagedFile
from ..tensors.dtypes import has_non_finite, is_masked, size_of_float
from ..tensors.quantised.methods import is_packed_in_floats
from .checksums import combine
from .part_run import PartRun

__all__ = ["CopyPiece", "CopyRange", "CopyTask", "batched", "joined", "ranges_of", "tasks_of"]

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

    def look_at(self, block: memoryview) -> None:
        """Look for NaN and infinite values in ``block``, whole values of the tensor; any thread may call this."""
        self.unsound = self.unsound or has_non_finite(self.dtype, bytes(block))

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


def joined(copies: Iterable[CopyRange]) -> list[CopyRange]:
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
class CopyTask:
    """A part of the range ``copy`` that starts at its byte ``begin``.

    ``slices`` contains (piece, offset within the piece, number of bytes) for each piece from which the task copies.
    """

    copy: CopyRange
    begin: int
    slices: list[tuple[CopyPiece, int, int]]

    @property
    def nbytes(self) -> int:
        """The number of bytes of the task."""
        return sum(length for _, _, length in self.slices)


def tasks_of(copies: Sequence[CopyRange]) -> Iterator[CopyTask]:
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
                    yield CopyTask(copy, begin, slices)
                    begin, slices, size = begin + size, [], 0
                if done >= piece.nbytes:
                    break
        if slices:
            yield CopyTask(copy, begin, slices)


def batched(tasks: Iterable[CopyTask]) -> Iterator[list[CopyTask]]:
    """Yield the tasks in order, in lists: a list ends when it has half of ``CHUNK`` bytes, or ``BATCH`` tasks."""
    batch: list[CopyTask] = []
    size = 0
    for task in tasks:
        batch.append(task)
        size += task.nbytes
        if size >= CHUNK // 2 or len(batch) >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
