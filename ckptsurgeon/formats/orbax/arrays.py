"""Makes the headers of tensors from the items of an Orbax checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read._memory import MemoryFile
from ...storage.read.base import File
from ...storage.read.local import LocalFolder
from ...tensors.info import Storage, TensorInfo
from ...util.text import count, escape, human_bytes, listing
from ..base import limits
from ..base.bands import BandCache, band_bytes
from ..base.header import naming
from ..pickle.values import GlobalName, OpaqueResult
from .files import StoredFile
from .missing import arrays_without_metadata, missing_chunks
from .stores import ChunkStore, open_store
from .tree import METADATA, Item, Leaf, put, read_item
from .values import ZarrValues
from .zarr import ZarrArray, zarr_array

__all__ = ["ArrayReader"]

_VALUES = "arrays"
"""The name of the file in memory that has the values of all arrays."""
_LARGE = 64 << 20
"""If a band has more bytes than this, a note reports it."""


class ArrayReader:
    """Makes the headers of the arrays of all items; ``number`` counts the arrays, ``metadata`` has entries to show.

    ``path`` is the path of the checkpoint, for messages; ``stored`` is the size of all its files in bytes.
    """

    def __init__(self, path: str, stored: int) -> None:
        self.metadata: dict[str, str] = {}
        self.number = 0
        self._path, self._stored, self._total = path, stored, 0
        self._segments, self._size = list[ZarrValues](), 0
        self._bands, self._large = BandCache(), dict[str, int]()
        self._missing = dict[str, int]()

    def handles(self) -> dict[str, File]:
        """Return {name in ``Storage.file``: file}; the only file is in memory, and has the values of all arrays."""
        return {_VALUES: MemoryFile(f"{self._path} (arrays)", self._segments)}

    def tree(self, folder: LocalFolder, files: Mapping[str, StoredFile]) -> dict[str, Any]:
        """Return the values of the item in ``folder`` as nested dicts.

        Raises FormatError if the item is not valid, UnsafeError if its arrays are far larger than its files.
        """
        tree = dict[str, Any]()
        with naming(folder):
            item = read_item(folder, files)
        self.metadata |= item.metadata
        self._check_folders(item, files)
        store = open_store(folder, files)
        for leaf in item.leaves:
            value = self._value(leaf, item, store)
            with naming(folder):
                put(tree, leaf.path, value)
        return tree

    def notes(self) -> list[str]:
        """Return notes on chunks that are not stored, and on arrays with large chunks, which take memory to read."""
        return [*self._notes_on_missing(), *self._notes_on_large()]

    def _notes_on_missing(self) -> Iterator[str]:
        if self._missing:
            total = sum(self._missing.values())
            arrays = count(len(self._missing), "array")
            yield (
                f"{count(total, 'chunk')} of {arrays} {'is' if total == 1 else 'are'} not stored, and read as the fill "
                "value of the array (usually 0): the checkpoint does not say whether they were left out or lost: "
                f"{listing([*self._missing], 3)}"
            )

    def _notes_on_large(self) -> list[str]:
        if not self._large:
            return []
        name, most = max(self._large.items(), key=lambda one: one[1])
        large = count(len(self._large), "array")
        return [
            f"{large} with chunks over {human_bytes(_LARGE)}, the largest {human_bytes(most)} ({escape(name)}): to "
            "read them takes up to five times as much memory"
        ]

    def _value(self, leaf: Leaf, item: Item, store: ChunkStore) -> Any:
        if leaf.is_text:
            return OpaqueResult(GlobalName("orbax", "string"))
        if not leaf.stored:
            return leaf.empty
        array = self._array(leaf, item, store)
        self._check(leaf, array)
        self.number += 1
        if not item.is_complete and array.fill is not None and (lost := missing_chunks(array, store, f"{leaf.name}/")):
            self._missing[leaf.name] = lost
        unread = array.unread or self._too_large(leaf, array)
        if unread:
            return TensorInfo(array.dtype, array.shape, opaque=unread)
        values = ZarrValues(
            name=leaf.name, shape=array.shape, chunk=array.chunk, element=array.element, fill=array.fill or b"",
            bands=self._bands, array=array, store=store, prefix=f"{leaf.name}/", path=self._path,
            is_complete=item.is_complete,
        )  # fmt: skip
        storage = Storage(_VALUES, self._size, values.nbytes, None, leaf.name, array.big_endian)
        if values.nbytes:
            self._segments.append(values)
            self._size += values.nbytes
        return TensorInfo(array.dtype, array.shape, storage)

    def _check_folders(self, item: Item, files: Mapping[str, StoredFile]) -> None:
        """Raise FormatError if an item without ``_METADATA`` has a folder of chunks that no metadata describe."""
        lost = arrays_without_metadata(files, {leaf.name for leaf in item.leaves}) if METADATA not in files else []
        if lost:
            raise FormatError(
                f"{escape(self._path)}: the folder {escape(lost[0])} has chunks of an array, but no {item.suffix[1:]}, "
                "which describes it.",
                hint="Copy the whole folder again.",
                rule="orbax array",
            )

    def _array(self, leaf: Leaf, item: Item, store: ChunkStore) -> ZarrArray:
        raw = store.read(f"{leaf.name}{item.suffix}")
        if raw is None:
            raise FormatError(
                f"{escape(self._path)}: the array {escape(leaf.name)} is missing.",
                hint="Copy the whole folder again.",
                rule="orbax array",
            )
        if len(raw) > limits.ORBAX_JSON:
            raise UnsafeError(
                f"{escape(self._path)}: the metadata of {escape(leaf.name)} have over {limits.ORBAX_JSON:,} bytes.",
                rule="orbax metadata",
            )
        try:
            return zarr_array(raw, item.version)
        except FormatError as error:
            raise FormatError(
                f"{escape(self._path)}: the array {escape(leaf.name)} is damaged: {error.message}", rule=error.rule
            ) from None

    def _check(self, leaf: Leaf, array: ZarrArray) -> None:
        """Raise FormatError if ``_METADATA`` contradicts the array's shape.

        Raises UnsafeError if the arrays have far more bytes than the files of the checkpoint.
        """
        part = array.shape if leaf.part is None else leaf.part
        if len(part) != len(array.shape) or any(one > size for one, size in zip(part, array.shape, strict=True)):
            raise FormatError(
                f"{escape(self._path)}: {escape(leaf.name)} has the shape {list(array.shape)}, but _METADATA gives a "
                f"part of it the shape {list(part)}.",
                rule="orbax shape",
            )
        self._total += prod(array.shape) * array.element
        if max(self._total, array.chunk_bytes) > max(limits.EXPANSION_FREE, limits.EXPANSION * self._stored):
            raise UnsafeError(
                f"{escape(self._path)}: the arrays up to {escape(leaf.name)} would have over {limits.EXPANSION:,} "
                f"times as many bytes as the {self._stored:,} bytes of the checkpoint's files.",
                rule="deflate bomb",
            )

    def _too_large(self, leaf: Leaf, array: ZarrArray) -> str:
        """Return the reason if an array's chunks are too large to be read, else ''; record large chunks for a note."""
        if 0 in array.shape:
            return ""
        most = max(array.chunk_bytes, band_bytes(array.shape, array.chunk, array.element))
        if most > _LARGE:
            self._large[leaf.name] = most
        if most <= limits.ORBAX_BAND:
            return ""
        return f"a chunk, or a row of chunks, has more than {limits.ORBAX_BAND >> 30} GiB"
