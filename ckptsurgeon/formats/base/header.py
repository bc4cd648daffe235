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
    "OutTensor",
    "OutputLayout",
    "Sharding",
    "Writer",
    "naming",
]


@dataclass(frozen=True)
class FilePrint:
    """A fingerprint: size in bytes, SHA-256 of the header, and for local files the mtime in nanoseconds.

    ``name`` is relative to the checkpoint (empty when it is the checkpoint); ``validator`` is the commit or strong ETag
    of a remote file, '' if there is none. Of a file that is no checkpoint, the SHA-256 is that of its content.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = None
    validator: str = ""

    @classmethod
    def of(cls, file: File, sha256: str, name: str) -> FilePrint:
        """Return the fingerprint of an open file; ``sha256`` is that of its header."""
        return cls(name, file.size, sha256, file.mtime_ns, file.validator)


@dataclass(frozen=True, repr=False)
class Header(Brief):
    """The contents of a checkpoint as far as its headers tell.

    ``tree`` nests mappings and lists down to TensorInfo, plain values, names and opaque objects.
    ``handles`` gives for each ``Storage.file`` the open file. ``recipe`` is the text of the recipe that
    ckptsurgeon left in it; ``frame()`` is the digest that it seals, taken anew from the bytes.
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
    """Add the file's name to a FormatError that does not have it: the pickle reader does not know the file."""
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
    """A format on disk. Each module of this folder has one as ``FORMAT``."""

    name: str

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether ``source``, which begins with ``head``, has this format: by content, never by name."""
        ...

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header; ``name`` is the file name that its storages refer to.

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

    The state dict is nested in dicts under the names of ``path``; ``levels`` are the other entries of each of these
    dicts, outermost first, and at the end those among the tensors.
    """

    path: tuple[str, ...] = ()
    levels: tuple[Mapping[str, Any], ...] = ({},)


class OutputLayout(Protocol):
    """The offsets of everything in one file, known before a byte is written.

    ``slots`` maps a key to (offset, nbytes); ``size`` is the whole file's.
    """

    size: int
    slots: Mapping[str, tuple[int, int]]

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterable[tuple[int, bytes]]:
        """Return every byte that is not a tensor's, as (offset, bytes) in order.

        ``recipe`` is its text in pieces, of the same length as the one that the layout was made for.
        """
        ...


class Sharding(Protocol):
    """The files of a checkpoint in a folder: names, index, and which existing files belong to it."""

    def names(self, number: int) -> list[str]:
        """Return the names of ``number`` files."""
        ...

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> tuple[str, bytes]:
        """Return the name and the bytes of the index that gives the file of each tensor; '' if none is needed."""
        ...

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return the files of a folder that belong to such a checkpoint; ``read`` returns the bytes of one."""
        ...


class Writer(Protocol):
    """A format that can be written: the ``writer`` of a Format.

    ``name`` is its name in ``--to``; ``sharding`` lays it out in a folder, which is required if ``suffixes`` is
    empty; ``shares`` is set if tied tensors are written once; ``most`` is the number of tensors that can be read back.
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
        """Return the layout of a file; ``recipe`` is the text to embed, in pieces; ``beside`` needs ``carries``."""
        ...
