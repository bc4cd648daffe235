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


@dataclass(frozen=True, repr=False)
class Header(Brief):
    """The contents of a checkpoint as described by the headers of its files.

    ``tree`` has nested mappings and lists of TensorInfo, plain values, names and opaque objects. ``handles`` maps each
    ``Storage.file`` to the open file. ``recipe`` is the text of the recipe that ckptsurgeon stored, if any; ``frame()``
    computes the digest that the seal in the recipe must equal, from the bytes as they are now.
    """

    format: str
    tree: Any
    files: tuple[FilePrint, ...]
    handles: Mapping[str, File]
    metadata: Mapping[str, str] = field(default_factory=dict)
    recipe: str | None = None
    notes: tuple[str, ...] = ()
    frame: Callable[[], str] = str


@contextmanager
def naming(file: File) -> Iterator[None]:
    """Add the name of the file to any FormatError that lacks it, such as those of the pickle reader."""
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

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether ``source`` has this format, judged by its content, never by its name.

        ``head`` has the first bytes of a file, and is empty for a folder.
        """
        ...

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header; ``name`` is the name of the file in its storages.

        Raises FormatError or UnsafeError if the file breaks a rule.
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

    The state dict is nested in dicts: ``path`` has their names, outermost first. ``levels`` has the other entries of
    each dict, in the same order, and last the entries between the tensors.
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
        """Return the names of ``number`` files."""
        ...

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return the files besides those of the tensors by name, such as an index; none if none is needed.

        Raises OutputError if the format cannot have these keys.
        """
        ...

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return which of the files ``present`` in a folder belong to such a checkpoint.

        ``read`` is a function that returns the bytes of a file.
        """
        ...


class Writer(Protocol):
    """Writes a format; a Format that can be written has one as its attribute ``writer``.

    ``name`` is its name in ``--to``; ``sharding`` is used for folders, which are required if ``suffixes``, those of
    files, is empty; ``shares`` is True if tied tensors are stored once; ``most`` is the most tensors that can be read
    back; ``carries`` is True if a file can have other entries than tensors.
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
        """Return the layout of a file; ``recipe`` is the text to store in it, in pieces.

        ``beside`` are the other entries, which only a writer with ``carries`` takes.
        """
        ...
