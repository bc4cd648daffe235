"""Defines the header of a checkpoint, the interface of a format, and the interface of its writer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ...errors import FormatError
from ...storage.read.base import File, Source
from ...util.brief import Brief
from ...util.text import escape

__all__ = [
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
    "Writer",
    "naming",
]


@dataclass(frozen=True)
class FilePrint:
    """A fingerprint: size in bytes, SHA-256 of the header, and for local files the mtime in nanoseconds.

    ``name`` is the path within the checkpoint, empty if the file is the whole checkpoint. ``validator`` is the commit
    or strong ETag of a remote file, '' if there is none. For other files than checkpoints, the SHA-256 is that of all
    bytes.
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
    """An entry of a file's metadata as it is stored: the number of its type in the format, and where its bytes are.

    ``said`` is what it has, in words, if that is not short; ``items`` is the length of an array.
    """

    kind: int
    offset: int
    nbytes: int
    said: str = ""
    items: int = 0


@dataclass(frozen=True, repr=False)
class Header(Brief):
    """The contents of a checkpoint as described by the headers of its files.

    ``tree`` has nested mappings and lists of TensorInfo, plain values, names of classes, and stand-ins for objects.
    ``handles`` maps each ``Storage.file`` to the open file. ``recipe`` is the text of the recipe that ckptsurgeon
    stored, if any: it says how the file was made. It ends with a seal, the digest of all bytes outside the tensors;
    ``frame()`` computes this digest from the bytes as they are now. ``stored`` are the entries of the metadata as
    they are stored, if they have types: ``metadata`` has the texts of the short ones.
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
def naming(file: File) -> Iterator[None]:
    """Add the name of the file to a FormatError raised in the ``with`` block, unless its message has the name."""
    try:
        yield
    except FormatError as error:
        where = escape(file.uri)
        if where in error.message:
            raise
        raise type(error)(
            f"{where}: {error.message}", hint=error.hint, details=error.details, rule=error.rule
        ) from None


class Format(Protocol):
    """The interface of a format; each module in the folder ``formats`` that reads one has an instance, ``FORMAT``."""

    name: str
    magic: tuple[bytes, ...]
    """What its files begin with, each text that they can; () if they have no such beginning, or it reads folders."""

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


class OutTensor(NamedTuple):
    """A tensor to write; ``alias_of`` names an earlier tensor with the same values."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    alias_of: str = ""


@dataclass(frozen=True)
class ExtraEntries:
    """The entries of a file other than its tensors, as plain data.

    The state dict may be nested in dicts: ``path`` has their names, outermost first. ``levels`` has, for each of these
    dicts in the same order, its other entries, and last the entries of the state dict that are not tensors.
    """

    path: tuple[str, ...] = ()
    levels: tuple[Mapping[str, Any], ...] = ({},)


class OutputLayout(Protocol):
    """The offsets of everything in one output file, known before a byte is written.

    ``slots`` maps a key to (offset, nbytes); ``size`` is the size of the whole file in bytes.
    """

    size: int
    slots: Mapping[str, tuple[int, int]]

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterable[tuple[int, bytes]]:
        """Return the bytes outside the tensors, as (offset, bytes) in order.

        ``checksums`` has the CRC-32 of each tensor by key; ``recipe`` is the text of the recipe in pieces, which must
        be as long as the text that the layout was made for.
        """
        ...


ReadWritten = Callable[[str, int, int], bytes]
"""Returns bytes of a file that was written: its name in the folder, an offset, and how many."""
IndexFile = Callable[[ReadWritten], bytes]
"""Returns the bytes of an index, once the files that it describes are written."""


class Sharding(Protocol):
    """How a format writes a checkpoint as several files in a folder: their names and the index."""

    def names(self, number: int) -> list[str]:
        """Return the file names of a checkpoint whose tensors are in ``number`` files."""
        ...

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return the files besides those with tensors, such as an index: name → function that returns the bytes.

        ``files`` has the tensors and the layout of each file, by its name. Raises OutputError if the format cannot
        store these keys.
        """
        ...

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return which of the files ``present`` in a folder belong to a checkpoint of this format.

        ``read`` is a function that returns the bytes of a file.
        """
        ...


class Writer(Protocol):
    """The interface for writing a format; a Format that can be written has a Writer as its attribute ``writer``.

    ``name`` is the name of the format in ``--to``. ``sharding`` is used if the output is a folder. ``suffixes`` are
    those of single files; if there are none, only folders can be written. ``shares`` is True if tied tensors are stored
    once. ``most`` is the largest number of tensors that can be read back. ``dtypes`` are those that can be written.
    ``carries`` is True if a file can have other entries than tensors.
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

        ``beside`` has the entries other than tensors; only a writer with ``carries`` takes them.
        """
        ...
