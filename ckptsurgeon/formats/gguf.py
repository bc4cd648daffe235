"""Reads GGUF, the format of llama.cpp: typed metadata, the headers of the tensors, and their aligned bytes.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Dimensions are stored from the last to the first. Rows of a
quantised tensor are blocks of codes with their scales (``tensors.dtypes.BLOCKS``); such a tensor is one of bytes here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from ..errors import FormatError, UnsafeError
from ..storage.read.base import File, Source
from ..tensors.dtypes import DTYPES
from ..tensors.info import Storage, TensorInfo
from ..util.text import count, escape
from .base import limits
from .base.header import FilePrint, Header, StoredEntry, naming
from .base.header_digest import UNSEALED, digest_outside, seal_of
from .ggml.cursor import Cursor, cut_short
from .ggml.types import REMOVED, TYPES
from .ggml.values import TEXT, UINT32, read_entry
from .ggml.writer import ALIGNMENT, RECIPE_KEY, SPLIT_COUNT, GgufWriter

__all__ = ["FORMAT"]

_DIMENSIONS = 4
_NAME_BYTES = 1 << 16
_INFO_BYTES = 24
"""The fewest bytes that describe a tensor, and an entry of the metadata takes 13."""
_ENTRY_BYTES = 13
_LARGEST_ALIGNMENT = 1 << 20


class _Gguf:
    name = "gguf"
    magic = (b"GGUF",)
    writer = GgufWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with the name of the format."""
        return isinstance(source, File) and head.startswith(self.magic)

    def read(self, source: Source, name: str = "") -> Header:
        """Check the header of the file and return it; raises FormatError or UnsafeError."""
        assert isinstance(source, File)
        with naming(source):
            return _read(source, name)


def _read(file: File, name: str) -> Header:
    cursor = Cursor(file)
    tensors, entries = _counts(cursor)
    stored, metadata = _metadata(cursor, entries)
    _check_split(stored, metadata)
    alignment = _alignment(stored, metadata)
    infos = list(_infos(cursor, tensors))
    start = -(-cursor.offset // alignment) * alignment
    if start > file.size and infos:
        raise cut_short("the padding before its tensors")
    storage = Storage(name, start, max(file.size - start, 0), name=file.name)
    found = _placed(infos, storage, alignment)
    entry = stored.pop(RECIPE_KEY, None)
    metadata.pop(RECIPE_KEY, None)
    recipe = _recipe(file, entry) if entry is not None else None
    return Header(
        format=FORMAT.name,
        tree=found,
        files=(FilePrint.of(file, cursor.digest(), name),),
        handles={name: file},
        metadata=metadata,
        recipe=recipe,
        frame=lambda: _frame(file, found, entry, recipe or ""),
        stored=stored,
    )


def _counts(cursor: Cursor) -> tuple[int, int]:
    """Return the numbers of tensors and of entries; raises FormatError for a version that cannot be read."""
    cursor.take(4)
    version = cursor.small_number()
    if version not in (2, 3):
        turned = int.from_bytes(version.to_bytes(4, "little"), "big")
        why = f"it is of version {version}"
        hint = "Convert the model again with a newer llama.cpp: versions 2 and 3 can be read."
        if version == 0 or turned in (1, 2, 3):
            why, hint = "it is of version 0", ""
            if turned:
                why, hint = "its numbers are big-endian", "Convert it with gguf-py's gguf_convert_endian.py."
        raise FormatError(f"this GGUF file cannot be read: {why}.", hint=hint, rule="gguf version")
    tensors, entries = cursor.number(), cursor.number()
    cursor.within = "the list of its tensors"
    if tensors > limits.TENSORS or entries > limits.GGUF_ENTRIES:
        raise UnsafeError(
            f"its header claims {count(tensors, 'tensor')} and {entries:,} entries, too many to read.", rule="counts"
        )
    cursor.check(tensors * _INFO_BYTES + entries * _ENTRY_BYTES)
    return tensors, entries


def _name(cursor: Cursor, what: str) -> str:
    """Return the next text, the name of a tensor or an entry (``what``)."""
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
    """Return the entries of the metadata as they are stored, and the texts of those that are short."""
    stored, texts, kept = dict[str, StoredEntry](), dict[str, str](), 0
    for place in range(number):
        key = _name(cursor, f"entry {place + 1} of its metadata")
        if key in stored:
            raise FormatError(f"its metadata has the entry {escape(key)} twice.", rule="duplicate key")
        cursor.within = f"the entry {escape(key)} of its metadata"
        stored[key], shown = read_entry(cursor)
        kept += len(shown or "")
        if shown is not None and kept <= limits.GGUF_SHOWN:
            texts[key] = shown
    return stored, texts


def _check_split(stored: Mapping[str, StoredEntry], metadata: Mapping[str, str]) -> None:
    """Raise FormatError for one of several files of a model."""
    parts = metadata.get(SPLIT_COUNT, "0") if SPLIT_COUNT in stored else "0"
    if parts.isdigit() and int(parts) > 1:
        raise FormatError(
            f"it is one of {parts} files of a split model, which cannot be read.",
            hint="Join them first: llama-gguf-split --merge FIRST OUT.",
            rule="split",
        )


def _alignment(stored: Mapping[str, StoredEntry], metadata: Mapping[str, str]) -> int:
    if ALIGNMENT not in stored:
        return GgufWriter.alignment
    number = int(metadata[ALIGNMENT]) if stored[ALIGNMENT].kind == UINT32 else 0
    if not 0 < number <= _LARGEST_ALIGNMENT or number & (number - 1):
        raise FormatError(
            f"its {ALIGNMENT} is {escape(metadata.get(ALIGNMENT, ''), 20)}, not a power of two of the type uint32.",
            rule="alignment",
        )
    return number


def _infos(cursor: Cursor, number: int) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Yield the name, dtype and shape of each tensor, and its offset among the tensors' bytes."""
    seen = set[str]()
    for place in range(number):
        key = _name(cursor, f"tensor {place + 1}")
        if key in seen:
            raise FormatError(f"it has two tensors with the name {escape(key)}.", rule="duplicate key")
        seen.add(key)
        cursor.within = f"the header of the tensor {escape(key)}"
        dims = cursor.small_number()
        if dims > _DIMENSIONS:
            raise FormatError(f"the tensor {escape(key)} has {dims} dimensions, more than 4.", rule="dimensions")
        shape = tuple(reversed([cursor.number() for _ in range(dims)]))
        dtype = _dtype(key, cursor.small_number())
        yield key, dtype, _stored_shape(key, dtype, shape), cursor.number()


def _dtype(key: str, number: int) -> str:
    if number in TYPES:
        return TYPES[number]
    known = f"of the type {REMOVED[number]}, which llama.cpp has dropped" if number in REMOVED else "of unknown type"
    raise FormatError(f"the tensor {escape(key)} is {known} ({number}).", rule="tensor type")


def _stored_shape(key: str, dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a tensor is stored in: that of bytes if it is quantised; raises FormatError."""
    if max(shape, default=0) > limits.ELEMENTS or prod(filter(None, shape)) > limits.ELEMENTS // 8:
        raise FormatError(f"the tensor {escape(key)} of shape {list(shape)} has too many elements.", rule="tensor size")
    block = DTYPES[dtype].block
    if block is None:
        return shape
    if not shape or shape[-1] % block[0]:
        raise FormatError(
            f"the tensor {escape(key)} of shape {list(shape)} is {dtype}, whose rows are blocks of {block[0]} numbers.",
            rule="blocks",
        )
    return (*shape[:-1], shape[-1] // block[0] * block[1])


def _placed(
    infos: list[tuple[str, str, tuple[int, ...], int]], storage: Storage, alignment: int
) -> dict[str, TensorInfo]:
    """Return the tensors; raises FormatError for one that is not aligned, overlaps another, or ends beyond the file."""
    found: dict[str, TensorInfo] = {}
    shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
    for key, dtype, shape, offset in infos:
        found[key] = info = TensorInfo(dtype, shapes.setdefault(shape, shape), storage, offset)
        if offset % alignment:
            raise FormatError(
                f"the tensor {escape(key)} begins at {offset}, which is not a multiple of {alignment}.", rule="aligned"
            )
        if offset + info.nbytes > storage.nbytes:
            raise cut_short(f"the tensor {escape(key)}")
    end, before = 0, ""
    for offset, nbytes, key in sorted((info.offset, info.nbytes, key) for key, info in found.items()):
        if offset < end and nbytes:
            raise FormatError(f"the tensors {escape(before)} and {escape(key)} overlap.", rule="overlap")
        end, before = max(end, offset + nbytes), key
    return found


def _recipe(file: File, entry: StoredEntry) -> str:
    if entry.kind != TEXT or entry.nbytes > limits.RECIPE_BYTES:
        raise FormatError(f"its entry {RECIPE_KEY} is not a recipe.", rule="recipe size")
    return file.read(entry.offset + 8, entry.nbytes - 8).decode("utf-8", "replace")


def _frame(file: File, tensors: Mapping[str, TensorInfo], entry: StoredEntry | None, recipe: str) -> str:
    places = sorted((info.offset, info.nbytes) for info in tensors.values())
    start = next((info.storage.offset for info in tensors.values() if info.storage is not None), 0)
    payload = [(start + offset, start + offset + nbytes) for offset, nbytes in places if nbytes]
    patches = []
    if entry is not None and (sealed := seal_of(recipe).encode()):
        raw = file.read(entry.offset + 8, entry.nbytes - 8)
        patches = [(entry.offset + 8 + raw.rfind(sealed), UNSEALED.encode())]
    return digest_outside(file, payload, patches)


FORMAT = _Gguf()
