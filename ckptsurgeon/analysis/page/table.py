"""The tensors of a page as columns: a hundred thousand of them are a few megabytes, and read in a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...tensors.composition import leaves
from ...tensors.info import TensorInfo

__all__ = ["Places", "Table", "file_of", "kind_of"]

Places = Mapping[str, int]
"""The row of each key."""


class Table:
    """Rows in the order of ``tensors``, which is natural; what many have in common is said once.

    A key is how many characters it shares with the key before, and the rest of it. ``parameters`` says what a tensor
    counts.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        parameters: Callable[[str, TensorInfo], int] = lambda key, info: info.parameters,
    ) -> None:
        self.places: Places = {key: row for row, key in enumerate(tensors)}
        self._kinds: dict[tuple[object, ...], int] = {}
        self._files: dict[str, int] = {}
        self._shared, self._rest = front_coded(list(tensors))
        self._kind = [self.kind(info, parameters(key, info)) for key, info in tensors.items()]
        self._file = [self._files.setdefault(file_of(info), len(self._files)) for info in tensors.values()]

    def kind(self, info: TensorInfo, parameters: int | None = None) -> int:
        """Return the number of a tensor's dtype, shape and size; ``parameters`` are its own if not given."""
        kind = kind_of(info, info.parameters if parameters is None else parameters)
        return self._kinds.setdefault(kind, len(self._kinds))

    def to_json(self, ties: Mapping[str, str]) -> dict[str, Any]:
        """Return the columns; ``ties`` maps keys to the first key of the same tensor."""
        places = self.places
        return {
            "kinds": list(self._kinds),
            "files": list(self._files),
            "shared": self._shared,
            "rest": self._rest,
            "kind": self._kind,
            "file": self._file if len(self._files) > 1 else [],
            "ties": [[places[key], places[owner]] for key, owner in ties.items() if {key, owner} <= places.keys()],
        }


def kind_of(info: TensorInfo, parameters: int) -> tuple[object, ...]:
    """Return dtype, shape, bytes, parameters, and why a tensor is opaque, if it is."""
    return info.dtype, info.shape, info.nbytes, parameters, info.opaque


def file_of(info: TensorInfo) -> str:
    """Return the names of the files in which a tensor lies."""
    return ", ".join(dict.fromkeys(one.storage.file for one in leaves(info) if one.storage))


def front_coded(keys: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return how much of each key is that of the one before, in UTF-16 units as JavaScript counts, and the rest."""
    shared, rest, before = list[int](), list[str](), ""
    for key in keys:
        common = _common(before, key)
        shared.append(_units(key[:common]))
        rest.append(key[common:])
        before = key
    return shared, rest


def _common(first: str, second: str) -> int:
    """Return how many characters two texts begin with alike; found by halves, since keys can be long."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
