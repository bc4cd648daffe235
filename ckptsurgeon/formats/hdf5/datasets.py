"""Reads the header of a dataset: the type, the shape, and the offsets of the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ...errors import FormatError, UnsafeError
from ...storage.read._memory import MemoryFile, MemorySegment
from ...storage.read.base import File
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape
from ..base import limits
from ..base.bands import BandCache, band_bytes
from ..pickle.values import GlobalName, OpaqueResult
from .blocks import BlockReader, cut_short, malformed
from .chunk_arrays import StoredChunk
from .chunks import chunks_of
from .groups import OUTSIDE
from .heaps import GlobalHeap
from .layouts import Filter, StoredLayout, chunk_bytes, fill_in, filters_in, layout_in
from .objects import CONTIGUITY, EXTERNAL, FILL, FILL_OLD, FILTERS, SPACE, TYPE, HeaderMessage, one_of
from .types import ElementType, element_type, shape_in
from .unpacked import ChunkedValues

__all__ = ["DatasetReader"]


@dataclass
class _Dataset:
    """A dataset as its object header describes it; ``most`` has the largest size of each dimension."""

    name: str
    messages: Sequence[HeaderMessage]
    kind: ElementType
    shape: tuple[int, ...]
    most: tuple[int | None, ...]
    layout: StoredLayout

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.kind.size


class DatasetReader:
    """Converts the headers of datasets to headers of tensors.

    ``within`` is the name of the file in ``Storage.file``. ``values`` has the ranges of the file that contain values.
    """

    def __init__(self, blocks: BlockReader, heap: GlobalHeap, within: str) -> None:
        self.values: list[tuple[int, int]] = []
        self._blocks, self._heap, self._within = blocks, heap, within
        self._segments: list[MemorySegment] = []
        self._size = 0
        self._bands = BandCache()

    def handles(self) -> Mapping[str, File]:
        """Return {name in ``Storage.file``: open file}.

        These are the HDF5 file and a file in memory, with the values that are not contiguous in the HDF5 file.
        """
        found: dict[str, File] = {self._within: self._blocks.file}
        if self._segments:
            found[self._unpacked] = MemoryFile(f"{self._blocks.file.uri} (chunks)", self._segments)
        return found

    @property
    def _unpacked(self) -> str:
        return f"{self._within} (chunks)"

    def read(self, name: str, messages: Sequence[HeaderMessage], texts: Mapping[str, str]) -> TensorInfo | OpaqueResult:
        """Return the header of a dataset; a stand-in if it is empty or has strings, or if its type is stored elsewhere.

        Also returns a stand-in for a named type, to which datasets may refer. ``texts`` has the attributes of the
        dataset. Raises FormatError or UnsafeError if the dataset is not valid.
        """
        kind, space, layout = (one_of(messages, one) for one in (TYPE, SPACE, CONTIGUITY))
        if kind is not None and space is None and layout is None:
            return OpaqueResult(GlobalName("hdf5", "named type"))
        if kind is None or space is None or layout is None:
            raise malformed(f"the object {escape(name)}", "is neither a group nor a dataset")
        if kind.shared or space.shared:
            return OpaqueResult(GlobalName("hdf5", "array whose type is stored elsewhere in the file"))
        found, shape = element_type(kind.fields), shape_in(self._blocks, space.fields)
        if found.is_opaque and found.size == 2 and texts.get("dtype") == "bfloat16":  # Keras 3
            found = ElementType("bfloat16", 2)
        if shape is None or found.is_text:
            return OpaqueResult(GlobalName("hdf5", "array of strings" if shape else "empty array"))
        if not found.dtype:
            return TensorInfo("uint8", shape[0], opaque=f"its type {found.unread} is not read from HDF5")
        dataset = _Dataset(name, messages, found, *shape, layout_in(self._blocks, layout))
        storage, unread = self._storage(dataset)
        if storage is not None:
            storage.big_endian = found.big_endian
        return TensorInfo(found.dtype, dataset.shape, storage, opaque=unread)

    def text_range(self, name: str, messages: Sequence[HeaderMessage]) -> tuple[int, int]:
        """Return the byte range (begin, end) in the file of the text that a dataset contains, such as a recipe.

        The text must have a fixed length, and its bytes must be contiguous in the file: raises FormatError otherwise.
        """
        kind, layout = (one_of(messages, one) for one in (TYPE, CONTIGUITY))
        if kind is not None and layout is not None and not kind.shared:
            found, stored = element_type(kind.fields), layout_in(self._blocks, layout)
            fits = stored.kind == "contiguous" and found.is_text and found.size == stored.size <= limits.RECIPE_BYTES
            if fits and stored.address is not None and stored.address + stored.size <= self._blocks.size:
                return self._blocks.base + stored.address, self._blocks.base + stored.address + stored.size
        raise FormatError(
            f"the dataset {escape(name)} is not a recipe: a contiguous text of up to {limits.RECIPE_BYTES:,} bytes.",
            rule="recipe size",
        )

    def _storage(self, one: _Dataset) -> tuple[Storage | None, str]:
        """Return (storage of a dataset, ''), or (None, the reason) if its values cannot be read.

        Raises FormatError if the dataset is not valid, or if its values are in other files.
        """
        self._check_here(one)
        if one.layout.kind == "virtual":
            return None, "it is a virtual dataset: its values are in other datasets"
        if one.layout.kind == "chunked":
            return self._chunked(one)
        if one.layout.address is None or not one.nbytes:
            return self._segment(one, one.shape, {}), ""
        if one.layout.size != one.nbytes:
            raise FormatError(
                f"the tensor {escape(one.name)} is {one.kind.dtype} {list(one.shape)}, which is {one.nbytes} bytes, "
                f"but has {one.layout.size} bytes.",
                rule="tensor size",
            )
        return self._plain(one, one.layout.address, is_header=one.layout.kind == "compact"), ""

    def _check_here(self, one: _Dataset) -> None:
        """Raise FormatError if the values of a dataset are in other files than the HDF5 file."""
        if one_of(one.messages, EXTERNAL) is not None:
            raise FormatError(
                f"the values of {escape(one.name)} are in other files, which is not supported.",
                hint="Copy the values into one file with h5repack -l CONTI.",
                rule=OUTSIDE,
            )

    def _plain(self, one: _Dataset, address: int, *, is_header: bool = False) -> Storage:
        """Return the storage of values that are contiguous in the file, and add their byte range to ``values``.

        If ``is_header`` is true, the values are inside an object header, which is metadata: no range is added. Raises
        FormatError if the values reach beyond the end of the file.
        """
        begin = self._blocks.base + address
        if address + one.nbytes > self._blocks.size:
            raise cut_short(f"the tensor {escape(one.name)}")
        if not is_header:
            self.values.append((begin, begin + one.nbytes))
        return Storage(self._within, begin, one.nbytes, None, one.name)

    def _chunked(self, one: _Dataset) -> tuple[Storage | None, str]:
        layout, filters = one.layout, one_of(one.messages, FILTERS)
        if len(layout.chunk) != len(one.shape) or layout.element != one.kind.size:
            raise malformed(f"the dataset {escape(one.name)}", "has chunks of another shape or type")
        applied, unread = filters_in(filters) if filters is not None else ([], "")
        why = f"it was stored through the filter {unread}, which is not supported" if unread else ""
        whole = chunk_bytes(layout)
        if one.nbytes and max(whole, band_bytes(one.shape, layout.chunk, layout.element)) > limits.HDF5_BAND:
            why = why or f"a chunk, or a row of chunks, has more than {limits.HDF5_BAND >> 20} MB"
        chunks = chunks_of(self._blocks, layout, one.shape, one.most, filtered=bool(applied))
        first = next(iter(chunks.values()), None)
        if first is not None and layout.chunk == one.shape and first.mask < 0:
            return self._plain(one, first.address), ""
        for chunk in chunks.values():
            begin = self._blocks.base + chunk.address
            self.values.append((begin, begin + chunk.size))
        if why:
            return None, why
        for chunk in chunks.values():
            _check_expansion(one.name, whole, chunk.size)
        return self._segment(one, layout.chunk, chunks, applied), ""

    def _segment(
        self,
        one: _Dataset,
        chunk: tuple[int, ...],
        chunks: Mapping[tuple[int, ...], StoredChunk],
        filters: Sequence[Filter] = (),
    ) -> Storage:
        """Return a storage whose values are joined from chunks each time they are read.

        ``chunk`` is the shape of a chunk; ``chunks`` is {place in the grid: stored chunk}.
        """
        _check_expansion(one.name, one.nbytes, sum(stored.size for stored in chunks.values()))
        fill = _fill(one)
        if not one.nbytes:
            return Storage(self._within, 0, 0, None, one.name)
        values = ChunkedValues(
            name=one.name, shape=one.shape, chunk=chunk, element=one.kind.size, fill=fill, bands=self._bands,
            file=self._blocks.file, begin=self._blocks.base, chunks=chunks, filters=filters,
        )  # fmt: skip
        self._segments.append(values)
        self._size += values.nbytes
        return Storage(self._unpacked, self._size - values.nbytes, values.nbytes, None, one.name)


def _fill(one: _Dataset) -> bytes:
    """Return the fill value of a dataset, which elements that were never written have, as bytes; b'' if it is zero.

    Raises FormatError if the stored bytes have another size than an element.
    """
    message = one_of(one.messages, FILL) or one_of(one.messages, FILL_OLD)
    fill = fill_in(message) if message is not None and not message.shared else b""
    if len(fill) not in (0, one.kind.size):
        raise malformed(f"the dataset {escape(one.name)}", "has a fill value of another size than its elements")
    return fill


def _check_expansion(name: str, nbytes: int, stored: int) -> None:
    if nbytes > max(limits.EXPANSION_FREE, limits.EXPANSION * stored):
        raise UnsafeError(
            f"{escape(name)} would have {nbytes:,} bytes of values, over {limits.EXPANSION:,} times as many as the "
            f"{stored:,} bytes that are stored.",
            rule="deflate bomb",
        )
