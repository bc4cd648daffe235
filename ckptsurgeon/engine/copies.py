"""The ranges of bytes to copy: neighbours are joined, and large ranges are split into tasks for threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..storage.read.base import File
from ..storage.write.staging import StagedFile
from .checksums import combine

__all__ = ["CopyPiece", "CopyRange", "CopyTask", "batched", "joined", "tasks_of"]

CHUNK = 8 << 20
"""Bytes of one task: enough to keep a disk busy, few enough for two threads to share a tensor."""
BATCH = 256
"""Most small tasks that a thread takes at once."""


@dataclass(slots=True)
class CopyPiece:
    """The bytes of one tensor within a ``CopyRange``; ``expected`` is their CRC-32 in the source file, if it has one.

    If several tasks copy these bytes, ``parts`` has (first byte, CRC-32, number of bytes) of the part of each task.
    """

    name: str
    nbytes: int
    expected: int | None = None
    crc: int = 0
    parts: list[tuple[int, int, int]] | None = None

    def done(self, begin: int, crc: int, nbytes: int) -> None:
        """Record a copied part: where it begins, its CRC-32, and its number of bytes; may be called from any thread."""
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
        """Return whether this range begins where ``other``, of ``size`` bytes, ends, in both files."""
        return (
            self.source is other.source
            and self.output is other.output
            and self.source_offset == other.source_offset + size
            and self.output_offset == other.output_offset + size
        )


def joined(copies: Iterable[CopyRange]) -> list[CopyRange]:
    """Return the ranges in the order of the output; ranges that follow each other in both files are joined."""
    made: list[CopyRange] = []
    size = 0  # of the last range, kept since that may have many thousand pieces
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
    """A part of the range ``copy``, from its byte ``begin`` on.

    ``slices`` has (piece, offset within the piece, number of bytes) for each piece of which it has bytes.
    """

    copy: CopyRange
    begin: int
    slices: list[tuple[CopyPiece, int, int]]

    @property
    def nbytes(self) -> int:
        """The number of bytes of the task."""
        return sum(length for _, _, length in self.slices)


def tasks_of(copies: Sequence[CopyRange]) -> Iterator[CopyTask]:
    """Split ranges into tasks of about ``CHUNK`` bytes."""
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
    """Yield the tasks in lists, in order: many small tasks share a list, and a large task ends its list."""
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
