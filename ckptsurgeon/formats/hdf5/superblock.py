"""Finds the superblock of an HDF5 file, and in it the address of the root group (specification, section II.A)."""

from __future__ import annotations

from typing import NamedTuple

from ...errors import FormatError
from ...storage.read.base import File
from .blocks import BlockReader, Fields, cut_short, malformed

__all__ = ["SIGNATURE", "Superblock", "read_superblock", "superblock_at"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FIRST = 512
_LAST = 1 << 20
"""The first and the last of the offsets that a superblock after a user block can have: 512, 1024, 2048 and so on."""
_WHAT = "its superblock"


class Superblock(NamedTuple):
    """The address of the root group's object header, and whether the file was open for writing when it was copied."""

    root: int
    is_open: bool


def superblock_at(file: File, head: bytes) -> int:
    """Return the offset of the superblock; -1 if the file has none. ``head`` has the first bytes of the file.

    A user block is accepted only if its first bytes are zeros: otherwise the file may have another format.
    """
    if head.startswith(SIGNATURE):
        return 0
    at = _FIRST
    while not head.strip(b"\0") and at <= _LAST and at + len(SIGNATURE) <= file.size:
        if file.read(at, len(SIGNATURE)) == SIGNATURE:
            return at
        at *= 2
    return -1


def read_superblock(blocks: BlockReader) -> Superblock:
    """Return the superblock, and set the sizes of addresses and lengths in ``blocks``.

    Raises FormatError if it is not valid.
    """
    head = Fields(blocks.peek(0, 16, _WHAT), _WHAT, len(SIGNATURE))
    version = head.number(1)
    if version > 3:
        raise FormatError(f"the HDF5 superblock has the unknown version {version}.", rule="hdf5 version")
    head.at = 13 if version < 2 else 9
    sizes = head.number(1), head.number(1)
    if not {*sizes} <= {2, 4, 8}:
        raise malformed(_WHAT, f"has addresses of {sizes[0]} and lengths of {sizes[1]} bytes, not of 2, 4 or 8")
    blocks.offset_size, blocks.length_size = sizes
    return _earlier(blocks, version) if version < 2 else _later(blocks)


def _earlier(blocks: BlockReader, version: int) -> Superblock:
    """Return a superblock of version 0 or 1, which ends with the symbol table entry of the root group.

    Raises FormatError for a file that a driver divided into several.
    """
    begin = 24 if version == 0 else 28
    fields = blocks.block(0, begin + 6 * blocks.offset_size + 24, _WHAT)
    fields.at = begin
    first = fields.number(blocks.offset_size)
    fields.take(blocks.offset_size)
    end = blocks.needed(fields, "its end")
    if blocks.address(fields) is not None:  # checked before the size, which is that of all files
        raise FormatError(
            "the HDF5 file was written by a driver that divides a file into several.",
            hint="Join the parts PART0.h5, PART1.h5 and so on into one file: h5repack PART%d.h5 FILE.h5.",
            rule="hdf5 driver",
        )
    _check_end(blocks, end - first)
    fields.take(blocks.offset_size)
    return Superblock(blocks.needed(fields, "its root group"), False)


def _later(blocks: BlockReader) -> Superblock:
    fields = blocks.checked(0, 12 + 4 * blocks.offset_size + 4, _WHAT)
    fields.at = 11
    is_open = bool(fields.number(1) & 1)
    first = fields.number(blocks.offset_size)
    fields.take(blocks.offset_size)
    _check_end(blocks, blocks.needed(fields, "its end") - first)
    return Superblock(blocks.needed(fields, "its root group"), is_open)


def _check_end(blocks: BlockReader, nbytes: int) -> None:
    """Raise FormatError if the file is shorter than ``nbytes``, the size that the superblock states."""
    if nbytes > blocks.size:
        raise cut_short(f"its content of {nbytes:,} bytes")
