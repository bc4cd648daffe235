"""Reads the metadata of one zarr array: its shape, its type, its chunks, and how each chunk is encoded.

https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html and https://zarr-specs.readthedocs.io/en/latest/v3/core/;
``bfloat16``, the types of 8 bits and zstd are read as tensorstore writes them
(https://google.github.io/tensorstore/driver/).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ...errors import FormatError
from ...tensors.dtypes import DTYPES
from ...util.text import brief_repr, escape
from ..base.untrusted import check_elements, check_sizes, parse_json
from .codecs import CHECKSUM, COMPRESSORS

__all__ = ["Shards", "ZarrArray", "zarr_array"]

_KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool", "c": "complex"}
_V2_TYPE = re.compile(r"([<>|])([fiubc])([0-9]{1,2})")
_READ = ("float", "int", "uint", "bool", "complex")
_ORDERS = ("C", "F")


@dataclass(frozen=True)
class Shards:
    """How a chunk is divided into inner chunks, each with its own codecs (zarr 3, ``sharding_indexed``).

    The index has the offset and size of each inner chunk; ``at_end`` is true if it is at the end of the stored bytes.
    """

    chunk: tuple[int, ...]
    codecs: tuple[str, ...]
    has_sum: bool
    at_end: bool


@dataclass(frozen=True)
class ZarrArray:
    """An array as its metadata describe it; if its values cannot be read, ``unread`` says why, otherwise it is ''.

    ``chunk`` is the shape of a chunk. ``codecs`` are the codecs of a chunk in the order in which they were applied. The
    key of a chunk begins with ``key``; its place in the grid follows, with ``separator`` between the numbers. ``fill``
    is the value of missing elements in the array's byte order, b'' if it is zero, None if it is not supported.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    big_endian: bool = False
    order: str = "C"
    codecs: tuple[str, ...] = ()
    shards: Shards | None = None
    key: str = ""
    separator: str = "."
    fill: bytes | None = b""
    unread: str = ""

    @property
    def element(self) -> int:
        """The size of an element in bytes."""
        return DTYPES[self.dtype].itemsize

    @property
    def chunk_bytes(self) -> int:
        """The size of the values of a chunk in bytes."""
        return prod(self.chunk) * self.element

    def key_of(self, place: Sequence[int]) -> str:
        """Return the key of the chunk at ``place`` in the grid, such as "0.1".

        In version 2, an array without dimensions has one chunk, whose key is "0".
        """
        numbers = self.separator.join(map(str, place))
        return f"{self.key}{self.separator}{numbers}" if self.key and numbers else self.key or numbers or "0"


def zarr_array(raw: bytes, version: int) -> ZarrArray:
    """Return the description of an array from its metadata, in version 2 (``.zarray``) or 3 (``zarr.json``).

    Raises FormatError if they are not valid.
    """
    try:
        said = parse_json(raw)
    except ValueError as error:
        raise malformed(f"are not valid JSON: {error}") from None
    if not isinstance(said, dict) or said.get("zarr_format") != version:
        raise malformed(f"are not those of an array of zarr {version}")
    return _version_2(said) if version == 2 else _version_3(said)


def malformed(what: str) -> FormatError:
    """Return the error for metadata that break a rule of zarr; ``what`` is a text that follows "its metadata"."""
    return FormatError(f"its zarr metadata {what}.", rule="zarr")


def _version_2(said: Mapping[str, Any]) -> ZarrArray:
    shape, chunk = _sizes(said.get("shape"), "shape"), _sizes(said.get("chunks"), "chunks")
    dtype, big, unread = _type_2(said.get("dtype"))
    compressor, order = said.get("compressor"), said.get("order", "C")
    codec = None if compressor is None else _named_codec(compressor)
    if order not in _ORDERS or codec == "":
        raise malformed("have an order or a compressor that is not valid")
    if said.get("filters"):
        unread = unread or "it was stored through filters, which are not supported"
    if codec is not None and codec not in COMPRESSORS:
        unread = unread or f"it was stored through the codec {escape(codec, 40)}, which is not supported"
    return _checked(ZarrArray(
        shape, chunk, dtype, big, order, () if codec is None else (codec,),
        separator=_separator(said.get("dimension_separator", ".")), unread=unread,
        fill=_fill(said.get("fill_value"), dtype, big_endian=big),
    ))  # fmt: skip


def _named_codec(said: Any) -> str:
    """Return the name of the compressor that an entry of zarr 2 describes; '' if it describes none."""
    name = said.get("id") if isinstance(said, dict) else None
    return name if isinstance(name, str) else ""


def _version_3(said: Mapping[str, Any]) -> ZarrArray:
    if said.get("node_type") != "array":
        raise malformed("are not those of an array")
    shape = _sizes(said.get("shape"), "shape")
    grid, keys = _named(said.get("chunk_grid")), _named(said.get("chunk_key_encoding"))
    if grid[0] != "regular" or keys[0] not in ("default", "v2"):
        raise malformed("have a grid or an encoding of keys that is not supported")
    is_default = keys[0] == "default"
    separator = _separator(keys[1].get("separator", "/" if is_default else "."))
    chunk = _sizes(grid[1].get("chunk_shape"), "chunk_shape")
    dtype, unread = _type_3(said.get("data_type"))
    codecs, more, big, shards = _codecs(said.get("codecs"))
    return _checked(ZarrArray(
        shape, chunk, dtype, big, "C", codecs, shards, "c" if is_default else "", separator,
        _fill(said.get("fill_value"), dtype, big_endian=big), unread or more,
    ))  # fmt: skip


def _checked(array: ZarrArray) -> ZarrArray:
    """Return the array; raises FormatError if the shapes of array, chunks and inner chunks do not fit together."""
    if len(array.chunk) != len(array.shape) or 0 in array.chunk:
        raise malformed(f"give the shape {list(array.shape)}, but chunks of the shape {list(array.chunk)}")
    inner = array.shards.chunk if array.shards else array.chunk
    if len(inner) != len(array.chunk) or 0 in inner or any(
        size % step for size, step in zip(array.chunk, inner, strict=False)
    ):  # fmt: skip
        raise malformed(f"divide chunks of the shape {list(array.chunk)} into chunks of the shape {list(inner)}")
    return array


def _sizes(said: Any, what: str) -> tuple[int, ...]:
    sizes = tuple(said) if isinstance(said, list) else said
    check_sizes(sizes, what)
    check_elements(sizes)
    return sizes


def _separator(said: Any) -> str:
    if said not in (".", "/"):
        raise malformed(f"have the separator {brief_repr(said)}")
    return str(said)


def _type_2(said: Any) -> tuple[str, bool, str]:
    """Return (dtype, whether it is big-endian, reason) of a type of zarr 2; the reason is '' if it can be read.

    Raises FormatError if it is not a type.
    """
    found = _V2_TYPE.fullmatch(said) if isinstance(said, str) else None
    if found is None:
        dtype, unread = _type_3(said)
        return dtype, False, unread
    bits = int(found[3]) * 8
    if found[2] == "b" and bits != 8:
        raise malformed(f"have the type {said}")
    name = "bool" if found[2] == "b" else f"{_KINDS[found[2]]}{bits}"
    dtype, unread = _type_3(name)
    return dtype, found[1] == ">" and bits > 8, unread


def _type_3(said: Any) -> tuple[str, str]:
    if isinstance(said, str) and (dtype := DTYPES.get(said)) and dtype.kind in _READ and dtype.bits >= 8:
        return said, ""
    return "uint8", f"its type {escape(str(said), 40)} is not read from zarr"


def _named(said: Any) -> tuple[str, Mapping[str, Any]]:
    """Return (name, configuration) of ``said``, a part of zarr 3's metadata: an object, or only a name.

    Raises FormatError for anything else.
    """
    if isinstance(said, str):
        return said, {}
    name = said.get("name") if isinstance(said, dict) else None
    found = said.get("configuration", {}) if isinstance(name, str) else None
    if not isinstance(name, str) or not isinstance(found, dict):
        raise malformed("have a part without a name, or whose configuration is not an object")
    return name, found


def _codecs(said: Any, *, inner: bool = False) -> tuple[tuple[str, ...], str, bool, Shards | None]:
    """Return (codecs, reason, whether the values are big-endian, shards or None) from the list of codecs of zarr 3.

    The codecs are those that map bytes to bytes. The reason says which codecs are not supported, '' if all are.
    ``inner`` is true for the codecs of an inner chunk. Raises FormatError if the list is not valid.
    """
    if not isinstance(said, list) or not said:
        raise malformed("have no codecs")
    parts = [_named(one) for one in said]
    names = [name for name, _ in parts]
    if names == ["sharding_indexed"] and not inner:
        return _sharded(parts[0][1])
    codecs = tuple(names[1:])
    odd = [name for name in names if name not in ("bytes", CHECKSUM, *COMPRESSORS)]
    if odd or names[0] != "bytes" or "bytes" in codecs or sum(name in COMPRESSORS for name in names) > 1:
        named = escape(", ".join(odd or names), 40)
        return (), f"it was stored through the codecs {named}, which are not supported", False, None
    return codecs, "", parts[0][1].get("endian") == "big", None


def _sharded(said: Mapping[str, Any]) -> tuple[tuple[str, ...], str, bool, Shards | None]:
    chunk = _sizes(said.get("chunk_shape"), "chunk_shape")
    codecs, unread, big, _ = _codecs(said.get("codecs"), inner=True)
    index, more, index_big, _ = _codecs(said.get("index_codecs"), inner=True)
    place = said.get("index_location", "end")
    if index not in ((), (CHECKSUM,)) or index_big or place not in ("start", "end"):
        more = more or "the index of its chunks has an encoding that is not supported"
    return (), unread or more, big, Shards(chunk, codecs, index == (CHECKSUM,), place == "end")


def _fill(said: Any, dtype: str, *, big_endian: bool) -> bytes | None:
    """Return the bytes of the fill value: b'' for zeros, None for a value that is not supported."""
    if said is None or _is_zero(said):
        return b""
    if isinstance(said, list) and len(said) == 2 and DTYPES[dtype].kind == "complex" and all(map(_is_zero, said)):
        return b""  # the default of tensorstore in zarr 3
    if dtype in ("float64", "float32", "float16") and said in ("NaN", "Infinity", "-Infinity"):
        said = float(said.replace("Infinity", "inf"))
    kind = DTYPES[dtype].kind
    if not isinstance(said, (bool, int, float)) or kind not in _READ[:4] or dtype.startswith(("bfloat", "float8")):
        return None
    import numpy as np

    try:
        return np.array(said, np.dtype(dtype).newbyteorder(">" if big_endian else "<")).tobytes()
    except (OverflowError, ValueError):
        return None


def _is_zero(said: Any) -> bool:
    return isinstance(said, (bool, int, float)) and said == 0 and str(said) != "-0.0"
