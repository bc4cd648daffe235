"""torch's zip checkpoints: ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` as ``torch.save`` has written them since 1.6.

``<root>/data.pkl`` pickles the object, ``<root>/data/<key>`` holds each storage, ``<root>/byteorder`` the byte order.
Written after ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

from ..errors import FormatError, UnsafeError
from ..sources import File, Source
from ..tensors import DTYPES, Storage
from ..text import escape
from . import _pickle, limits
from ._header import FileHeader, Header, naming
from ._rebuild import rebuilders
from ._script import script_tensors
from ._seal import UNSEALED, digest_outside, seal_of
from ._torch import STORAGE_DTYPES, TypedStorage
from ._values import Name, brief
from ._zip import Archive, Entry, read_archive
from ._zip_writer import ZIP_RECORD, ZipWriter

__all__ = ["FORMAT"]

_ORDER_BYTES = 64


class _TorchZip:
    name = "torch zip"
    writer = ZipWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """A zip archive; what is in it is looked at when it is read."""
        return isinstance(source, File) and head[:4] in (b"PK\3\4", b"PK\5\6")

    def read(self, source: Source, name: str = "") -> Header:
        """Read the directory and ``data.pkl``; raises FormatError where they contradict each other."""
        assert isinstance(source, File)
        with naming(source):
            return self._read(source, name)

    def _read(self, source: File, name: str) -> Header:
        archive = read_archive(source)
        root = _root(source, archive)
        pickle = archive.read(f"{root}data.pkl")
        storages = _Storages(name, archive, root)
        tree = _pickle.load(pickle, rebuild=rebuilders(), persistent=storages.resolve)
        scripted = f"{root}constants.pkl" in archive.entries
        if scripted:
            tree = script_tensors(tree)
        digest = hashlib.sha256(archive.directory + pickle).hexdigest()
        recipe = None
        if ZIP_RECORD in archive.entries:
            recipe = archive.read(ZIP_RECORD, limits.RECIPE_BYTES).decode("utf-8", "replace")
        return Header(
            format="torchscript" if scripted else self.name,
            tree=tree,
            notes=("read the tensors of a TorchScript module, not its program",) if scripted else (),
            files=(FileHeader(name, source.size, digest, source.mtime_ns),),
            handles={name: source},
            recipe=recipe,
            frame=lambda: _frame(archive, root, recipe or ""),
        )


def _root(file: File, archive: Archive) -> str:
    """Return the folder that holds ``data.pkl``, with its slash."""
    roots = [name.removesuffix("data.pkl") for name in archive.entries if f"/{name}".endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") <= 1]
    if not roots:
        raise FormatError(
            f"{escape(file.uri)} is a zip archive without a data.pkl, not a torch checkpoint.",
            rule="no data.pkl",
        )
    if len(roots) > 1:
        raise UnsafeError(f"{escape(file.uri)} has data.pkl in several folders.", rule="several roots")
    return roots[0]


def _is_big_endian(archive: Archive, root: str) -> bool:
    """Return whether a file says that it is; raises FormatError where torch would."""
    order = f"{root}byteorder"
    said = archive.read(order, _ORDER_BYTES) if order in archive.entries else b"little"
    if said not in (b"little", b"big"):
        raise FormatError(f"{escape(archive.file.uri)} is of the byte order {said!r}.", rule="byteorder")
    return said == b"big"


class _Storages:
    """Turns persistent ids into storages; each record of the archive becomes one."""

    def __init__(self, within: str, archive: Archive, root: str) -> None:
        self._within = within
        self._file = archive.file
        self._folder = f"{root}data/"
        self._records: dict[str, Entry | Storage] = dict(archive.entries)
        self._kinds: dict[Name, tuple[str, int]] = {}
        self._big = _is_big_endian(archive, root)

    def resolve(self, pid: Any) -> object:
        """Return the storage that ``('storage', type, key, location, numel)`` names."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise FormatError(f"the pickle refers to something unknown: {brief(pid)}.", rule="persistent id")
        _, kind, key, _, numel = pid
        dtype, size = self._kinds.get(kind) or self._kind(kind) if type(kind) is Name else ("", 0)
        if not dtype or type(key) is not str or type(numel) is not int or numel < 0:
            raise FormatError(f"the pickle refers to an unknown storage of {brief(kind)}.", rule="persistent id")
        name = self._folder + key
        storage = self._records.get(name)
        if not isinstance(storage, Storage):
            storage = self._records[name] = self._open(name, storage)
        if numel * size != storage.nbytes:
            raise FormatError(
                f"{escape(self._file.uri)}: record {escape(storage.name)} has {storage.nbytes} bytes, "
                f"its storage says {numel * size}.",
                rule="storage size",
            )
        return TypedStorage(storage, dtype)

    def _kind(self, name: Name) -> tuple[str, int]:
        """Return the dtype and bytes an element of a storage class; remembered by the name, of which there is one."""
        dtype = STORAGE_DTYPES.get(name.name, "")
        self._kinds[name] = (dtype, DTYPES[dtype].bits // 8 if dtype else 0)
        return self._kinds[name]

    def _open(self, name: str, entry: Entry | None) -> Storage:
        if entry is None:
            raise FormatError(f"{escape(self._file.uri)} lacks the record {escape(name)}.", rule="missing record")
        name, _, data, _, size, crc32, method, _ = entry  # the archive's own text of the name, not another
        if method:
            raise FormatError(
                f"{escape(self._file.uri)}: record {escape(name)} is compressed.",
                hint="Tensors are only read where they lie as they are; load and save the file with torch.",
                rule="compressed record",
            )
        return Storage(self._within, data, size, crc32 or None, name, self._big)


def _frame(archive: Archive, root: str, recipe: str) -> str:
    """Return the digest of everything that is not a storage, as it was before the recipe was sealed."""
    payload = sorted((e.data, e.data + e.stored) for e in archive.entries.values() if e.name.startswith(f"{root}data/"))
    sealed, patches = seal_of(recipe), []
    if sealed:
        entry = archive.entries[ZIP_RECORD]
        plain = recipe.replace(sealed, UNSEALED, 1).encode()
        crc = zlib.crc32(plain).to_bytes(4, "little")
        patches = [
            (entry.header + 14, crc),
            (entry.data, plain),
            (archive.directory_offset + entry.listed + 16, crc),
        ]
    return digest_outside(archive.file, payload, patches)


FORMAT = _TorchZip()
