"""Reads the index of a TensorFlow V2 checkpoint: its tensors, and variables that are stored in slices.

The index is a LevelDB table whose values are protocol buffers (tensorflow/core/protobuf/tensor_bundle.proto). The value
of the empty key is a BundleHeaderProto; the value of each tensor's name is a BundleEntryProto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import FormatError, UnsafeError
from ...storage.crc32c import unmasked
from ...storage.read.base import File
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..base import limits
from ..base.protobuf import fields, signed
from ..base.slice import TensorPiece, assembled
from .leveldb import entries

__all__ = ["DTYPES", "Bundle", "BundleEntry", "Slice", "join_slices", "read_bundle", "slice_key"]

DTYPES: Mapping[int, str] = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
    24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 28: "float8_e5m2fnuz",
}  # fmt: skip
"""torch's names of TensorFlow's types, by number in ``DataType`` (tensorflow/core/framework/types.proto)."""

_VERSION = 1
_FULL = -1

Slice = tuple[tuple[int, int], ...]
"""A part of a tensor: (start, length) for each dimension; the length -1 means the whole dimension."""


@dataclass(frozen=True)
class BundleEntry:
    """A tensor in the index: its bytes are the ``size`` bytes of data file number ``shard`` from ``offset`` on.

    ``dtype`` is TensorFlow's number for the dtype. ``slices`` are the parts of a partitioned variable; each part is
    stored under its own key.
    """

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """The content of an index: ``entries`` has its tensors and slices by key; ``shards`` counts the data files."""

    shards: int
    big_endian: bool
    entries: Mapping[bytes, BundleEntry]


def read_bundle(file: File) -> Bundle:
    """Return the content of an index; raises FormatError or UnsafeError if it is invalid."""
    if file.size > limits.TABLE_BYTES:
        raise UnsafeError(
            f"the index has {file.size} bytes, more than the limit of {limits.TABLE_BYTES}.", rule="index size"
        )
    found: dict[bytes, BundleEntry] = {}
    header = None
    said = slices = 0
    for key, value in entries(file):
        said += len(value)
        if len(found) >= limits.TENSORS or slices > limits.PIECES or said > limits.TABLE_MESSAGES:
            raise UnsafeError(
                f"the index has more tensors than the limit of {limits.TENSORS}, or too many slices or bytes that "
                "describe them.",
                rule="tensors",
            )
        try:
            if header is None:
                if key:
                    raise FormatError("the file is a LevelDB table without TensorFlow's header.", rule="bundle header")
                header = _header(value)
            else:
                found[key] = _entry(value)
                slices += len(found[key].slices)
        except ValueError as error:
            name = escape(key.decode("utf-8", "replace"), 80) or "the header"
            raise FormatError(f"the entry of {name} in the index is malformed: {error}.", rule="protobuf") from None
    if header is None:
        raise FormatError("the index is an empty table.", rule="bundle header")
    return Bundle(*header, found)


def _header(data: bytes) -> tuple[int, bool]:
    """Return two fields of a BundleHeaderProto: the number of data files, and whether they are big-endian.

    Raises FormatError if a field has an unknown value.
    """
    shards, endianness, needed = 0, 0, 0
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            shards = value
        elif number == 2 and isinstance(value, int):
            endianness = value
        elif number == 3 and isinstance(value, bytes):
            needed = next((n for field, n in fields(value) if field == 2 and isinstance(n, int)), 0)
    if not 0 < shards <= limits.SHARDS:
        raise FormatError(
            f"the index says that there are {shards} data files; 1 to {limits.SHARDS} can be read.", rule="shards"
        )
    if endianness not in (0, 1) or needed > _VERSION:
        odd = f"the index has the unknown byte order {endianness}, not 0 or 1."
        why = odd if endianness not in (0, 1) else "the version of the index is too new to be read."
        raise FormatError(why, rule="bundle version")
    return shards, endianness == 1


def _entry(data: bytes) -> BundleEntry:
    """Return the BundleEntry that the bytes of a BundleEntryProto describe; raises ValueError if it is not valid."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    slices: list[Slice] = []
    for number, value in fields(data):
        if number in numbers and isinstance(value, int):
            numbers[number] = signed(value)
        elif number == 2 and isinstance(value, bytes):
            shape = _shape(value)
        elif number == 7 and isinstance(value, bytes):
            slices.append(_slice(value))
    dtype, shard, offset, size, crc = numbers.values()
    if min(shard, offset, size) < 0:
        raise ValueError("the shard, offset or size is negative")
    return BundleEntry(dtype, shape, shard, offset, size, unmasked(crc & 0xFFFFFFFF), tuple(slices))


def _shape(data: bytes) -> tuple[int, ...]:
    """Return the shape that the bytes of a TensorShapeProto describe; raises ValueError if it is not valid."""
    sizes = []
    for number, value in fields(data):
        if number == 3 and value:
            raise ValueError("the shape is not known")
        if number == 2 and isinstance(value, bytes):
            sizes.append(next((signed(n) for f, n in fields(value) if f == 1 and isinstance(n, int)), 0))
        if len(sizes) > limits.DIMENSIONS or (sizes and sizes[-1] < 0):
            raise ValueError(f"the shape has over {limits.DIMENSIONS} dimensions, or a negative size")
    return tuple(sizes)


def _slice(data: bytes) -> Slice:
    """Return the Slice that the bytes of a TensorSliceProto describe; raises ValueError if it is not valid."""
    extents = []
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            said = {field: signed(n) for field, n in fields(value) if isinstance(n, int)}
            extents.append((said.get(1, 0), said.get(2, _FULL)))
        if len(extents) > limits.DIMENSIONS:
            raise ValueError("a slice has too many dimensions")
    return tuple(extents)


# Partitioned variables of TensorFlow: the key of each slice, and the tensor made of all slices.
#
# A key consists of a zero, the name, the number of dimensions, then start and length of each dimension
# (``EncodeTensorNameSlice``). Keys, compared as bytes, have the same order as the values
# (tensorflow/core/lib/strings/ordered_code.h).

_ESCAPED = re.compile(rb"[\x00\xff]")
_ESCAPES = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}


def slice_key(name: bytes, part: Slice) -> bytes:
    """Return the key under which the slice ``part`` of the variable ``name`` is stored."""
    text = _ESCAPED.sub(lambda found: _ESCAPES[found[0]], name) + b"\x00\x01"
    numbers = b"".join(_signed(start) + _signed(length) for start, length in part)
    return _unsigned(0) + text + _unsigned(len(part)) + numbers


def _unsigned(value: int) -> bytes:
    """Return ``value`` in as few big-endian bytes as possible, after one byte with the number of these bytes.

    ``value`` is not negative.
    """
    size = -(-value.bit_length() // 8)
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """Return a signed 64-bit number in as few bytes as possible; the first bits give the number of bytes."""
    size = (value if value >= 0 else ~value).bit_length() // 7 + 1
    head = ((1 << size) - 1) << 7 * size
    plain = value & (1 << 8 * size) - 1
    return (plain ^ head).to_bytes(size, "big")


def join_slices(name: str, entry: BundleEntry, parts: list[TensorInfo]) -> TensorInfo:
    """Return the tensor of a partitioned variable, joined from ``parts``, the tensors of its slices.

    ``entry`` is the entry of the variable. Raises FormatError if the slices leave a gap or overlap.
    """
    dtype = DTYPES[entry.dtype]
    pieces = []
    for part, info in zip(entry.slices, parts, strict=True):
        if len(part) != len(entry.shape):
            raise FormatError(
                f"a slice of the variable {escape(name)} has {len(part)} dimensions, but the variable "
                f"has {len(entry.shape)}.",
                rule="slice",
            )
        sizes = tuple(full if length == -1 else length for (_, length), full in zip(part, entry.shape, strict=True))
        if info.dtype != dtype or info.shape != sizes:
            raise FormatError(
                f"a slice of the variable {escape(name)} is {info.dtype} {info.shape} but declared as {dtype} {sizes}.",
                rule="slice",
            )
        pieces.append(TensorPiece(tuple(start for start, _ in part), info))
    return assembled(name, dtype, entry.shape, pieces)
