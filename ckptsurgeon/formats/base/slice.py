"""Reads a part of a file like a whole file, and joins the pieces of a tensor that was saved as a grid of pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ...errors import FormatError
from ...storage.read.base import Advance, File, Folder
from ...tensors.composition import join
from ...tensors.info import TensorInfo
from ...util.text import escape
from . import limits
from .untrusted import check_elements

__all__ = ["FileSlice", "TensorPiece", "assembled"]

_KEPT = 64 << 10
"""A part of at most this many bytes is read once and kept in memory, since readers ask for many small ranges."""


class FileSlice(File):
    """A part of a file, read like a file of its own: ``size`` bytes from the byte ``start`` on.

    Raises FormatError if the file is shorter.
    """

    mtime_ns: int | None = None
    validator = ""
    remote = False
    """False even if the file is remote: prefetching does not help, because a part is small or is read in two steps."""

    def __init__(self, file: File, start: int, size: int) -> None:
        if start < 0 or size < 0 or start + size > file.size:
            raise FormatError(
                f"{escape(file.uri)} has {file.size} bytes, but {size} bytes from byte {start} on are expected.",
                rule="slice",
            )
        self.uri = file.uri
        self.name = file.name
        self.size = size
        self._file = file
        self._start = start
        self._kept = file.read(start, size) if size <= _KEPT else None

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset`` on; raises FormatError if the part is too short."""
        self._check(offset, nbytes)
        if self._kept is not None:
            return self._kept[offset : offset + nbytes]
        return self._file.read(self._start + offset, nbytes)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Copy bytes from ``offset`` on until ``view`` is full; raises FormatError if the part is too short."""
        self._check(offset, len(view))
        self._file.readinto(self._start + offset, view)

    def _check(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise FormatError(
                f"a part of {escape(self.uri)} is damaged: its content does not end within its {self.size} bytes.",
                rule="slice",
            )

    def need(self, ranges: Iterable[tuple[int, int]], advance: Advance | None = None) -> None:
        """Announce (begin, end) ranges of this part that will be read: a remote file then fetches them together."""
        self._file.need([(self._start + begin, self._start + end) for begin, end in ranges], advance)

    def keep(self, wanted: bool) -> None:
        """Set whether fetched bytes of the whole file, not only of this part, are kept for the next run."""
        self._file.keep(wanted)

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed

    def descriptor(self) -> AbstractContextManager[None]:
        """Return a context whose value is None and not a file descriptor.

        With a descriptor, the kernel would copy from the start of the whole file, not from the start of this part.
        """
        return nullcontext()

    def folder(self) -> Folder:
        """Return the folder of the file to which this part belongs."""
        return self._file.folder()

    def close(self) -> None:
        """Do nothing: the owner of the whole file closes it."""


# Joins a tensor that sharded training saved as a grid of pieces.


@dataclass(frozen=True)
class TensorPiece:
    """A part of a tensor; ``offsets`` has, for each dimension, the index at which the part begins."""

    offsets: tuple[int, ...]
    info: TensorInfo


def assembled(key: str, dtype: str, shape: tuple[int, ...], pieces: Sequence[TensorPiece]) -> TensorInfo:
    """Return the TensorInfo of a tensor joined from pieces; raises FormatError if the pieces are not a complete grid.

    If the values of a piece cannot be read, those of the tensor cannot be read, either (``opaque``).
    """
    check_elements(shape)
    filled = [piece for piece in pieces if piece.info.numel] if 0 not in shape else []
    if any(len(piece.offsets) != len(shape) or len(piece.info.shape) != len(shape) for piece in pieces):
        raise FormatError(
            f"a piece of the tensor {escape(key)} has more or fewer dimensions than this tensor.", rule="pieces"
        )
    opaque = next((piece.info.opaque for piece in filled if piece.info.opaque), "")
    if opaque:
        return TensorInfo(dtype, shape, opaque=opaque)
    if not filled:
        if 0 not in shape:
            raise FormatError(f"no piece of the tensor {escape(key)} was found.", rule="pieces")
        return (
            pieces[0].info
            if pieces and pieces[0].info.shape == shape
            else TensorInfo(dtype, shape, opaque="it is empty")
        )
    made = _grid(filled, 0, shape)
    if made is None:
        raise FormatError(
            f"the {len(filled)} pieces of the tensor {escape(key)} are not a complete grid of its shape {shape}.",
            rule="pieces",
        )
    return made


def _grid(pieces: Sequence[TensorPiece], dim: int, shape: tuple[int, ...]) -> TensorInfo | None:
    """Return ``pieces`` joined along ``dim`` and all later dimensions; None if they do not form a complete grid.

    ``shape`` is the shape of the whole tensor.
    """
    if dim == len(shape):
        return pieces[0].info if len(pieces) == 1 else None
    if len(pieces) > limits.TENSORS:
        return None
    rows: dict[int, list[TensorPiece]] = {}
    for piece in pieces:
        rows.setdefault(piece.offsets[dim], []).append(piece)
    at, parts = 0, []
    for begin in sorted(rows):
        part = _grid(rows[begin], dim + 1, shape)
        size = rows[begin][0].info.shape[dim]
        if begin != at or part is None or any(piece.info.shape[dim] != size for piece in rows[begin]):
            return None
        parts.append(part)
        at += size
    return join(parts, dim) if at == shape[dim] else None
