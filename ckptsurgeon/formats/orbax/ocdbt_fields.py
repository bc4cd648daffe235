"""Reads the fields of manifests and nodes of OCDBT, and counts the bytes read, unpacked and kept.

https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format describes the format; the source of this
page is https://github.com/google/tensorstore/blob/master/tensorstore/kvstore/ocdbt/index.rst.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from ...errors import UnsafeError
from ...storage.crc32c import crc32c
from ...util.text import escape
from ..base import limits
from .packages import unzstd

__all__ = ["Budget", "DataFile", "Fields", "UnsupportedError", "unframed"]

_HEAD, _SUM = 12, 4
_FRAME = 400
"""Reading a manifest or node takes as much time as reading this many numbers, even if it is small."""
_LONGEST = 0xFFFF
"""The most bytes of a key or path."""


class UnsupportedError(ValueError):
    """Raised for a database that may be whole, but that ckpt cannot read."""


class Budget:
    """Limits the time and memory that all nodes of a database take together; raises UnsafeError above a limit.

    Such limits are needed, since a small file can cause much work: a node of a few bytes may unpack to a long one, a
    B-tree may contain the same node many times, and keys share prefixes, so a short node may have many long keys.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._numbers, self._unpacked, self._kept = limits.OCDBT_NUMBERS, limits.OCDBT_UNPACKED, limits.OCDBT_KEPT

    def read(self, numbers: int) -> None:
        """Count ``numbers`` that are read one by one, to limit the time; raises UnsafeError above the limit."""
        self._numbers -= numbers
        if self._numbers < 0:
            raise self._too_large(f"has nodes with over {limits.OCDBT_NUMBERS:,} numbers")

    def unpack(self, nbytes: int) -> None:
        """Count the bytes of unpacked nodes; raises UnsafeError above the limit."""
        self._unpacked -= nbytes
        if self._unpacked < 0:
            raise self._too_large(f"has nodes that unpack to over {limits.OCDBT_UNPACKED:,} bytes")

    def keep(self, nbytes: int) -> None:
        """Count the bytes that stay in memory; raises UnsafeError above the limit."""
        self._kept -= nbytes
        if self._kept < 0:
            raise self._too_large(f"has keys and values that need over {limits.OCDBT_KEPT:,} bytes of memory")

    def _too_large(self, what: str) -> UnsafeError:
        return UnsafeError(f"the OCDBT database in {escape(self._uri)} {what}.", rule="ocdbt")


class DataFile(NamedTuple):
    """The path of a file, relative to the database.

    ``base`` is a prefix of this path; the paths in the nodes of this file begin with it, too.
    """

    path: str
    base: bytes


def unframed(data: bytes, magic: int, budget: Budget) -> Fields:
    """Return the fields of a manifest or node; raises ValueError if its header or its checksum is wrong.

    Raises UnsupportedError for another version of the format.
    """
    if len(data) < _HEAD + _SUM or int.from_bytes(data[:4], "big") != magic:
        raise ValueError("a manifest or node begins with the wrong bytes")
    if int.from_bytes(data[4:_HEAD], "little") != len(data):
        raise ValueError("the length in the header of a manifest or node is wrong")
    if crc32c(memoryview(data)[:-_SUM]) != int.from_bytes(data[-_SUM:], "little"):
        raise ValueError("a manifest or node does not match its checksum")
    budget.read(_FRAME)
    fields = Fields(memoryview(data)[_HEAD:-_SUM], budget)
    version, compression = fields.number(), fields.number()
    if version != 0 or compression > 1:
        raise UnsupportedError(
            f"a manifest or node has version {version} and compression {compression}; ckpt reads version 0 with "
            "compression 0 or 1"
        )
    body = unzstd(fields.rest(), limits.OCDBT_NODE) if compression else fields.rest()
    budget.unpack(len(body))
    return Fields(body, budget)


class Fields:
    """Reads fields one after the other; raises ValueError if no field is left, or if a field is not valid."""

    def __init__(self, data: bytes | memoryview, budget: Budget) -> None:
        self._data, self._at, self.budget = data, 0, budget

    def rest(self) -> bytes | memoryview:
        """Return the bytes that are left, without a copy."""
        return self._data[self._at :]

    def end(self) -> None:
        """Raise ValueError if bytes are left."""
        if self._at != len(self._data):
            raise ValueError("a node has bytes after its last field")

    def take(self, nbytes: int) -> bytes:
        """Return the next ``nbytes`` bytes; raises ValueError if there are fewer."""
        found = bytes(self._data[self._at : self._at + nbytes])
        if len(found) != nbytes:
            raise ValueError("a manifest or node ends before its last field")
        self._at += nbytes
        return found

    def number(self) -> int:
        """Return the next number, of at most 64 bits."""
        return self.numbers(1)[0]

    def numbers(self, count: int) -> Sequence[int]:
        """Return the next ``count`` numbers; each is a varint, as in protocol buffers.

        Raises ValueError if a number is not valid.
        """
        self.budget.read(count)
        found, data, at = array("Q"), self._data, self._at
        try:
            for _ in range(count):
                value = shift = 0
                while (byte := data[at]) > 127 and shift < 63:
                    value |= (byte & 127) << shift
                    shift += 7
                    at += 1
                found.append(value | byte << shift)
                at += 1
        except IndexError:
            raise ValueError("a manifest or node ends before its last number") from None
        except OverflowError:
            raise ValueError("a manifest or node has a number of over 64 bits") from None
        self._at = at
        return found

    def texts(self, shared: Sequence[int], lengths: Sequence[int], prefix: bytes = b"") -> list[bytes]:
        """Return texts; each is stored without the prefix that it shares with the text before it.

        ``shared`` has the length of the shared prefix of each text but the first. ``lengths`` has the number of stored
        bytes of each text. ``prefix`` is put in front of all texts. Raises ValueError if a text is not valid.
        """
        found, last = list[bytes](), b""
        for common, length in zip((0, *shared), lengths, strict=True):
            if common > len(last) or len(prefix) + common + length > _LONGEST:
                raise ValueError(
                    "a node has a key or path that is too long, or whose shared prefix is longer than the "
                    "key or path before it"
                )
            last = last[:common] + self.take(length)
            found.append(prefix + last)
            self.budget.keep(len(found[-1]) + limits.OCDBT_ENTRY)
        return found

    def files(self, base: bytes) -> list[DataFile]:
        """Return the files that a node lists; ``base`` is the base of the file that contains this node.

        Raises ValueError if a path is not valid.
        """
        count = self.number()
        shared = self.numbers(max(count, 1) - 1)
        lengths, bases = self.numbers(count), self.numbers(count)
        paths = self.texts(shared, lengths, base) if count else []
        if any(len(base) + length > len(path) for length, path in zip(bases, paths, strict=True)):
            raise ValueError("the path of a file in a node is shorter than the base that it should begin with")
        return [
            DataFile(os.fsdecode(path), path[: len(base) + length]) for length, path in zip(bases, paths, strict=True)
        ]
