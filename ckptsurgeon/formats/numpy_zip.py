"""Reads and writes numpy's ``.npz``: a zip archive with one array per key.

Compressed arrays are listed, but cannot be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ..errors import FormatError
from ..storage.read.base import File, Source
from ..tensors.info import Storage, TensorInfo
from ..util.text import escape, listing
from ._npy import npy_entry
from ._npz_writer import NPY_SUFFIX, NPZ_RECIPE, NpzWriter
from .base import limits
from .base.header import FilePrint, Header, digest_outside, naming
from .pickle.values import GlobalName, OpaqueResult
from .zip.archive import Archive, read_archive

__all__ = ["FORMAT"]

_HEAD_BYTES = limits.NPY_HEADER_BYTES + 12


class _NumpyZip:
    name = "numpy zip"
    magic = (b"PK\3\4",)
    writer = NpzWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether this is a zip archive whose first record is an array."""
        length = int.from_bytes(head[26:28], "little") if len(head) >= 30 else 0
        return isinstance(source, File) and head.startswith(self.magic) and head[30 : 30 + length].endswith(b".npy")

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header, from the directory and the arrays' headers.

        Raises FormatError if the archive is damaged, or if the arrays are compressed so that none can be read.
        """
        assert isinstance(source, File)
        with naming(source):
            archive = read_archive(source)
            tree = _tree(archive, name)
            compressed = [key for key, entry in archive.entries.items() if entry.method]
            arrays = [key for key in compressed if key.endswith(NPY_SUFFIX)]
            if arrays and not any(isinstance(value, TensorInfo) for value in tree.values()):
                raise FormatError(
                    f"the arrays are compressed: {listing(arrays)}.",
                    hint="Save the arrays with numpy.savez: compressed arrays cannot be read.",
                    rule="compressed record",
                )
            recipe = None
            if NPZ_RECIPE in archive.entries:
                recipe = archive.read(NPZ_RECIPE, limits.RECIPE_BYTES).decode("utf-8", "replace")
        digest = hashlib.sha256(archive.directory).hexdigest()
        return Header(
            format=self.name,
            tree=tree,
            files=(FilePrint.of(source, digest, name),),
            handles={name: archive.file},
            notes=(f"compressed, so not read: {listing(compressed, where='')}",) if compressed else (),
            recipe=recipe,
            frame=lambda: _frame(archive, tree, recipe or ""),
        )


def _frame(archive: Archive, tree: Mapping[str, object], recipe: str) -> str:
    """Return the digest of all bytes of a file except the values of its arrays.

    ``recipe`` is the text of the recipe in the file, which contains this digest (its seal). The digest is computed as
    if the recipe contained zeros instead.
    """
    stored = [(one.storage, one.offset) for one in tree.values() if isinstance(one, TensorInfo) and one.storage]
    payload = sorted((storage.offset + begin, storage.offset + storage.nbytes) for storage, begin in stored)
    return digest_outside(archive.file, payload, archive.without_seal(NPZ_RECIPE, recipe))


def _tree(archive: Archive, within: str) -> dict[str, object]:
    """Return {key: TensorInfo} of the archive's records; the value is an OpaqueResult if a record cannot be read.

    Raises FormatError if two records have the same key, such as ``a`` and ``a.npy``.
    """
    tree: dict[str, object] = {}
    arrays = [entry for entry in archive.entries.values() if not entry.method]
    archive.file.need((entry.data, entry.data + min(_HEAD_BYTES, entry.size)) for entry in arrays)
    for record in archive.entries:
        if record == NPZ_RECIPE:
            continue
        key = record.removesuffix(NPY_SUFFIX)
        if key in tree:
            raise FormatError(f"the archive has two records for the key {escape(key)}.", rule="duplicate key")
        tree[key] = _entry(archive, record, within)
    return tree


def _entry(archive: Archive, key: str, within: str) -> object:
    entry = archive.entries[key]
    if not key.endswith(NPY_SUFFIX):
        return OpaqueResult(GlobalName("zip", "record"))
    if entry.method:
        return OpaqueResult(GlobalName("numpy", "compressed array"))
    head = archive.file.read(entry.data, min(_HEAD_BYTES, entry.size))
    return npy_entry(head, Storage(within, entry.data, entry.size, entry.crc32 or None, key))


FORMAT = _NumpyZip()
