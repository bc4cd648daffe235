"""Reads torch's zip checkpoints (``.pth``, ``.pt``, ``.bin``, ``.ckpt``), as ``torch.save`` writes them since 1.6.

``<root>/data.pkl`` pickles the object, ``<root>/data/<key>`` holds each storage, ``<root>/byteorder`` the byte order.
Archives of TorchScript are the same in this respect. Follows ``torch/serialization.py`` and
``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from ..errors import FormatError, UnsafeError
from ..storage.read.base import File, Source
from ..tensors.dtypes import DTYPES
from ..tensors.info import Storage, TensorInfo
from ..util.text import escape
from .base import limits
from .base.header import FilePrint, Header, digest_outside, naming
from .pickle.machine import load
from .pickle.state import Rebuild
from .pickle.torch import STORAGE_DTYPES, TypedStorage, rebuilders
from .pickle.values import GlobalName, OpaqueResult, brief
from .torch.pickle_writer import PARAMETERS
from .torch.script import other_tensors, script_note, script_tensors
from .torch.zip_writer import ZIP_RECORD, ZipWriter
from .zip.archive import Archive, ZipEntry, read_archive

__all__ = ["FORMAT", "TorchArchive", "is_big_endian", "storages_in"]

_ORDER_BYTES = 64

Templates = dict[bytes, TensorInfo]
"""{pickle: header} of single tensors; the pickles of tensors with the same dtype and shape are equal."""


class _TorchZip:
    name = "torch zip"
    magic = (b"PK\3\4", b"PK\5\6")
    writer = ZipWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the source is a zip archive; its content is checked when it is read."""
        return isinstance(source, File) and head.startswith(self.magic)

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header, from the directory and ``data.pkl``; raises FormatError if they contradict each other."""
        assert isinstance(source, File)
        with naming(source):
            return self._read(source, name)

    def _read(self, source: File, name: str) -> Header:
        archive = TorchArchive(source, name)
        root, records = archive.root, archive.zip
        tree = archive.load(rebuilders())
        scripted = f"{root}constants.pkl" in records.entries
        notes: tuple[str, ...] = ()
        if scripted:
            module, tree = tree, script_tensors(tree)
            notes = (script_note(records, root, other_tensors(module, tree)),)
        recipe = None
        if ZIP_RECORD in records.entries:
            recipe = records.read(ZIP_RECORD, limits.RECIPE_BYTES).decode("utf-8", "replace")
        return Header(
            format="torchscript" if scripted else self.name,
            tree=tree,
            notes=notes,
            files=(FilePrint.of(source, archive.digest(), name),),
            handles={name: records.file},
            recipe=recipe,
            frame=lambda: _frame(records, root, recipe or ""),
        )


def _frame(archive: Archive, root: str, recipe: str) -> str:
    """Return the digest of all bytes of a file outside the storages of its tensors.

    The storages of scales and zero points are included in the digest. The recipe contains this digest. The digest is
    computed as if the recipe contained zeros instead.
    """
    stored = [one for one in archive.entries.values() if one.name.startswith(f"{root}data/")]
    payload = sorted((one.data, one.data + one.stored) for one in stored if not one.name.endswith(PARAMETERS))
    return digest_outside(archive.file, payload, archive.without_seal(ZIP_RECORD, recipe))


class TorchArchive:
    """A zip archive of ``torch.save`` or TorchScript in ``file``.

    ``within`` is the path of the file within the checkpoint; each ``Storage`` has this path as its ``file``.
    """

    def __init__(self, file: File, within: str) -> None:
        self.zip = read_archive(file)
        self.root = _root(file, self.zip)
        self.pickle = self.zip.read(f"{self.root}data.pkl")
        self._storages = _Storages(within, self.zip, self.root)

    def load(self, rebuild: Rebuild) -> Any:
        """Return the value of the pickle, with TensorInfo in place of tensors.

        ``rebuild`` maps (module, name) of a function in the pickle to the function that makes a TensorInfo in its
        place.
        """
        stored = self.zip.entries[f"{self.root}data.pkl"].stored
        return load(self.pickle, rebuild=rebuild, persistent=self._storages.resolve, stored=stored)

    def load_cached(self, rebuild: Rebuild, known: Templates) -> Any:
        """Return the same as ``load``; a pickle of a single tensor that is in ``known`` is not interpreted again.

        ``known`` maps pickles of single tensors to headers; a pickle that is not in ``known`` is added.
        """
        template = known.get(self.pickle)
        if template is not None and template.storage is not None:
            storage = self._storages.record(template.storage.name.rpartition("/")[2])
            if storage.nbytes == template.storage.nbytes:
                return replace(template, storage=storage)
        tree = self.load(rebuild)
        if isinstance(tree, TensorInfo) and tree.storage is not None and not tree.parts:
            known[self.pickle] = tree
        return tree

    def digest(self) -> str:
        """Return the SHA-256 of the archive's directory and pickle, which identifies the archive."""
        return hashlib.sha256(self.zip.directory + self.pickle).hexdigest()


def _root(file: File, archive: Archive) -> str:
    """Return the folder in the archive that contains ``data.pkl``, with a slash at the end; '' for the top level.

    Folders inside folders do not count. Raises FormatError if there is none, UnsafeError if there are several.
    """
    roots = [name.removesuffix("data.pkl") for name in archive.entries if f"/{name}".endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") <= 1]
    if not roots:
        raise FormatError(
            f"{escape(file.uri)} is a zip archive without data.pkl, so it is not a torch checkpoint.",
            rule="no data.pkl",
        )
    if len(roots) > 1:
        raise UnsafeError(f"{escape(file.uri)} has data.pkl in several folders.", rule="several roots")
    return roots[0]


def is_big_endian(archive: Archive, root: str) -> bool:
    """Return whether an archive says that its numbers are big-endian; raises FormatError for an unknown byte order."""
    order = f"{root}byteorder"
    said = archive.read(order, _ORDER_BYTES) if order in archive.entries else b"little"
    if said not in (b"little", b"big"):
        raise FormatError(f"{escape(archive.file.uri)} has the unknown byte order {said!r}.", rule="byteorder")
    return said == b"big"


class _Storages:
    """Turns the persistent ids in a pickle into storages; each storage is one record of the archive."""

    def __init__(self, within: str, archive: Archive, root: str) -> None:
        self._within = within
        self._file = archive.file
        self._folder = f"{root}data/"
        self._records: dict[str, ZipEntry | Storage] = dict(archive.entries)
        self._kinds: dict[GlobalName, tuple[str, int]] = {}
        self._big = is_big_endian(archive, root)

    def resolve(self, pid: Any) -> object:
        """Return the TypedStorage for the persistent id ``('storage', type, key, location, numel)``.

        Raises FormatError if the id is not valid or does not fit the record.
        """
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise FormatError(f"the pickle refers to a storage in an unknown way: {brief(pid)}.", rule="persistent id")
        _, kind, key, _, numel = pid
        dtype, size = self._kinds.get(kind) or self._kind(kind) if type(kind) is GlobalName else ("", 0)
        if not dtype or type(key) is not str or type(numel) is not int or numel < 0:
            raise FormatError(
                f"the pickle has an invalid reference to a storage of type {brief(kind)}.", rule="persistent id"
            )
        storage = self.record(key)
        if numel * size != storage.nbytes:
            raise FormatError(
                f"{escape(self._file.uri)}: record {escape(storage.name)} has {storage.nbytes} bytes, "
                f"but the pickle says {numel * size}.",
                rule="storage size",
            )
        return TypedStorage(storage, dtype)

    def record(self, key: str) -> Storage:
        """Return the storage in the record ``data/<key>``; raises FormatError if there is no such record."""
        name = self._folder + key
        storage = self._records.get(name)
        if not isinstance(storage, Storage):
            storage = self._records[name] = self._open(name, storage)
        return storage

    def _kind(self, name: GlobalName) -> tuple[str, int]:
        """Return the dtype and the bytes per element of a storage class, and remember them under ``name``."""
        dtype = STORAGE_DTYPES.get(name.name, "")
        self._kinds[name] = (dtype, DTYPES[dtype].itemsize if dtype else 0)
        return self._kinds[name]

    def _open(self, name: str, entry: ZipEntry | None) -> Storage:
        if entry is None:
            raise FormatError(f"{escape(self._file.uri)} lacks the record {escape(name)}.", rule="missing record")
        name, _, data, _, size, crc32, method, _ = entry  # reuses the archive's string for the name, to save memory
        if method:
            raise FormatError(
                f"{escape(self._file.uri)}: record {escape(name)} is compressed.",
                hint="Load the file with torch.load and save it with torch.save: compressed tensors cannot be read.",
                rule="compressed record",
            )
        return Storage(self._within, data, size, crc32 or None, name, self._big)


def storages_in(tree: Any) -> list[Storage]:
    """Return the storages of all tensors in the content of an archive, each storage once."""
    found: dict[int, Storage] = {}
    waiting, seen = [tree], set[int]()
    while waiting:
        node = waiting.pop()
        if isinstance(node, TensorInfo):
            if node.storage is not None:
                found[id(node.storage)] = node.storage
            waiting.extend(node.parts)
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(node.values() if isinstance(node, dict) else node)
        elif isinstance(node, OpaqueResult) and id(node) not in seen:
            seen.add(id(node))
            waiting.extend((node.args, node.state, node.items))
    return list(found.values())


FORMAT = _TorchZip()
