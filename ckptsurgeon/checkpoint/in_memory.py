"""Tensors in memory as a checkpoint: dicts of them, nested as in a file, and live modules. Nothing is copied."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ..formats.base.header import FileHeader, Header
from ..formats.pickle.values import Group, Name, Opaque, key_text
from ..storage.read._memory import MemoryFile, Piece
from ..tensors.info import Storage, TensorInfo
from ..util.collection import no_collection
from .arrays import Place, array_info, is_array
from .given import is_module
from .torch_tensors import is_tensor, tensor_info

__all__ = ["FORMAT", "header_in_memory", "tensor_in"]

FORMAT = "memory"
"""What such a checkpoint says of its format."""
_SCALARS = (bool, int, float, complex, str, bytes)


def tensor_in(value: object) -> bool:
    """Whether there is a tensor in a nest of dicts and lists."""
    waiting, seen = deque([value]), set[int]()
    while waiting:
        one = waiting.popleft()
        if is_tensor(one) or is_array(one) or is_module(one):
            return True
        if isinstance(one, (Mapping, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.values() if isinstance(one, Mapping) else one)
    return False


def header_in_memory(given: object, name: str) -> Header:
    """Return what a dict of tensors or a module holds, as the header of a file would."""
    walk = _Walk()
    with no_collection():
        tree = walk.tree(given)
    file = MemoryFile(name, walk.pieces)
    digest = hashlib.sha256("\n".join(walk.said).encode("utf-8", "surrogatepass")).hexdigest()
    return Header(FORMAT, tree, (FileHeader("", file.size, digest),), {"": file})


class _Walk:
    """Turns what hangs together in memory into the tree of a header, each container and each run of bytes once."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.said: list[str] = []
        self._size = 0
        self._storages: dict[Place, Storage] = {}
        self._made: dict[int, tuple[object, Any]] = {}
        self._waiting: deque[tuple[Any, Any, Any]] = deque()

    def tree(self, given: object) -> Any:
        """Return the tree of what is given."""
        top: dict[str, Any] = {}
        self._waiting.append((top, "", given))
        while self._waiting:
            container, key, value = self._waiting.popleft()
            container[key] = self._entry(value, key)
        return top[""]

    def _entry(self, value: Any, key: object) -> Any:
        if is_tensor(value) or is_array(value):
            info = (tensor_info if is_tensor(value) else array_info)(value, self._storage)
            if isinstance(info, TensorInfo):
                self.said.append(repr((key_text(key), info.dtype, info.shape)))
            return info
        if value is None or isinstance(value, _SCALARS):
            return _plain(value)
        return self._container(value)

    def _container(self, value: Any) -> Any:
        known = self._made.get(id(value))  # with the value itself, so that no other gets its place in memory
        if known is not None:
            return known[1]
        made, entries = _emptied(value)
        self._made[id(value)] = value, made
        self._waiting.extend((made, key, one) for key, one in entries)
        return made

    def _storage(self, place: Place, piece: Piece | None, *, big_endian: bool) -> Storage:
        """Return the run of bytes at a place in memory: of what lies at the same place, the same."""
        if piece is None:
            return Storage("", self._size, 0)
        known = self._storages.get(place)
        if known is None:
            known = self._storages[place] = Storage("", self._size, piece.nbytes, big_endian=big_endian)
            self._size += piece.nbytes
            self.pieces.append(piece)
        return known


def _emptied(value: Any) -> tuple[Any, Iterable[tuple[Any, Any]]]:
    """Return the container that a value becomes, with nothing in it yet, and what goes into it by which keys."""
    if is_module(value):
        value = value.state_dict(keep_vars=True)
    if isinstance(value, Mapping):
        keys = [_plain(key) for key in value]
        return dict.fromkeys(keys), zip(keys, value.values(), strict=True)
    if isinstance(value, (list, tuple)):
        if type(value) is not list and all(one is None or isinstance(one, _SCALARS) for one in value):
            return tuple(map(_plain, value)), ()
        return [None] * len(value), enumerate(value)
    if isinstance(value, (set, frozenset)):
        return Group([None] * len(value)), enumerate(value)
    return Opaque(Name(type(value).__module__, type(value).__qualname__)), ()


def _plain(value: Any) -> Any:
    """Return a number or text without the class that it may be of; anything else as it is."""
    kind = next((kind for kind in _SCALARS if isinstance(value, kind)), None)
    return value if kind is None or type(value) is kind else kind(value)
