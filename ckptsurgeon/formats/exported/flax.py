"""Reads and writes the msgpack files of Flax (``flax_model.msgpack``): nested dicts with arrays.

Follows ``flax/serialization.py`` (``msgpack_serialize``) and https://github.com/msgpack/msgpack/blob/master/spec.md. An
array is an extension of type 1: its shape, the name of its dtype and its bytes, as msgpack. An array over 1 GB is a
dict of chunks, but files are written without chunks. The names in nested dicts are joined by dots, as in
``encoder.layer.0.kernel``. No object of Python is built from an extension of another type: only its type is reported.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File, Source
from ...tensors.composition import join, reshape
from ...tensors.dtypes import DTYPES
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape
from ..base import limits
from ..base.header import UNSEALED, FilePrint, Header, digest_outside, naming, seal_of
from ..base.untrusted import check_elements, check_sizes
from ..base.window import Window
from ..pickle.values import GlobalName, OpaqueResult
from ._flax_keys import dotted, dotted_parts
from ._flax_writer import ARRAY, FLAX_DTYPES, FLAX_RECIPE, FlaxWriter

__all__ = ["FORMAT"]

_HEAD = re.compile(rb"(?:[\x81-\x8f]|\xde..|\xdf....)(?:[\xa1-\xbf]|\xd9.)[\x20-\x7e]", re.DOTALL)
"""Matches the first bytes of a msgpack map whose first key is a string."""
_CHUNKED = "__msgpack_chunked_array__"
_SCALAR = 3
"""The type of an extension that contains an array without a shape; other arrays have the type ``ARRAY``."""
_NUMBERS = dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True))
"""{first byte of a number: the format in which ``struct`` reads the bytes after it}."""
_LENGTHS = {
    0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4,
}  # fmt: skip
"""{first byte of a value: the number of bytes that store the length of the value}."""


class _Item(NamedTuple):
    """The head of a value: its kind, its number of items or bytes, and where its content begins.

    For a number, a bool or nil, ``value`` is the value itself; for an extension, it is the type of the extension.
    """

    kind: str
    length: int
    begin: int
    value: Any = None


class _Flax:
    name = "flax"
    magic: tuple[bytes, ...] = ()
    writer = FlaxWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with a msgpack map that has a string as its first key."""
        return isinstance(source, File) and bool(_HEAD.match(head))

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of the file; raises FormatError or UnsafeError if it is not valid or has no array."""
        assert isinstance(source, File)
        with naming(source):
            reader = _Reader(source, name)
            tree, end = reader.value(0, source.size)
            if end != source.size:
                raise FormatError(f"{source.size - end} bytes follow the msgpack map.", rule="msgpack end")
            if not reader.arrays:
                raise FormatError(
                    "this is a msgpack file without arrays of Flax.",
                    hint="Pass a file that Flax wrote with flax.serialization.to_bytes or msgpack_serialize.",
                    rule="no state dict",
                )
            digest = digest_outside(source, reader.arrays)
            recipe = reader.recipe_text()
            flat = dotted_parts(tree) if recipe is None else dotted(tree)  # ckptsurgeon writes parameters alone
        return Header(
            format=self.name,
            tree=flat,
            files=(FilePrint.of(source, digest, name),),
            handles={name: source},
            recipe=recipe,
            frame=lambda: reader.frame(recipe or ""),
        )


class _Reader:
    """Reads msgpack values; ``arrays`` has the (begin, end) of each array's bytes, in file order.

    ``recipe`` is the (offset, length) of ckpt's recipe in the file; None if there is none. In the methods, ``at`` is
    the offset of a value, which must end at ``end`` at the latest.

    Raises FormatError if the bytes are not valid, UnsafeError if there are too many values or they are nested too
    deeply.
    """

    def __init__(self, file: File, name: str) -> None:
        self.arrays: list[tuple[int, int]] = []
        self.recipe: tuple[int, int] | None = None
        self._name = name
        self._file, self._window = file, Window(file)
        self._left = limits.TREE_NODES

    def value(self, at: int, end: int, depth: int = 0) -> tuple[Any, int]:
        """Return the value at the offset ``at``, and the offset after it, which is at most ``end``.

        Byte strings, long strings and extensions that are not arrays become stand-ins.
        """
        item = self._item(at, end)
        if item.kind == "map":
            return self._map(item, end, depth + 1)
        if item.kind == "list":
            found, at = [], item.begin
            for _ in range(item.length):
                one, at = self.value(at, end, self._deeper(depth))
                found.append(one)
            return found, at
        after = item.begin + item.length
        if item.kind == "text" and item.length <= limits.KEY_CHARACTERS:
            return self._text(item, limits.KEY_CHARACTERS), after
        if item.kind == "extension":
            if item.value in (ARRAY, _SCALAR):
                return self._array(item.begin, after), after
            return OpaqueResult(GlobalName("msgpack", f"type {item.value}"), ()), after
        if item.kind in ("text", "bytes"):
            return OpaqueResult(GlobalName("msgpack", "bytes" if item.kind == "bytes" else "string"), ()), after
        return item.value, after

    def _deeper(self, depth: int) -> int:
        if depth >= limits.TREE_DEPTH:
            raise UnsafeError(
                f"the maps and lists are nested more than {limits.TREE_DEPTH} levels deep.", rule="tree depth"
            )
        return depth + 1

    def _map(self, item: _Item, end: int, depth: int) -> tuple[Any, int]:
        found: dict[str, Any] = {}
        at = item.begin
        for _ in range(item.length):
            named = self._item(at, end)
            if named.kind != "text":
                raise FormatError("a key of a map is not a string.", rule="msgpack key")
            key = self._text(named, limits.KEY_CHARACTERS)
            is_recipe = key == FLAX_RECIPE and depth == 1
            if is_recipe and self.recipe is None:
                at = self._place_recipe(named.begin + named.length, end)
                continue
            if key in found or is_recipe:
                raise FormatError(f"a map has the key {escape(key)} twice.", rule="duplicate key")
            found[key], at = self.value(named.begin + named.length, end, self._deeper(depth))
        return (_joined(found) if found.get(_CHUNKED) is True else found), at

    def _place_recipe(self, at: int, end: int) -> int:
        """Store the offset and the length of the recipe, and return the offset after the recipe.

        Raises FormatError if it is not a recipe.
        """
        item = self._item(at, end)
        if item.kind != "text" or item.length > limits.RECIPE_BYTES:
            raise FormatError(
                f"the entry {FLAX_RECIPE} is not a recipe: a string of at most {limits.RECIPE_BYTES:,} bytes.",
                rule="recipe size",
            )
        self.recipe = (item.begin, item.length)
        return item.begin + item.length

    def recipe_text(self) -> str | None:
        """Return the text of the recipe; None if there is none."""
        return None if self.recipe is None else self._file.read(*self.recipe).decode("utf-8", "replace")

    def frame(self, recipe: str) -> str:
        """Return the digest of all bytes of the file except its arrays.

        ``recipe`` is the text of the recipe in the file, which contains this digest (its seal). The digest is computed
        as if the recipe contained zeros instead.
        """
        patches = []
        if self.recipe is not None and (sealed := seal_of(recipe).encode()):
            begin, length = self.recipe
            patches = [(begin + self._file.read(begin, length).rfind(sealed), UNSEALED.encode())]
        return digest_outside(self._file, self.arrays, patches)

    def _array(self, at: int, end: int) -> TensorInfo:
        """Return the header of the array in an extension, which is a list: shape, name of the dtype, bytes.

        Raises FormatError if it is not valid.
        """
        items = self._item(at, end)
        sizes = self._item(items.begin, end) if items.kind == "list" and items.length == 3 else items
        if sizes.kind != "list" or sizes is items:
            raise FormatError(
                "an array is not stored as a list of its shape, its dtype and its bytes.", rule="msgpack array"
            )
        if sizes.length > limits.DIMENSIONS:
            raise FormatError(
                f"an array has {sizes.length} dimensions, more than {limits.DIMENSIONS}.", rule="tensor shape"
            )
        numbers: list[Any] = []
        at = sizes.begin
        for _ in range(sizes.length):
            number = self._item(at, end)
            numbers.append(number.value if number.kind == "value" else None)
            at = number.begin + number.length
        shape = tuple(numbers)
        check_sizes(shape, "shape")
        check_elements(shape)
        named = self._item(at, end)
        data = self._item(named.begin + named.length, end) if named.kind == "text" else named
        if data.kind != "bytes" or data.begin + data.length != end:
            raise FormatError(
                "an array is not stored as a list of its shape, its dtype and its bytes.", rule="msgpack array"
            )
        self.arrays.append((data.begin, end))
        dtype = self._text(named, limits.KEY_CHARACTERS)
        if dtype not in FLAX_DTYPES:
            return TensorInfo("uint8", shape, opaque=f"its type {escape(dtype, 40)} is not read from Flax")
        if prod(shape) * DTYPES[dtype].bits // 8 != data.length:
            raise FormatError(f"an array is {dtype} {list(shape)}, but has {data.length} bytes.", rule="tensor size")
        return TensorInfo(dtype, shape, Storage(self._name, data.begin, data.length))

    def _text(self, item: _Item, most: int) -> str:
        if item.length > most:
            raise FormatError(f"a string has more than {most:,} bytes.", rule="msgpack text")
        try:
            return self._window.read(item.begin, item.length).decode()
        except UnicodeDecodeError:
            raise FormatError("a string is not UTF-8.", rule="msgpack text") from None

    def _item(self, at: int, end: int) -> _Item:
        """Return the kind and the size of the value at the offset ``at``; its content ends at ``end`` at the latest.

        Raises FormatError if it is truncated, UnsafeError if the file has too many values.
        """
        self._left -= 1
        if self._left < 0:
            raise UnsafeError(f"the file has more than {limits.TREE_NODES:,} values.", rule="tree size")
        head = self._window.read(at, min(9, end - at)) if at < end else b""
        item = _described(head, at)
        items = item.length if item.kind in ("map", "list") else 0  # each item has a byte at least
        if item.begin + (items or item.length) > end:
            raise FormatError("the file is truncated.", rule="cut short")
        return item


def _described(head: bytes, at: int) -> _Item:
    """Return the kind and the size of the value at the offset ``at``, whose first bytes are ``head``.

    Raises FormatError if it is not valid.
    """
    first = head[0] if head else 0xC1
    if first <= 0x7F or first >= 0xE0:
        return _Item("value", 0, at + 1, first if first <= 0x7F else first - 256)
    if first <= 0xBF:
        kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
        return _Item(kind, first & (31 if kind == "text" else 15), at + 1)
    if first in (0xC0, 0xC2, 0xC3):
        return _Item("value", 0, at + 1, {0xC0: None, 0xC2: False, 0xC3: True}[first])
    try:
        if form := _NUMBERS.get(first):
            return _Item("value", 0, at + 1 + struct.calcsize(form), struct.unpack_from(form, head, 1)[0])
        if 0xD4 <= first <= 0xD8:
            return _Item("extension", 1 << first - 0xD4, at + 2, struct.unpack_from(">b", head, 1)[0])
        width = _LENGTHS.get(first, 0)
        if not head:
            raise FormatError("the file is truncated.", rule="cut short")
        if not width:
            raise FormatError("the byte 0xc1 is not valid in msgpack.", rule="msgpack")
        length = int.from_bytes(head[1 : 1 + width], "big")
        if len(head) < 1 + width:
            raise struct.error
        if first in (0xC7, 0xC8, 0xC9):
            return _Item("extension", length, at + 2 + width, struct.unpack_from(">b", head, 1 + width)[0])
    except struct.error:
        raise FormatError("the file is truncated.", rule="cut short") from None
    kind = "bytes" if first < 0xC7 else "text" if first < 0xDC else "list" if first < 0xDE else "map"
    return _Item(kind, length, at + 1 + width)


def _joined(found: Mapping[str, Any]) -> TensorInfo:
    """Return the array that the map ``found`` describes: its shape is in ``shape``, its elements are in ``chunks``.

    Raises FormatError if the chunks do not make up an array of this shape.
    """
    sizes, chunks = found.get("shape"), found.get("chunks")
    shape: Any = tuple(sizes.get(str(number)) for number in range(len(sizes))) if isinstance(sizes, dict) else None
    check_sizes(shape, "shape")
    check_elements(shape)
    parts = [chunks.get(str(number)) for number in range(len(chunks))] if isinstance(chunks, dict) else []
    flat = [reshape(one, (one.numel,)) for one in parts if isinstance(one, TensorInfo) and not one.opaque]
    if len(flat) < len(parts) or not flat or {one.dtype for one in flat} != {flat[0].dtype}:
        raise FormatError("the chunks of an array are missing, or are not arrays of one dtype.", rule="msgpack array")
    if sum(one.numel for one in flat) != prod(shape):
        raise FormatError(
            f"the chunks of an array have {sum(one.numel for one in flat):,} elements, but its shape is {list(shape)}.",
            rule="tensor size",
        )
    return reshape(join(flat, 0), shape)


FORMAT = _Flax()
