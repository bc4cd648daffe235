"""Reads databases in the format OCDBT: a B-tree of keys. Values are in the nodes, or are ranges of other files.

https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format describes the format. The manifest refers
directly to the newest version. So the nodes of the version tree, which lists older versions, are not read.

All keys are listed once, when a database is opened. If each key was looked up on its own, a checkpoint could make ckpt
read and unpack the same nodes again and again. The list needs some 300 bytes for each key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from ...errors import FormatError
from ...storage.read.local import LocalFolder
from ...util.text import escape
from ..base import limits
from .files import MANIFEST, NUMBERED, StoredFile
from .ocdbt_fields import Budget, DataFile, Fields, UnsupportedError, unframed

__all__ = ["Database"]

_MANIFEST, _NODE = 0x0CDB3A2A, 0x0CDB20DE
_EMPTY = (1 << 64) - 1
"""The offset and the length of the root of a database without keys."""


class _Range(NamedTuple):
    """A range of bytes of a file; if a node is stored there, ``base`` is the beginning of all paths in the node."""

    file: str
    offset: int
    length: int
    base: bytes = b""


class Database:
    """The values of a database by key. ``files`` has the files of its folder: references to other files are errors."""

    def __init__(self, folder: LocalFolder, files: Mapping[str, StoredFile]) -> None:
        self._folder, self._files, self._budget = folder, files, Budget(folder.uri)
        self._values: dict[bytes, bytes | _Range] = {}
        self._last: bytes | None = None
        try:
            root, height = self._root()
            if (root.offset, root.length) != (_EMPTY, _EMPTY):
                self._list(root, height, b"")
        except ValueError as error:
            what, hint = "is damaged", "Copy the whole folder again."
            if isinstance(error, UnsupportedError):
                what, hint = "cannot be read", ""
            raise FormatError(
                f"the OCDBT database in {escape(folder.uri)} {what}: {error}.", hint=hint, rule="ocdbt"
            ) from None

    def read(self, key: str) -> bytes | None:
        """Return the value that is stored for ``key``; None if there is none."""
        found = self._values.get(key.encode(errors="surrogatepass"))
        return self._bytes(found) if isinstance(found, _Range) else found

    def has(self, key: str) -> bool:
        """Return whether a value is stored for ``key``."""
        return key.encode(errors="surrogatepass") in self._values

    def _bytes(self, place: _Range) -> bytes:
        with closing(self._folder.file(place.file)) as file:
            return file.read(place.offset, place.length)

    def _root(self) -> tuple[_Range, int]:
        """Return the position of the root node of the newest version's B+tree, and the height of the tree.

        Raises ValueError if there is no version.
        """
        fields, is_numbered = self._manifest(MANIFEST)
        if is_numbered:
            found = max(filter(NUMBERED.fullmatch, self._files), default="")
            fields, is_numbered = self._manifest(found)
            if is_numbered:
                raise ValueError(f"{found} lists no versions")
        files, count = fields.files(b""), fields.number()
        if not count:
            raise ValueError("the manifest lists no versions")
        fields.numbers(count)
        heights = fields.take(count)
        places = _ranges(files, fields.numbers(count), fields.numbers(count), fields.numbers(count))
        return places[-1], heights[-1]

    def _manifest(self, name: str) -> tuple[Fields, bool]:
        """Return the fields after the configuration in the manifest ``name``, and whether it lists no versions.

        If it lists none, other manifests list them, whose names contain a number. Raises ValueError if the manifest
        cannot be read.
        """
        if name not in self._files:
            raise ValueError("the database has no manifest that lists versions")
        if (size := self._files[name].size) > limits.OCDBT_NODE:
            raise UnsupportedError(f"{name} has over {limits.OCDBT_NODE:,} bytes")
        fields = unframed(self._bytes(_Range(name, 0, size)), _MANIFEST, self._budget)
        kind = fields.take(17)[16]  # after the UUID
        fields.numbers(2)
        fields.take(1)
        if (compression := fields.number()) == 1:
            fields.take(4)  # its level
        if kind > 1 or compression > 1:
            raise UnsupportedError(f"{name} has a kind or a compression that is not supported")
        return fields, kind == 1

    def _list(self, place: _Range, height: int, prefix: bytes) -> None:
        """Add the keys of a node and of all nodes below it; all these keys begin with ``prefix``.

        Raises ValueError if a node is not valid.
        """
        if height > limits.OCDBT_HEIGHT:
            raise UnsupportedError(f"the B-tree is over {limits.OCDBT_HEIGHT} nodes high")
        self._check(place)
        if place.length > limits.OCDBT_NODE:
            raise UnsupportedError(f"a node has over {limits.OCDBT_NODE:,} bytes")
        fields = unframed(self._bytes(place), _NODE, self._budget)
        if fields.take(1)[0] != height:  # heights fall on the way down, so that no node is below itself
            raise ValueError(f"a node has another height than {height}")
        files, count = fields.files(place.base), fields.number()
        if not count:
            raise ValueError("a node is empty")
        if height == 0:
            self._list_leaf(fields, files, count, prefix)
        else:
            for child, beginning in _children(fields, files, count, prefix):
                self._list(child, height - 1, beginning)

    def _list_leaf(self, fields: Fields, files: Sequence[DataFile], count: int, prefix: bytes) -> None:
        keys = fields.texts(fields.numbers(count - 1), fields.numbers(count), prefix)
        lengths, kinds = fields.numbers(count), fields.take(count)
        apart = kinds.count(1)
        if apart + kinds.count(0) != count:
            raise ValueError("a node has a value of an unknown kind")
        sizes = [length for length, kind in zip(lengths, kinds, strict=True) if kind]
        ranges = iter(_ranges(files, fields.numbers(apart), fields.numbers(apart), sizes))
        for key, length, kind in zip(keys, lengths, kinds, strict=True):
            self._add(key, next(ranges) if kind else fields.take(length))
        fields.end()

    def _add(self, key: bytes, value: bytes | _Range) -> None:
        if self._last is not None and key <= self._last:
            raise ValueError("the keys are not in order, or a node occurs twice")
        self._last = key
        if isinstance(value, _Range):
            self._check(value)
        else:
            self._budget.keep(len(value))
        self._values[key] = value

    def _check(self, place: _Range) -> None:
        """Raise ValueError if a range is not inside a file of the database's folder."""
        stored = self._files.get(place.file)
        if stored is None:
            raise ValueError(f"the database refers to {escape(place.file, 200)}, which is not a file in its folder")
        if place.offset + place.length > stored.size:
            raise ValueError(f"the database refers to bytes beyond the end of {escape(place.file, 200)}")


def _children(fields: Fields, files: Sequence[DataFile], count: int, prefix: bytes) -> Iterator[tuple[_Range, bytes]]:
    """Yield (range, prefix) of each of the ``count`` children of a node; all keys below a child begin with its prefix.

    ``files`` are the files that the node lists; ``prefix`` is the prefix of the node itself. Raises ValueError if the
    node is not valid.
    """
    shared, lengths, common = fields.numbers(count - 1), fields.numbers(count), fields.numbers(count)
    keys = fields.texts(shared, lengths, prefix)
    places = _ranges(files, fields.numbers(count), fields.numbers(count), fields.numbers(count))
    fields.numbers(3 * count)  # statistics
    fields.end()
    for place, key, length in zip(places, keys, common, strict=True):
        if len(prefix) + length > len(key):
            raise ValueError("two keys of a node share more bytes than one of them has")
        yield place, key[: len(prefix) + length]


def _ranges(
    files: Sequence[DataFile], ids: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
) -> list[_Range]:
    if any(number >= len(files) for number in ids):
        raise ValueError("a node refers to a file that is not in its table")
    of = [files[number] for number in ids]
    return [
        _Range(file.path, offset, length, file.base) for file, offset, length in zip(of, offsets, lengths, strict=True)
    ]
