"""Reads the header of one GGUF file, and checks everything that it says about the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...tensors.info import Storage, TensorInfo
from ...util.text import count, escape
from ..base import limits
from ..base.header import StoredEntry
from .cursor import Cursor, cut_short
from .types import stored_shape, tensor_dtype
from .values import ARRAY, TEXT, UINT32, read_entry
from .writer import ALIGNMENT, LARGEST_ALIGNMENT, GgufWriter

__all__ = ["GgufHeader", "read_one"]

_DIMENSIONS = 4
_NAME_BYTES = 1 << 16
_INFO_BYTES = 24
_ENTRY_BYTES = 13
"""The smallest size in bytes of a tensor's header, and of a metadata entry."""


@dataclass(frozen=True)
class GgufHeader:
    """The header of a file: ``tensors``, where each metadata entry is ``stored``, and the ``metadata`` as text.

    Only short entries are in ``metadata``. ``sha256`` is the SHA-256 of the header's bytes.
    """

    file: File
    tensors: Mapping[str, TensorInfo]
    stored: Mapping[str, StoredEntry]
    metadata: Mapping[str, str]
    sha256: str


def read_one(file: File, name: str) -> GgufHeader:
    """Return the header of a file; ``name`` is the path of the file within the checkpoint.

    Raises FormatError or UnsafeError if the file breaks a rule of the format.
    """
    cursor = Cursor(file)
    tensors, entries = _counts(cursor)
    stored, metadata = _metadata(cursor, entries)
    alignment = _alignment(stored, metadata)
    infos = list(_infos(cursor, tensors))
    start = -(-cursor.offset // alignment) * alignment
    if start > file.size and infos:
        raise cut_short("the padding before its tensors")
    storage = Storage(name, start, max(file.size - start, 0), name=file.name)
    return GgufHeader(file, _placed(infos, storage, alignment), stored, metadata, cursor.digest())


def _counts(cursor: Cursor) -> tuple[int, int]:
    """Return the numbers of tensors and of metadata entries.

    Raises FormatError if the version cannot be read, UnsafeError if there are too many tensors or entries.
    """
    cursor.take(4)
    version = cursor.small_number()
    if version not in (2, 3):
        turned = int.from_bytes(version.to_bytes(4, "little"), "big")
        why = f"it has version {version}"
        hint = "Versions 2 and 3 can be read: convert the model again with "
        hint += "a newer llama.cpp." if version < 2 else "a llama.cpp that writes one of them."
        if version == 0 or turned in (1, 2, 3):
            why, hint = "it has version 0", ""
            if turned:
                why, hint = "its numbers are big-endian", "Convert the file with gguf-py's gguf_convert_endian.py."
        raise FormatError(f"this GGUF file cannot be read: {why}.", hint=hint, rule="gguf version")
    tensors, entries = cursor.number(), cursor.number()
    cursor.within = "the list of its tensors"
    if tensors > limits.TENSORS or entries > limits.GGUF_ENTRIES:
        raise UnsafeError(
            f"the header claims {count(tensors, 'tensor')} and {entries:,} metadata entries; at most "
            f"{limits.TENSORS:,} tensors and {limits.GGUF_ENTRIES:,} entries can be read.",
            rule="counts",
        )
    cursor.check(tensors * _INFO_BYTES + entries * _ENTRY_BYTES)
    return tensors, entries


def _name(cursor: Cursor, what: str) -> str:
    """Read the next string, which is the name of ``what`` (such as "a tensor", for messages), and return it.

    Raises FormatError if it is too long or not UTF-8.
    """
    cursor.within = f"the name of {what}"
    length = cursor.number()
    if length > _NAME_BYTES:
        cursor.check(length)
        raise FormatError(f"the name of {what} has {length} bytes, more than {_NAME_BYTES}.", rule="name length")
    try:
        return cursor.take(length).decode()
    except UnicodeDecodeError:
        raise FormatError(f"the name of {what} is not UTF-8.", rule="name") from None


def _metadata(cursor: Cursor, number: int) -> tuple[dict[str, StoredEntry], dict[str, str]]:
    """Return {key: its position} for the next ``number`` metadata entries, and {key: text} for those with short values.

    All numbers are in the second dict: ``general.alignment`` and ``split.count`` say how to read the file. Raises
    FormatError if an entry is not valid.
    """
    stored, texts, kept = dict[str, StoredEntry](), dict[str, str](), 0
    for place in range(number):
        key = _name(cursor, f"entry {place + 1} of its metadata")
        if key in stored:
            raise FormatError(f"the metadata contains the entry {escape(key)} twice.", rule="duplicate key")
        cursor.within = f"the entry {escape(key)} of its metadata"
        stored[key], shown = read_entry(cursor)
        is_long = stored[key].kind in (TEXT, ARRAY)
        kept += len(shown or "") if is_long else 0
        if shown is not None and (kept <= limits.GGUF_SHOWN or not is_long):
            texts[key] = shown
    return stored, texts


def _alignment(stored: Mapping[str, StoredEntry], metadata: Mapping[str, str]) -> int:
    if ALIGNMENT not in stored:
        return GgufWriter.alignment
    number = int(metadata[ALIGNMENT]) if stored[ALIGNMENT].kind == UINT32 else 0
    if not 0 < number <= LARGEST_ALIGNMENT or number & (number - 1):
        raise FormatError(
            f"the metadata entry {ALIGNMENT} is {escape(metadata.get(ALIGNMENT) or stored[ALIGNMENT].said, 40)}, not a "
            f"power of two up to {LARGEST_ALIGNMENT} of the type uint32.",
            rule="alignment",
        )
    return number


def _infos(cursor: Cursor, number: int) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Yield (name, dtype, stored shape, offset) of each of ``number`` tensors.

    The offset counts from the first byte of all tensors. Raises FormatError if a header is not valid.
    """
    seen = set[str]()
    for place in range(number):
        key = _name(cursor, f"tensor {place + 1}")
        if key in seen:
            raise FormatError(f"the file has two tensors with the name {escape(key)}.", rule="duplicate key")
        seen.add(key)
        cursor.within = f"the header of the tensor {escape(key)}"
        dims = cursor.small_number()
        if dims > _DIMENSIONS:
            raise FormatError(f"the tensor {escape(key)} has {dims} dimensions, more than 4.", rule="dimensions")
        shape = tuple(reversed([cursor.number() for _ in range(dims)]))
        dtype = tensor_dtype(key, cursor.small_number())
        yield key, dtype, stored_shape(key, dtype, shape), cursor.number()


def _placed(
    infos: list[tuple[str, str, tuple[int, ...], int]], storage: Storage, alignment: int
) -> dict[str, TensorInfo]:
    """Return {key: tensor}; raises FormatError if a tensor is not aligned, overlaps another, or exceeds the file."""
    found: dict[str, TensorInfo] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for key, dtype, shape, offset in infos:
        found[key] = info = TensorInfo(dtype, shapes.setdefault(shape, shape), storage, offset)
        if offset % alignment:
            raise FormatError(
                f"the tensor {escape(key)} begins at offset {offset}, which is not a multiple of {alignment}.",
                rule="aligned",
            )
        if offset + info.nbytes > storage.nbytes:
            raise cut_short(f"the tensor {escape(key)}")
    end, before = 0, ""
    for offset, nbytes, key in sorted((info.offset, info.nbytes, key) for key, info in found.items() if info.nbytes):
        if offset < end:
            raise FormatError(f"the tensors {escape(before)} and {escape(key)} overlap.", rule="overlap")
        end, before = offset + nbytes, key
    return found
