"""Databases in the format OCDBT made byte by byte, without compression, valid ones and others.

https://google.github.io/tensorstore/kvstore/ocdbt/index.html has the format.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptsurgeon.storage.crc32c import crc32c

__all__ = ["NODE", "Reference", "framed", "inner", "leaf", "manifest", "numbered", "table", "varint", "varints"]

MANIFEST, NODE = 0x0CDB3A2A, 0x0CDB20DE


@dataclass(frozen=True)
class Reference:
    """A range of bytes in a file, whose path is relative to the database."""

    file: str
    offset: int
    length: int
    base: str = ""


def varint(number: int) -> bytes:
    low, high = number & 127, number >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def varints(*numbers: int) -> bytes:
    return b"".join(map(varint, numbers))


def framed(magic: int, body: bytes, compression: int = 0) -> bytes:
    """A manifest or node: its header, its body and its checksum."""
    inside = varints(0, compression) + body
    data = struct.pack(">I", magic) + struct.pack("<Q", 16 + len(inside)) + inside
    return data + struct.pack("<I", crc32c(data))


def table(references: Sequence[Reference]) -> bytes:
    """A data file table, without common prefixes, that has the file of each reference."""
    paths = [(one.base + one.file).encode() for one in references]
    prefixes = [0] * (len(paths) - 1)
    bases = [len(one.base.encode()) for one in references]
    return varints(len(paths), *prefixes, *map(len, paths), *bases) + b"".join(paths)


def configuration(kind: int = 0) -> bytes:
    """The first fields of a manifest: the UUID, the kind, sizes, the arity of the version tree, no compression."""
    return bytes(16) + varints(kind, 1024, 8 << 20) + bytes([4]) + varint(0)


def numbered() -> bytes:
    """A manifest without versions: they are in manifests with numbers."""
    return framed(MANIFEST, configuration(1))


def manifest(root: Reference, height: int = 0, *, generation: int = 1, compression: int = 0) -> bytes:
    """A manifest with one version, whose root node has a height."""
    version = varints(1, generation) + bytes([height]) + varints(0, root.offset, root.length)
    statistics = varints(1, 1, 1) + struct.pack("<Q", 0)
    return framed(MANIFEST, configuration() + table([root]) + version + statistics + varint(0), compression)


def keys(names: Sequence[str], prefixes: Sequence[int] = ()) -> tuple[bytes, bytes]:
    """The lengths of keys and their bytes, without common prefixes."""
    lengths = varints(*([0] * (len(names) - 1)), *(len(name.encode()) for name in names), *prefixes)
    return lengths, "".join(names).encode()


def leaf(values: dict[str, bytes | Reference]) -> bytes:
    """A node with values by their keys: bytes are stored in it, references lead to other files."""
    names = sorted(values)
    ordered: list[Any] = [values[name] for name in names]
    apart = [one for one in ordered if isinstance(one, Reference)]
    inline = [one for one in ordered if isinstance(one, bytes)]
    lengths, texts = keys(names)
    sizes = varints(*(one.length if isinstance(one, Reference) else len(one) for one in ordered))
    kinds = varints(*(isinstance(one, Reference) for one in ordered))
    places = varints(*range(len(apart)), *(one.offset for one in apart))
    body = varint(len(names)) + lengths + texts + sizes + kinds + places + b"".join(inline)
    return framed(NODE, bytes([0]) + table(apart) + body)


def inner(children: dict[str, Reference], height: int, common: int = 0) -> bytes:
    """A node whose children are nodes; a child has the keys from its key on.

    All keys below a child begin with the first ``common`` characters of its key, which they lack.
    """
    names = sorted(children)
    places = [children[name] for name in names]
    lengths, texts = keys(names, [common] * len(names))
    numbers = [*range(len(places)), *(one.offset for one in places), *(one.length for one in places)]
    statistics = [1] * 3 * len(places)
    body = varint(len(names)) + lengths + texts + varints(*numbers, *statistics)
    return framed(NODE, bytes([height]) + table(places) + body)
