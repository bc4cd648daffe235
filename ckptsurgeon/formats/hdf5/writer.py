"""Lays out HDF5 files that all versions of HDF5 read: contiguous datasets in groups of the older kind.

HDF5 File Format Specification 3.0, https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html: superblock of
version 0 (II.A), B-trees of version 1 (III.A), nodes of symbols (III.C), local heaps (III.D), object headers of version
1 (IV.A). The metadata comes first, then the recipe, then the values, aligned to 64 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from ...errors import OutputError
from ...util.text import escape
from ..base import limits
from ..base.header import ExtraEntries, OutTensor
from ..base.nesting import Nested, nested
from ..base.sharded_writer import OneFile
from .superblock import SIGNATURE
from .types import TEXT_TYPE, TYPE_MESSAGES

__all__ = ["HDF5_RECIPE", "Hdf5Writer"]

HDF5_RECIPE = "ckptsurgeon.json"
"""The name of the dataset in the root group that contains the recipe as a text."""
_ALIGN = 64
_NONE = (1 << 64) - 1
"""The value that means "no address"."""
_SYMBOLS, _CHILDREN = 8, 32
"""The most entries of a node of symbols and of a node of a B-tree: twice the numbers in the superblock."""
_NO_FREE = 1
_SPACE, _TYPE, _FILL, _LAYOUT, _TABLE = 1, 3, 5, 8, 17
"""The type numbers of the messages in object headers."""
_DEFAULT_FILL = struct.pack("<4BI", 2, 2, 2, 1, 0)
"""The fill value message: version 2; space is allocated late; values are written only if set; the default value."""


class Hdf5Writer:
    """Writes HDF5 files; a key such as "layers/dense/bias" is the dataset "bias" in the group "layers/dense"."""

    name = "hdf5"
    sharding = OneFile("hdf5", "h5")
    suffixes = (".h5", ".hdf5")
    carries = False
    shares = False
    most = limits.TENSORS // 4
    dtypes = frozenset(TYPE_MESSAGES)

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> _Hdf5Layout:
        """Return the layout of a file; ``metadata`` is not used here: the text ``recipe`` contains it.

        Raises OutputError for a key that cannot be the path of a dataset.
        """
        for tensor in tensors:
            _check_path(tensor.key)
        return _Hdf5Layout(nested(tensors, "/", self.name), recipe)


def _check_path(key: str) -> None:
    """Raise OutputError if a key cannot be the path of a dataset."""
    try:
        key.encode()
        is_path = "\0" not in key and not {"", "."} & {*key.split("/")} and key != HDF5_RECIPE
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise OutputError(
            f"hdf5 cannot store the key {escape(key)}: it cannot be the path of a dataset.",
            hint="Rename the tensor with ckpt rename --map, or write safetensors: -o FILE.safetensors.",
        )


class _Hdf5Layout:
    """The layout of a file; ``_metadata`` are the bytes of all groups and headers, which are before the recipe."""

    def __init__(self, tree: Nested, recipe: Sequence[str]) -> None:
        self._nbytes = sum(len(piece.encode()) for piece in recipe)
        blocks = _Blocks()
        root = blocks.group(tree, self._nbytes)
        self._begin = at = len(blocks.data)
        at += self._nbytes
        self.slots: dict[str, tuple[int, int]] = {}
        for place, tensor in blocks.datasets:
            if tensor is None:
                struct.pack_into("<2Q", blocks.data, place, self._begin, self._nbytes)
                continue
            at += -at % _ALIGN
            self.slots[tensor.key] = (at, tensor.nbytes)
            struct.pack_into("<2Q", blocks.data, place, at if tensor.nbytes else _NONE, tensor.nbytes)
            at += tensor.nbytes
        self.size = at
        self._metadata = blocks.closed(root, at)

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes outside the values, as (offset, bytes) in order."""
        yield 0, self._metadata
        at = self._begin
        for piece in recipe:
            yield at, piece.encode()
            at += len(piece.encode())
        for begin, nbytes in self.slots.values():
            if begin > at:
                yield at, bytes(begin - at)
            at = begin + nbytes


class _Blocks:
    """Builds the metadata of a file in ``data``: a superblock of 96 bytes, then blocks.

    ``datasets`` has a pair for each dataset: the offset in ``data`` at which its address and size are stored, and its
    tensor (None for the recipe).
    """

    def __init__(self) -> None:
        self.data = bytearray(96)
        self.datasets: list[tuple[int, OutTensor | None]] = []

    def _add(self, block: bytes, nbytes: int = 0) -> int:
        """Append a block, padded to ``nbytes`` and to a multiple of 8, and return its address."""
        address = len(self.data)
        self.data += block + bytes(max(nbytes - len(block), -len(block) % 8))
        return address

    def closed(self, root: tuple[int, int, int], end: int) -> bytes:
        """Return all metadata; ``root`` is the result of ``group`` for the root group, ``end`` the size of the file."""
        numbers = struct.pack("<8B2HI", 0, 0, 0, 0, 0, 8, 8, 0, _SYMBOLS // 2, _CHILDREN // 2, 0)
        addresses = struct.pack("<4Q", 0, _NONE, end, _NONE)
        header, tree, heap = root
        self.data[:96] = SIGNATURE + numbers + addresses + struct.pack("<2QI4x2Q", 0, header, 1, tree, heap)
        return bytes(self.data)

    def group(self, tree: Nested, recipe: int = 0) -> tuple[int, int, int]:
        """Append a group with all its content; return the addresses of its header, its B-tree and its heap.

        If ``recipe`` is not 0, the group also has the recipe: ``recipe`` is the size of its text in bytes.
        """
        links = {name: self._object(one) for name, one in tree.items()}
        if recipe:
            links[HDF5_RECIPE] = self._dataset(None, (), TEXT_TYPE + struct.pack("<I", recipe))
        names, places = bytearray(8), []
        ordered = sorted((name.encode(), address) for name, address in links.items())
        for name, _ in ordered:
            places.append(len(names))
            names += name + bytes(8 - len(name) % 8)
        heap = self._add(b"HEAP" + struct.pack("<4x3Q", len(names), _NO_FREE, len(self.data) + 32))
        self._add(bytes(names))
        symbols = [
            struct.pack("<2QI20x", place, address, 0) for place, (_, address) in zip(places, ordered, strict=True)
        ]
        top = self._tree(symbols, places)
        return self._header([(_TABLE, struct.pack("<2Q", top, heap))]), top, heap

    def _object(self, one: Nested | OutTensor) -> int:
        if isinstance(one, dict):
            return self.group(one)[0]
        return self._dataset(one, one.shape, TYPE_MESSAGES[one.dtype])

    def _dataset(self, tensor: OutTensor | None, shape: tuple[int, ...], kind: bytes) -> int:
        space = struct.pack(f"<4B4x{len(shape)}Q", 1, len(shape), 0, 0, *shape)
        address = self._header([(_SPACE, space), (_TYPE, kind), (_FILL, _DEFAULT_FILL), (_LAYOUT, b"\3\1" + bytes(16))])
        self.datasets.append((len(self.data) - 22, tensor))
        return address

    def _header(self, messages: Sequence[tuple[int, bytes]]) -> int:
        """Append an object header (version 1) with these messages, and return its address."""
        padded = [(kind, data + bytes(-len(data) % 8)) for kind, data in messages]
        body = b"".join(struct.pack("<2HB3x", kind, len(data), 0) + data for kind, data in padded)
        return self._add(struct.pack("<BxH2I4x", 1, len(messages), 1, len(body)) + body)

    def _tree(self, symbols: Sequence[bytes], places: Sequence[int]) -> int:
        """Append nodes of symbols and the B-tree above them; return the address of the tree's top.

        ``symbols`` has the symbol of each link, and ``places`` the offset of each link's name in the heap. The keys of
        the B-tree are such offsets: the key before a child is the offset of the last name in the previous child, and
        the key after it is the offset of the last name in the child.
        """
        level, children = 0, []
        for begin in range(0, len(symbols), _SYMBOLS):
            part = symbols[begin : begin + _SYMBOLS]
            node = b"SNOD" + struct.pack("<BxH", 1, len(part)) + b"".join(part)
            children.append((self._add(node, 8 + 40 * _SYMBOLS), places[begin + len(part) - 1]))
        while level == 0 or len(children) > 1:
            children = self._level(level, children)
            level += 1
        return children[0][0]

    def _level(self, level: int, children: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Append the nodes of one level of a B-tree; return (address, last key) of each node.

        ``children`` has (address, last key) of each node one level below.
        """
        size = 24 + 8 * (2 * _CHILDREN + 1)
        parts = [children[begin : begin + _CHILDREN] for begin in range(0, len(children), _CHILDREN)]
        first, made = len(self.data), []
        keys = [0, *(part[-1][1] for part in parts)]
        for number, (part, (before, _)) in enumerate(zip(parts, pairwise(keys), strict=True)):
            left = first + size * (number - 1) if number else _NONE
            right = first + size * (number + 1) if number + 1 < len(parts) else _NONE
            node = b"TREE" + struct.pack("<2BH3Q", 0, level, len(part), left, right, before)
            made.append((self._add(node + b"".join(struct.pack("<2Q", *one) for one in part), size), part[-1][1]))
        return made
