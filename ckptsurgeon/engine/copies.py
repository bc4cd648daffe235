"""What is to be copied: runs of bytes, joined where they follow each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..storage.read.base import File
from ..storage.write.staging import StagedFile
from .checksums import combine

__all__ = ["Copy", "Piece", "Task", "batched", "joined", "tasks_of"]

CHUNK = 8 << 20
"""Bytes of one task: enough to keep a disk busy, little enough for two threads to share a tensor."""
BATCH = 256
"""Small tasks that a thread takes at once."""


@dataclass(slots=True)
class Piece:
    """A tensor's bytes within a copy; ``expected`` is the checksum its source recorded, if any.

    A piece that several tasks share has ``parts``: of each its beginning, CRC-32 and bytes.
    """

    name: str
    nbytes: int
    expected: int | None = None
    crc: int = 0
    parts: list[tuple[int, int, int]] | None = None

    def done(self, begin: int, crc: int, nbytes: int) -> None:
        """Note the CRC-32 of a part that was copied, and where it begins; any thread may."""
        if self.parts is None:
            self.crc = crc
        else:
            self.parts.append((begin, crc, nbytes))

    def checksum(self) -> int:
        """Return the CRC-32 of the bytes that were copied."""
        if self.parts is None:
            return self.crc
        return combine([(crc, length) for _, crc, length in sorted(self.parts)])


@dataclass(slots=True)
class Copy:
    """A run of bytes that lie one after the other in the source and in the output."""

    source: File
    source_offset: int
    output: StagedFile
    output_offset: int
    pieces: list[Piece]

    @property
    def nbytes(self) -> int:
        """Bytes of the run."""
        return sum(piece.nbytes for piece in self.pieces)

    def follows(self, other: Copy, size: int) -> bool:
        """Whether this run begins where ``other``, of so many bytes, ends, on both sides."""
        return (
            self.source is other.source
            and self.output is other.output
            and self.source_offset == other.source_offset + size
            and self.output_offset == other.output_offset + size
        )


def joined(copies: Iterable[Copy]) -> list[Copy]:
    """Join runs that follow each other, of copies in the order of what is written."""
    made: list[Copy] = []
    size = 0  # of the last run, which may be of many thousand pieces
    for copy in copies:
        if made and copy.follows(made[-1], size):
            made[-1].pieces.extend(copy.pieces)
        else:
            made.append(copy)
            size = 0
        size += copy.nbytes
    return made


@dataclass(slots=True)
class Task:
    """Part of a run: from ``begin``, with the pieces that lie in it as (piece, offset in the piece, bytes)."""

    copy: Copy
    begin: int
    slices: list[tuple[Piece, int, int]]

    @property
    def nbytes(self) -> int:
        """Bytes of the task."""
        return sum(length for _, _, length in self.slices)


def tasks_of(copies: Sequence[Copy]) -> Iterator[Task]:
    """Cut runs into tasks of about ``CHUNK`` bytes."""
    for copy in copies:
        begin, slices, size = 0, list[tuple[Piece, int, int]](), 0
        for piece in copy.pieces:
            done = 0
            while True:
                length = min(piece.nbytes - done, CHUNK - size)
                if length < piece.nbytes and piece.parts is None:
                    piece.parts = []
                slices.append((piece, done, length))
                done, size = done + length, size + length
                if size >= CHUNK:
                    yield Task(copy, begin, slices)
                    begin, slices, size = begin + size, [], 0
                if done >= piece.nbytes:
                    break
        if slices:
            yield Task(copy, begin, slices)


def batched(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Gather small tasks, of which a model may have a hundred thousand."""
    batch: list[Task] = []
    size = 0
    for task in tasks:
        batch.append(task)
        size += task.nbytes
        if size >= CHUNK // 2 or len(batch) >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
