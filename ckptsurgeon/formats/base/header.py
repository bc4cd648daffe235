"""What reading a header gives, whatever the format, and what a format must offer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ...errors import FormatError
from ...storage.read.base import File, Source
from ...util.brief import Brief
from ...util.text import escape

__all__ = ["Beside", "FileHeader", "Format", "Header", "Layout", "OutTensor", "Sharding", "Writer", "naming"]


@dataclass(frozen=True)
class FileHeader:
    """One file of a checkpoint: what tells it from another without reading it whole.

    ``name`` is relative to the checkpoint (empty when it is the checkpoint); ``size`` in bytes; ``validator`` is the
    commit or strong ETag of a file at an address, '' where there is none.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None = None
    validator: str = ""

    @classmethod
    def of(cls, file: File, sha256: str, name: str) -> FileHeader:
        """Return what tells an open file from another; ``sha256`` is of its header."""
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
    files: tuple[FileHeader, ...]
    handles: Mapping[str, File]
    metadata: Mapping[str, str] = field(default_factory=dict)
    recipe: str | None = None
    notes: tuple[str, ...] = ()
    frame: Callable[[], str] = str


@contextmanager
def naming(file: File) -> Iterator[None]:
    """Put the file in front of a FormatError that does not name it: a pickle does not know where it lies."""
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
    """A format on disk. One module of this folder each, as ``FORMAT``."""

    name: str

    def sniff(self, source: Source, head: bytes) -> bool:
        """Whether ``source``, which begins with ``head``, is of this format. By content, never by name."""
        ...

    def read(self, source: Source, name: str = "") -> Header:
        """Read the header; ``name`` is what its storages call the file they lie in.

        Raises FormatError or UnsafeError where the file breaks a rule.
        """
        ...


class OutTensor(NamedTuple):
    """A tensor to write: ``alias_of`` names an earlier one that it shares its values with."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    alias_of: str = ""


@dataclass(frozen=True)
class Beside:
    """What a file holds beside its tensors, as plain data.

    The state dict hangs in dicts by the names of ``path``; ``levels`` are the entries beside each of these, outermost
    first, and last those among the tensors.
    """

    path: tuple[str, ...] = ()
    levels: tuple[Mapping[str, Any], ...] = ({},)


class Layout(Protocol):
    """Where everything goes in one file, before a byte is written.

    ``slots`` maps a key to (offset, nbytes); ``size`` is the whole file's.
    """

    size: int
    slots: Mapping[str, tuple[int, int]]

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterable[tuple[int, bytes]]:
        """Return every byte that is not a tensor's, as (offset, bytes) in order.

        ``recipe`` is its text in pieces, as long as the one that the layout was made for.
        """
        ...


class Sharding(Protocol):
    """How a checkpoint lies in a folder."""

    def names(self, number: int) -> list[str]:
        """Return the names of ``number`` files."""
        ...

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], Layout]]) -> tuple[str, bytes]:
        """Return the name and the bytes of what says in which file each tensor lies; '' where nothing need say it."""
        ...

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return which of the files in a folder are of such a checkpoint; ``read`` gives the bytes of one."""
        ...


class Writer(Protocol):
    """A format that can be written. Found on a Format as ``writer``.

    ``name`` is what ``--to`` calls it, ``sharding`` how it lies in a folder, which it must where ``suffixes`` is
    empty; ``shares`` is set where tied tensors are written once; ``most`` are the tensors that we would read again.
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
        beside: Beside | None = None,
    ) -> Layout:
        """Lay a file out; ``recipe`` is the text to embed, in pieces; ``beside`` only where it ``carries``."""
        ...
