"""Reads all groups of an HDF5 file: the datasets by their paths, and the attributes of the root group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, listing
from ..base import limits
from .attributes import Unread, has_attribute_heap, texts_of
from .blocks import BlockReader
from .datasets import DatasetReader
from .groups import is_group, links_of
from .heaps import GlobalHeap
from .objects import HeaderMessage, messages_at
from .superblock import read_superblock, superblock_at
from .writer import HDF5_RECIPE

__all__ = ["HdfContent", "read_content"]

_OF_KERAS = frozenset({"layer_names", "weight_names", "name", "dtype", "backend", "keras_version"})
"""Attributes of Keras that repeat the names and the types of weights, or those of the root group."""


def read_content(file: File, within: str) -> HdfContent:
    """Return the content of an HDF5 file; ``within`` is the path of the file within the checkpoint.

    Raises FormatError or UnsafeError if the file is not valid, or has no tensors.
    """
    content = HdfContent(BlockReader(file, superblock_at(file, file.read(0, min(512, file.size)))), within)
    content.read()
    _check_apart([*content.payload, *filter(None, [content.recipe])], content.blocks.blocks)
    return content


class HdfContent:
    """Reads the content of an HDF5 file: walks through its groups.

    ``tree`` is {path: dataset}; an object with several hard links has several paths. ``metadata`` has the texts in the
    attributes of the root group. ``recipe`` is the range (begin, end) of the recipe in the file, or None.
    """

    def __init__(self, blocks: BlockReader, within: str) -> None:
        self.blocks, self._heap = blocks, GlobalHeap(blocks)
        self.datasets = DatasetReader(blocks, self._heap, within)
        self.tree: dict[str, Any] = {}
        self.metadata: dict[str, str] = {}
        self.recipe: tuple[int, int] | None = None
        self._known: dict[int, Any] = {}
        self._soft: list[str] = []
        self._unread, self._inner = Unread(), dict[str, None]()
        self._has_heap = self._has_inner_heap = self._is_open = False
        self._characters = 0

    def read(self) -> None:
        """Fill ``tree`` and ``metadata``; raises FormatError if the file has no arrays of numbers."""
        root, self._is_open = read_superblock(self.blocks)
        messages = self._object(root)
        self._has_heap = has_attribute_heap(self.blocks, messages)
        self.metadata = texts_of(self.blocks, self._heap, messages, self._unread)
        if not is_group(messages):
            raise FormatError("the HDF5 file is damaged: its root is not a group.", rule="hdf5")
        self.tree = dict(self._walk(root))
        if not any(isinstance(one, TensorInfo) for one in self.tree.values()):
            raise FormatError("this is an HDF5 file without arrays of numbers.", rule="no state dict")

    @property
    def payload(self) -> list[tuple[int, int]]:
        """The ranges of bytes (begin, end) of the file that contain values of tensors, sorted."""
        return sorted(self.datasets.values)

    def _object(self, address: int) -> list[HeaderMessage]:
        """Return the messages of the object at an address; they are read from the file only once, then cached."""
        if address not in self._known:
            self._known[address] = messages_at(self.blocks, address)
        found: list[HeaderMessage] = self._known[address]
        return found

    def _walk(self, root: int) -> Iterator[tuple[str, Any]]:
        """Yield the paths and headers of all datasets; raises FormatError for a group that contains itself."""
        links: dict[int, Any] = {}
        made: dict[int, Any] = {}
        visited, waiting = 0, [("", root, frozenset((root,)))]
        while waiting:
            prefix, address, above = waiting.pop()
            if address not in links:
                links[address] = links_of(self.blocks, self._object(address))
                if address != root:
                    self._texts(self._object(address))
            inner = []
            for link in links[address]:
                path = prefix + link.name
                visited += 1
                self._check_path(path, len(above), visited)
                if link.target:
                    self._soft.append(path)
                elif link.address in made:
                    yield path, made[link.address]
                elif is_group(messages := self._object(link.address)):
                    if link.address in above:
                        raise FormatError(f"the group {escape(path)} contains itself.", rule="hdf5 cycle")
                    inner.append((f"{path}/", link.address, above | {link.address}))
                elif path == HDF5_RECIPE:
                    self.recipe = self.datasets.text_range(path, messages)
                else:
                    made[link.address] = self.datasets.read(path, messages, self._texts(messages))
                    yield path, made[link.address]
            waiting.extend(reversed(inner))

    def _texts(self, messages: Sequence[HeaderMessage]) -> dict[str, str]:
        """Return the texts in the attributes of a dataset or group, and remember which attributes are not used."""
        unread = Unread()
        found = texts_of(self.blocks, self._heap, messages, unread)
        names = [*found, *unread.long, *unread.others]
        self._inner |= dict.fromkeys(name for name in names if name not in _OF_KERAS)
        self._has_inner_heap |= has_attribute_heap(self.blocks, messages)
        return found

    def _check_path(self, path: str, depth: int, visited: int) -> None:
        self._characters += len(path)
        if len(path) > limits.KEY_CHARACTERS or self._characters > limits.PATH_CHARACTERS:
            raise UnsafeError(
                f"a path has over {limits.KEY_CHARACTERS:,} characters, or all paths together have over "
                f"{limits.PATH_CHARACTERS:,}.",
                rule="key length",
            )
        if visited > limits.TENSORS or depth > limits.TREE_DEPTH:
            raise UnsafeError(
                f"the groups have over {limits.TENSORS:,} links, or over {limits.TREE_DEPTH} levels.", rule="tree size"
            )

    def notes(self) -> Iterator[str]:
        """Yield notes on parts of the file that were not read."""
        if self._is_open:
            said = "the file was not closed by the program that wrote it, so it may be incomplete"
            yield Note(NoteKind.INCOMPLETE_FILE, said)
        if self._soft:
            yield f"not followed, because they are only paths: the soft links {listing(self._soft, 2, where='')}"
        if self._unread.long:
            yield f"left out, because they are too long: the attributes {listing(self._unread.long, 2, where='')}"
        if others := [name for name in self._unread.others if name not in _OF_KERAS]:
            yield f"left out, because they are not single texts: the attributes {listing(others, 4, where='')}"
        if self._inner:
            named = listing([*self._inner], 4, where="")
            yield f"left out of the metadata: these attributes of groups and datasets: {named}"
        if self._has_inner_heap:
            yield "some attributes of groups and datasets were not read: they are too many, or too long"
        if self._has_heap:
            yield "the attributes of the file were not read: they are too many, or too long"


def _check_apart(values: Iterable[tuple[int, int]], blocks: Iterable[tuple[int, int]]) -> None:
    """Raise FormatError if the values of a tensor overlap with the values of another tensor, or with metadata."""
    last = 0
    for begin, end in sorted([*values, *blocks]):
        if begin < last and begin < end:
            raise FormatError(
                f"the HDF5 file is damaged: the bytes from {begin:,} on belong to two objects (tensors or metadata).",
                rule="hdf5 overlap",
            )
        last = max(last, end)
