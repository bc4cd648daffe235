"""Lays out Flax's msgpack files: nested dicts, with an extension of type 1 for each array.

Follows ``flax/serialization.py`` (``msgpack_serialize``) and https://github.com/msgpack/msgpack/blob/master/spec.md.
Flax would write the same bytes for the same arrays, except for ckpt's recipe at the beginning. Flax splits arrays over
1 GB into chunks when it writes, but also reads larger ones.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

from ...errors import OutputError
from ...tensors.dtypes import DTYPES
from ...util.text import escape
from ..base import limits
from ..base.header import ExtraEntries, OutTensor
from ..base.nesting import Nested, leaves, nested
from ..base.sharded_writer import OneFile

__all__ = ["ARRAY", "FLAX_DTYPES", "FLAX_RECIPE", "FlaxWriter"]

ARRAY = 1
"""The type of an extension that contains an array."""
FLAX_RECIPE = "ckptsurgeon.json"
"""The key of the entry with the recipe. Flax ignores this entry if it restores the arrays of a given tree."""
_KINDS = ("float", "int", "uint", "bool", "complex")
FLAX_DTYPES = frozenset(
    {name for name, dtype in DTYPES.items() if dtype.kind in _KINDS and dtype.bits >= 8} - {"complex32"}
)
"""The dtypes that an array can have: the dtypes of numpy and ml_dtypes, under the same names."""
_LARGEST = 0xFFFFFFFF - 1024
"""The most bytes of an array: msgpack stores the length of an extension (shape, dtype, values) in 32 bits."""
_ITEMS = 6
"""The number of msgpack values for an array and its key, without the sizes in the array's shape."""


class FlaxWriter:
    """Writes msgpack files that ``flax.serialization.msgpack_restore`` and ``from_bytes`` read."""

    name = "flax"
    sharding = OneFile("flax", "msgpack")
    suffixes = (".msgpack",)
    carries = False
    shares = False
    most = limits.TREE_NODES // (_ITEMS + 4)
    dtypes = FLAX_DTYPES

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> _FlaxLayout:
        """Return the layout of a file; ``metadata`` is not used here: the text ``recipe`` contains it.

        The parts of a key between dots become nested dicts. Raises OutputError for keys that cannot be stored, for an
        array that is too large for msgpack, and for more values than ckptsurgeon reads.
        """
        tree = nested(tensors, ".", self.name)
        _check_number(tree)
        return _FlaxLayout(tree, recipe)


class _FlaxLayout:
    """The layout of a file: its first entry is the recipe; the arrays follow."""

    def __init__(self, tree: Nested, recipe: Sequence[str]) -> None:
        self._entries = len(tree)
        self._pieces = [bytearray()]
        """Pieces of bytes: before the first array, between each two arrays, and after the last array."""
        _append(tree, self._pieces)
        at = sum(map(len, self._start(recipe)))
        self.slots: dict[str, tuple[int, int]] = {}
        for piece, tensor in zip(self._pieces, leaves(tree), strict=False):
            self.slots[tensor.key] = (at + len(piece), tensor.nbytes)
            at += len(piece) + tensor.nbytes
        self.size = at + len(self._pieces[-1])

    def _start(self, recipe: Sequence[str]) -> list[bytes]:
        """Return pieces of bytes: the header of the outermost dict, and the entry with the recipe, if there is one."""
        start = _sized(self._entries + bool(recipe), 0x80, 0xDE)
        if not recipe:
            return [start]
        pieces = [piece.encode() for piece in recipe]
        return [start + _text(FLAX_RECIPE) + struct.pack(">BI", 0xDB, sum(map(len, pieces))), *pieces]

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes outside the arrays, as (offset, bytes) in order."""
        at = 0
        for part in self._start(recipe):
            yield at, part
            at += len(part)
        for piece, (begin, nbytes) in zip(self._pieces, self.slots.values(), strict=False):
            yield at, bytes(piece)
            at = begin + nbytes
        yield at, bytes(self._pieces[-1])


def _check_number(tree: Nested) -> None:
    """Raise OutputError if the file would have more values than ckptsurgeon reads."""
    number = _values(tree) + len((FLAX_RECIPE, "its text"))
    if number > limits.TREE_NODES:
        raise OutputError(
            f"the file would have {number:,} msgpack values: ckptsurgeon reads at most {limits.TREE_NODES:,}.",
            hint="Write safetensors: -o FILE.safetensors.",
        )


def _values(tree: Nested) -> int:
    return 1 + sum(1 + _values(one) if isinstance(one, dict) else _ITEMS + len(one.shape) for one in tree.values())


def _append(tree: Nested, pieces: list[bytearray]) -> None:
    """Append the bytes of a dict's entries to ``pieces``; the bytes after each array are a new piece."""
    for name, one in tree.items():
        pieces[-1] += _text(name)
        if isinstance(one, dict):
            pieces[-1] += _sized(len(one), 0x80, 0xDE)
            _append(one, pieces)
        else:
            pieces[-1] += _array_head(one)
            pieces.append(bytearray())


def _array_head(tensor: OutTensor) -> bytes:
    """Return the bytes before an array's values: the extension, the shape and the name of the dtype.

    Raises OutputError if the array is too large for msgpack.
    """
    if tensor.nbytes > _LARGEST:
        raise OutputError(
            f"{escape(tensor.key)} has {tensor.nbytes:,} bytes: msgpack stores at most {_LARGEST:,} for an array.",
            hint="Write safetensors: -o FILE.safetensors.",
        )
    sizes = _sized(len(tensor.shape), 0x90, 0xDC) + b"".join(map(_integer, tensor.shape))
    head = b"\x93" + sizes + _text(tensor.dtype) + _binary(tensor.nbytes)
    return _extension(len(head) + tensor.nbytes) + head


def _sized(number: int, short: int, wide: int) -> bytes:
    """Return the first bytes of a map or list with ``number`` items.

    ``short`` is msgpack's code for fewer than 16 items, ``wide`` its code for a number of items in 16 bits.
    """
    if number < 16:
        return bytes([short | number])
    return struct.pack(">BH", wide, number) if number <= 0xFFFF else struct.pack(">BI", wide + 1, number)


def _integer(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    for code, form, most in ((0xCC, "B", 0xFF), (0xCD, "H", 0xFFFF), (0xCE, "I", 0xFFFFFFFF)):
        if number <= most:
            return struct.pack(f">B{form}", code, number)
    return struct.pack(">BQ", 0xCF, number)


def _length(codes: tuple[int, int, int], number: int) -> bytes:
    code, form = next(
        (code, form)
        for code, form, most in zip(codes, "BHI", (0xFF, 0xFFFF, 0xFFFFFFFF), strict=True)
        if number <= most
    )
    return struct.pack(f">B{form}", code, number)


def _text(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise OutputError(
            f"flax cannot store the name {escape(text)}: it is not valid Unicode.",
            hint="Rename the tensor with ckpt rename --map, or use --to pth.",
        ) from None
    return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else _length((0xD9, 0xDA, 0xDB), len(raw))) + raw


def _binary(number: int) -> bytes:
    return _length((0xC4, 0xC5, 0xC6), number)


def _extension(number: int) -> bytes:
    if number in (1, 2, 4, 8, 16):
        return struct.pack(">BB", 0xD4 + (1, 2, 4, 8, 16).index(number), ARRAY)
    return _length((0xC7, 0xC8, 0xC9), number) + bytes([ARRAY])
