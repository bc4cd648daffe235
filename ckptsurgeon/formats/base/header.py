"""Defines the header of a checkpoint, the interface of a format, and the interface of its writer.

An output's recipe has a seal: one digest over every byte of a file that is not part of a tensor. The recipe is itself
in the file, so the digest is computed as if the seal were all zeros. In a zip archive, the checksum of the recipe's
record is also replaced: by the checksum of the recipe with zeros.
"""

from __future__ import annotations

import gc
import hashlib
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from ...errors import FormatError
from ...storage.read.base import File, Source
from ...util.short_repr import Brief
from ...util.text import escape

__all__ = [
    "UNSEALED",
    "ChannelNumbers",
    "ExtraEntries",
    "FilePrint",
    "Format",
    "Header",
    "IndexFile",
    "OutTensor",
    "OutputLayout",
    "ReadWritten",
    "Sharding",
    "StoredEntry",
    "StoredQuantiser",
    "Writer",
    "digest_outside",
    "naming",
    "no_collection",
    "seal",
    "seal_of",
]


@dataclass(frozen=True)
class FilePrint:
    """The fingerprint of a file: size in bytes, SHA-256 of the header, and for local files the mtime in nanoseconds.

    ``name`` is the path within the checkpoint, '' if the file is the whole checkpoint. ``validator`` is the commit or
    strong ETag of a remote file, '' if there is none. If the file is not a checkpoint, ``sha256`` is the SHA-256 of all
    its bytes.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = None
    validator: str = ""

    @classmethod
    def of(cls, file: File, sha256: str, name: str) -> FilePrint:
        """Return the fingerprint of an open file; ``sha256`` is the digest of its header."""
        return cls(name, file.size, sha256, file.mtime_ns, file.validator)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A metadata entry of a file: its type, and the position of its value in the file.

    ``kind`` is the format's number for the type. The value begins at ``offset`` and has ``nbytes`` bytes. ``said`` is a
    short description of a string or array, such as "3 strings". ``items`` is the length of an array.
    """

    kind: int
    offset: int
    nbytes: int
    said: str = ""
    items: int = 0


@dataclass(frozen=True, repr=False)
class Header(Brief):
    """The contents of a checkpoint as described by the headers of its files.

    ``tree`` is the content: nested mappings and lists with TensorInfo, plain values, names of classes, and stand-ins
    for objects. ``handles`` maps each ``Storage.file`` to the open file.

    ``recipe`` is the recipe that ckptsurgeon stored, as text, or None. It says how the file was made, and ends with a
    seal: the digest of all bytes outside the tensors. ``frame()`` computes this digest from the bytes that the file has
    now. ``metadata`` has the metadata as strings. If the format stores a type with each entry, ``stored`` has all
    entries, and ``metadata`` only those with a short value.
    """

    format: str
    tree: Any
    files: tuple[FilePrint, ...]
    handles: Mapping[str, File]
    metadata: Mapping[str, str] = field(default_factory=dict)
    recipe: str | None = None
    notes: tuple[str, ...] = ()
    frame: Callable[[], str] = str
    stored: Mapping[str, StoredEntry] = field(default_factory=dict)


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause the cyclic garbage collector within the ``with`` block: a header is many small objects that stay in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def naming(source: Source) -> Iterator[None]:
    """Add the path of ``source`` to the message of a FormatError from the ``with`` block, unless it is in there."""
    try:
        yield
    except FormatError as error:
        where = escape(source.uri)
        if where in error.message:
            raise
        raise type(error)(
            f"{where}: {error.message}", hint=error.hint, details=error.details, rule=error.rule
        ) from None


class Format(Protocol):
    """The interface of a format.

    Each module in the folder ``formats`` that reads a format defines an object with this interface, called ``FORMAT``.
    """

    name: str
    magic: tuple[bytes, ...]
    """The possible magic bytes at the beginning of files; () if the format has none, or reads folders."""

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether ``source`` has this format, judged by its content, never by its name.

        ``head`` has the first bytes of a file, and is empty for a folder.
        """
        ...

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of a file or folder in this format.

        ``name`` is the path of the file within the checkpoint, which is stored in each Storage; '' if the file is the
        whole checkpoint. Raises FormatError or UnsafeError if the file breaks a rule of the format.
        """
        ...


class ChannelNumbers(NamedTuple):
    """The scales or zero points of a tensor that torch quantised per channel: dtype, and little-endian bytes."""

    dtype: str
    data: bytes


class StoredQuantiser(NamedTuple):
    """The parameters of a tensor that torch quantised, as a pickle stores them: scales and zero points.

    If ``axis`` is not None, it is the dimension of the channels, and each channel has its own scale and zero point.
    """

    scheme: str
    scale: float | ChannelNumbers
    zero: int | ChannelNumbers
    axis: int | None

    def equals(self, other: StoredQuantiser) -> bool:
        """Return whether two quantisers have the same parameters, bit for bit: NaN equals NaN with the same bits."""
        scales = (_bits(one.scale) if isinstance(one.scale, float) else one.scale for one in (self, other))
        return len({*scales}) == 1 and self._replace(scale=0.0) == other._replace(scale=0.0)


def _bits(number: float) -> bytes:
    return struct.pack("<d", number)


class OutTensor(NamedTuple):
    """A tensor to write; ``alias_of`` is the key of an earlier tensor that it is tied to, or ''.

    A tensor that torch quantised has a ``quantiser``.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    alias_of: str = ""
    quantiser: StoredQuantiser | None = None


@dataclass(frozen=True)
class ExtraEntries:
    """The entries of a file other than its tensors, as plain data.

    ``path`` has the keys that lead from the outermost dict of the file to the state dict; it is empty if the outermost
    dict is the state dict. ``levels`` has one mapping for each dict on this path, outermost first: the entries of the
    dict that are not on the path. The last mapping has the entries of the state dict that are not tensors. ``nested``
    maps keys of tensors to their places in dicts inside the state dict: the keys of these dicts, and of the tensor.
    """

    path: tuple[str, ...] = ()
    levels: tuple[Mapping[str, Any], ...] = ({},)
    nested: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)


class OutputLayout(Protocol):
    """The interface of the layout of one output file: all offsets are known before a byte is written.

    ``slots`` maps the key of a tensor to (offset, nbytes); ``size`` is the size of the whole file in bytes.
    """

    size: int
    slots: Mapping[str, tuple[int, int]]

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterable[tuple[int, bytes]]:
        """Return the bytes outside the tensors, as (offset, bytes) in order.

        ``checksums`` has the CRC-32 of each tensor by key. ``recipe`` is the text of the recipe in pieces; it must be
        as long as the recipe that the layout was made for.
        """
        ...


ReadWritten = Callable[[str, int, int], bytes]
"""A function of (file name in the folder, offset, number of bytes) that returns these bytes of a written file."""
IndexFile = Callable[[ReadWritten], bytes]
"""A function that returns the bytes of an index; it is called after the files in the index were written."""


class Sharding(Protocol):
    """The interface for a checkpoint of several files in a folder: the names of the files, and the index."""

    def names(self, number: int) -> list[str]:
        """Return the file names of a checkpoint whose tensors are in ``number`` files."""
        ...

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return {file name: function that returns the bytes} of the files without tensors, such as an index.

        ``files`` has the tensors and the layout of each file, by its name. Raises OutputError if the format cannot
        store these keys.
        """
        ...

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return the names in ``present``, the files of a folder, that belong to a checkpoint of this format.

        ``read`` is a function that returns the bytes of a file.
        """
        ...


class Writer(Protocol):
    """The interface for writing a format; a Format that can be written has a Writer as its attribute ``writer``.

    ``name`` is the name of the format in ``--to``. ``sharding`` is used if the output is a folder. ``suffixes`` are the
    suffixes of single files; if there are none, only folders can be written. ``shares`` is True if the bytes of tied
    tensors are stored once. ``most`` is the largest number of tensors that ckptsurgeon can read back. ``dtypes`` are
    the dtypes that can be written. ``carries`` is True if a file can have entries other than tensors.
    """

    name: str
    sharding: Sharding
    suffixes: tuple[str, ...]
    shares: bool
    most: int
    dtypes: frozenset[str]
    carries: bool

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> OutputLayout:
        """Return the layout of a file; ``recipe`` is the text of the recipe to store in it, in pieces.

        ``beside`` has the entries other than tensors; only a writer whose ``carries`` is True uses them.
        """
        ...


UNSEALED = "0" * 64
"""The placeholder for a seal: the digest is computed with this value in the recipe, and then takes its place."""
_SEAL = re.compile(r'"seal":\s*"([0-9a-f]{64})"\s*\}\s*\Z')
"""Matches the seal, the last entry of a recipe; an earlier entry called ``seal`` is part of a user's metadata."""

_CHUNK = 1 << 20


def seal_of(recipe: str) -> str:
    """Return the seal (a SHA-256 in hexadecimal) at the end of a recipe's text; '' if there is none."""
    found = _SEAL.search(recipe)
    return found.group(1) if found else ""


def seal(recipe: Sequence[str], digest: str) -> list[str]:
    """Return a recipe with ``digest`` in place of the zeros of its seal.

    ``recipe`` is the text in pieces; the last piece contains the seal.
    """
    *pieces, last = recipe
    return [*pieces, _SEAL.sub(lambda found: found.group(0).replace(UNSEALED, digest), last, count=1)]


def digest_outside(file: File, payload: Iterable[tuple[int, int]], patches: Sequence[tuple[int, bytes]] = ()) -> str:
    """Return the SHA-256 of the bytes of a file that are outside its tensors.

    ``payload`` has (begin, end) of each tensor, in ascending order. ``patches`` has (offset, bytes): the digest is
    computed as if the file had these bytes at these offsets, because it had them before its seal was set.
    """
    digest, at = hashlib.sha256(), 0
    parts = [*payload, (file.size, file.size)]
    file.need((before, begin) for (_, before), (begin, _) in pairwise([(0, 0), *parts]) if before < begin)
    for begin, end in parts:
        while at < begin:
            size = min(_CHUNK, begin - at) if begin - at > 2 * _CHUNK else begin - at
            digest.update(_patched(file, at, size, patches))
            at += size
        at = max(at, end)
    return digest.hexdigest()


def _patched(file: File, offset: int, nbytes: int, patches: Sequence[tuple[int, bytes]]) -> bytes:
    data = bytearray(file.read(offset, nbytes))
    for at, patch in patches:
        low, high = max(at, offset), min(at + len(patch), offset + nbytes)
        if low < high:
            data[low - offset : high - offset] = patch[low - at : high - at]
    return bytes(data)
