"""Reads the checkpoints of torch before 1.6, or of its legacy option: several pickles, then the bytes of each storage.

The pickles are a magic number, the protocol version, system information, the saved object, and the list of storage
keys. Then, for each key, an int64 number of elements and the data follow, both little-endian: torch swaps the bytes on
a big-endian machine when it writes and when it reads, and ignores the ``little_endian`` of the system information.
Follows ``_legacy_save`` in ``torch/serialization.py`` and ``torch/csrc/serialization.cpp``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from ..errors import FormatError, UnsafeError
from ..storage.read.base import File, Source
from ..tensors.dtypes import DTYPES
from ..tensors.info import Storage
from ..util.text import escape
from .base import limits
from .base.header import FilePrint, Header, naming
from .pickle.machine import PickleMachine
from .pickle.torch import STORAGE_DTYPES, TypedStorage, rebuilders
from .pickle.values import GlobalName

__all__ = ["FORMAT"]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_MAGIC_BYTES = MAGIC.to_bytes(10, "little")
_MAGIC_LINE = b"L%dL\n." % MAGIC
"""The pickled magic number in pickle protocols 0 and 1."""
_FIRST_READ = 1 << 20


class _TorchLegacy:
    name = "torch legacy"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with a pickle of torch's magic number."""
        return isinstance(source, File) and (_MAGIC_BYTES in head[:32] or head.startswith(_MAGIC_LINE))

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header, from the pickles and the storages; raises FormatError if they contradict each other."""
        assert isinstance(source, File)
        with naming(source):
            return self._read(source, name)

    def _read(self, source: File, name: str) -> Header:
        pickles = _Pickles(source)
        magic, protocol, _ = (pickles.plain() for _ in range(3))
        if magic != MAGIC or protocol != PROTOCOL:
            raise FormatError(
                f"{escape(source.uri)} has an unknown version of torch's protocol.", rule="legacy protocol"
            )
        object_at = pickles.position
        declared: dict[str, tuple[str, int]] = {}
        pickles.run(lambda pid: _declare(declared, pid), rebuild=False)
        keys = pickles.plain()
        storages = _locate(source, name, declared, keys=keys, at=pickles.position)
        head = pickles.data[: pickles.position]
        pickles.position = object_at
        tree = pickles.run(lambda pid: _resolve(storages, pid), rebuild=True)
        digest = hashlib.sha256(head).hexdigest()
        return Header(self.name, tree, (FilePrint.of(source, digest, name),), {name: source})


class _Pickles:
    """Reads the pickles at the start of a file one after the other; the file does not store their lengths."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.position = 0
        self.data = file.read(0, min(_FIRST_READ, file.size))

    def plain(self) -> Any:
        """Return the value of the next pickle; raises FormatError if the pickle contains a tensor."""
        return self.run(_no_storage, rebuild=False)

    def run(self, persistent: Any, *, rebuild: bool) -> Any:
        """Return the value of the next pickle, reading more bytes of the file until the pickle is complete.

        ``persistent`` is a function that returns the object for a persistent id. If ``rebuild`` is true, tensors become
        TensorInfo.
        """
        while True:
            table = rebuilders() if rebuild else {}
            machine = PickleMachine(self.data, rebuild=table, persistent=persistent, start=self.position)
            try:
                value = machine.run()
            except UnsafeError:
                raise
            except FormatError:
                size = min(4 * len(self.data), self.file.size, limits.PICKLE_BYTES)
                if size <= len(self.data):
                    raise
                self.data = self.file.read(0, size)
            else:
                self.position = machine.position
                return value


def _no_storage(pid: Any) -> object:
    raise FormatError("a pickle that must not contain tensors refers to a storage.", rule="legacy")


def _fields(pid: Any) -> tuple[str, str, int, Any]:
    """Return (dtype, key, number of elements, view) from a persistent id; the view is None for a whole storage.

    Raises FormatError if the id is not valid.
    """
    if type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage":
        _, kind, key, _, numel = pid[:5]
        dtype = STORAGE_DTYPES.get(kind.name) if type(kind) is GlobalName else None
        if dtype is not None and type(key) is str and type(numel) is int and 0 <= numel <= limits.ELEMENTS:
            return dtype, key, numel, pid[5] if len(pid) == 6 else None
    raise FormatError("the pickle refers to a storage in an unknown way.", rule="persistent id")


def _declare(declared: dict[str, tuple[str, int]], pid: Any) -> object:
    if type(pid) is tuple and pid[:1] == ("module",):
        return pid[1] if len(pid) > 1 else None
    dtype, key, numel, _ = _fields(pid)
    if declared.setdefault(key, (dtype, numel)) != (dtype, numel):
        raise FormatError(f"the pickle declares the storage {escape(key)} with two types or sizes.", rule="legacy")
    return None


def _locate(file: File, within: str, declared: dict[str, tuple[str, int]], *, keys: Any, at: int) -> dict[str, Storage]:
    """Return {key: storage} for the storages, which follow the pickles; each begins with its number of elements.

    ``declared`` has (dtype, number of elements) of each key from the pickles. ``keys`` are the keys in the order of the
    file, ``at`` is the offset of the first storage. Raises FormatError if the storages are not those that the pickles
    declare.
    """
    if not isinstance(keys, list) or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise FormatError(f"{escape(file.uri)} has no valid list of storages.", rule="legacy")
    storages: dict[str, Storage] = {}
    file.need(_counts(file, declared, keys, at))
    for key in keys:
        if key not in declared:
            raise FormatError(f"{escape(file.uri)} lists a storage that no tensor uses.", rule="legacy")
        dtype, numel = declared[key]
        nbytes = numel * DTYPES[dtype].itemsize
        if at + 8 + nbytes > file.size:
            raise FormatError(
                f"{escape(file.uri)} is truncated: it ends inside the storage {escape(key)}.", rule="legacy"
            )
        count = int.from_bytes(file.read(at, 8), "little", signed=True)
        if count != numel:
            raise FormatError(
                f"{escape(file.uri)}: the storage {escape(key)} has {count} elements, but the pickle says {numel}.",
                rule="storage size",
            )
        storages[key] = Storage(within, at + 8, nbytes, None, key)
        at += 8 + nbytes
    missing = sorted(declared.keys() - storages.keys())
    if missing:
        raise FormatError(f"{escape(file.uri)} lacks the storage {escape(missing[0])}.", rule="legacy")
    if at != file.size:
        raise FormatError(f"{escape(file.uri)} has {file.size - at} bytes after its last storage.", rule="legacy")
    return storages


def _counts(file: File, declared: dict[str, tuple[str, int]], keys: list[str], at: int) -> Iterator[tuple[int, int]]:
    """Yield the byte range (begin, end) in which the number of elements of each storage is stored, as an int64.

    The ranges are computed from the numbers in ``declared``; the arguments are the same as for ``_locate``.
    """
    for key in keys:
        dtype, numel = declared.get(key, ("", 0))
        if not dtype or at + 8 > file.size:
            return
        yield at, at + 8
        at += 8 + numel * DTYPES[dtype].itemsize


def _resolve(storages: dict[str, Storage], pid: Any) -> object:
    """Return the storage to which a persistent id refers.

    If the persistent id contains a view (key, offset, size), the returned storage begins at this offset. For the
    persistent id of a module, its class is returned; None if the id lacks it. Raises FormatError if the id is not
    valid.
    """
    if type(pid) is tuple and pid[:1] == ("module",):
        return pid[1] if len(pid) > 1 else None
    dtype, key, _, view = _fields(pid)
    storage = storages[key]
    if view is None:
        return TypedStorage(storage, dtype)
    if type(view) is not tuple or len(view) != 3 or not all(type(n) is int and n >= 0 for n in view[1:]):
        raise FormatError(
            "the pickle describes a view of a storage, but not as a tuple (key, offset, size).",
            rule="legacy view",
        )
    itemsize = DTYPES[dtype].itemsize
    begin, size = view[1] * itemsize, view[2] * itemsize
    if begin + size > storage.nbytes:
        raise FormatError("the pickle has a tensor that reaches beyond the end of its storage.", rule="legacy view")
    return TypedStorage(storage, dtype, begin)


FORMAT = _TorchLegacy()
