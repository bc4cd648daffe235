"""The ranges of a new file that a patch encodes one after the other, and the records of their blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...storage.read.base import File
from ..checksums import combine
from .bases import read_tensor
from .blocks import BLOCK, Bytes, Encoder
from .factored import changes
from .index import LowRank, Segment
from .low_rank import Factors, factors_of
from .signs import Errors

__all__ = ["EncodedBlock", "FilePiece", "FileRange"]


@dataclass(frozen=True)
class FileRange:
    """A range of ``nbytes`` bytes of a new file from the byte ``offset`` on: the bytes of a tensor, or other bytes.

    ``key`` is the key of the tensor, "" for other bytes. ``old`` is the key of the old tensor that it is compared with;
    "" if there is none. ``itemsize`` is the size of one element in bytes. ``dtype`` is the dtype of elements whose
    changes are approximated; "" if the bytes are stored exactly. They are approximated by factors of the rank ``rank``
    for a matrix of ``columns`` columns; if ``rank`` is 0, by their signs.
    """

    offset: int
    nbytes: int
    key: str = ""
    itemsize: int = 1
    old: str = ""
    dtype: str = ""
    rank: int = 0
    columns: int = 0


@dataclass(frozen=True)
class EncodedBlock:
    """A block of a new file: its bytes, their encoded form, and the CRC-32 of the new bytes and of the old bytes.

    ``errors`` is None if the bytes are equal to the bytes of the new checkpoint.
    """

    new: Bytes
    encoded: bytes
    crc: int
    old_crc: int
    errors: Errors | None = None


@dataclass
class FilePiece:
    """A range of a new file, and the record of each of its blocks.

    ``blocks`` are the sizes of the encoded blocks. ``crcs`` has (CRC-32, number of bytes) for each new block, and
    ``old_crcs`` for each old block. ``factors`` are the low-rank factors of the range's change, if it is stored by
    factors; ``right`` is the right factor, encoded. ``why`` says why a matrix for which the user asked for factors is
    stored exactly.
    """

    range: FileRange
    blocks: list[int] = field(default_factory=list)
    crcs: list[tuple[int, int]] = field(default_factory=list)
    old_crcs: list[tuple[int, int]] = field(default_factory=list)
    errors: Errors | None = None
    factors: Factors | None = None
    right: bytes = b""
    why: str = ""
    low_rank: LowRank | None = None

    def find_factors(self, file: File, old: Checkpoint, level: int) -> None:
        """Compute the low-rank factors of the range's change; set ``factors`` and ``right``.

        If the change has no factors, ``why`` is set instead: "" if the change is zero, else the reason.
        """
        one = self.range
        shape = one.nbytes // one.itemsize // one.columns, one.columns

        def before(begin: int, view: memoryview) -> None:
            read_tensor(old, one.old, begin, view)

        def after(begin: int, view: memoryview) -> None:
            file.readinto(one.offset + begin, view)

        found = factors_of(lambda: changes(before, after, shape, one.dtype), shape, one.rank)
        if isinstance(found, str):
            self.why = found
            return
        self.factors, self.right = found, Encoder(level).encode(found.right.view(np.uint8).reshape(-1), None, 4)

    def add(self, block: EncodedBlock) -> bytes:
        """Add the next encoded block, and return the bytes that follow it in the patch.

        Only the last block is followed by bytes: the encoded right factor, if the changes are stored as factors.
        """
        if block.errors is not None:
            self.errors = block.errors.plus(self.errors)
        self.blocks.append(len(block.encoded))
        self.crcs.append((block.crc, block.new.size))
        self.old_crcs.append((block.old_crc, block.new.size))
        if self.factors is None or len(self.blocks) * BLOCK < self.range.nbytes:
            return b""
        right, square = self.right, self.factors.square
        self.right, self.factors = b"", None  # frees their memory
        if self.errors is None:
            self.why = "factors would take more than half of the space of the exact change"
            return b""
        error = math.sqrt(self.errors.missing / square)
        self.low_rank = LowRank(self.range.dtype, self.range.columns, self.range.rank, error)
        self.blocks.append(len(right))
        return right

    @property
    def segment(self) -> Segment:
        """The segment of the patch for this range."""
        blocks = tuple(self.blocks)
        if not self.range.old:
            return Segment("raw", self.range.nbytes, blocks=blocks)
        same = Segment("same", self.range.nbytes, self.range.old, combine(self.old_crcs))
        kind = "low_rank" if self.low_rank else "xor" if self.errors is None else "signs"
        return replace(same, kind=kind, blocks=blocks, low_rank=self.low_rank) if any(blocks) else same
