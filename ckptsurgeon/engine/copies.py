"""The byte ranges to copy, joined if they follow each other."""

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
    """A tensor's bytes within a copy; ``expected`` is the checksum that its source recorded, if any.

    A piece that several tasks share has ``parts``: the begin, CRC-32 and bytes of each.
    """

    name: str
    nbytes: int
    expected: int | None = None
    crc: int = 0
    parts: list[tuple[int, int, int]] | None = None

    def done(self, begin: int, crc: int, nbytes: int) -> None:
        """Record the CRC-32 of a copied part and where it begins; safe in any thread."""
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
        """Bytes of the run."""
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
    """Return ranges with neighbours joined; ``copies`` are in the order of the output."""
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
    """Part of a range: from ``begin``, with its pieces as (piece, offset in the piece, bytes)."""

    copy: CopyRange
    begin: int
    slices: list[tuple[CopyPiece, int, int]]

    @property
    def nbytes(self) -> int:
        """Bytes of the task."""
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
    """Group small tasks: a model may have a hundred thousand."""
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
