"""Which axes of a model are as long as its vocabulary: those that grow when it does. Found by building it twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from ...tensors.info import TensorInfo

__all__ = ["Grown", "grown_axes"]

Tensors = Mapping[str, TensorInfo]


class Grown(Mapping[str, int]):
    """The axis of each tensor that grows, worked out when somebody asks: it takes as long as building the model."""

    def __init__(self, find: Callable[[], Mapping[str, int]]) -> None:
        self._find = find

    @cached_property
    def _axes(self) -> Mapping[str, int]:
        return self._find()

    def __getitem__(self, key: str) -> int:
        return self._axes[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)


def grown_axes(tensors: Tensors, grown: Tensors) -> dict[str, int]:
    """Return the axis of each tensor along which ``grown``, of a model with more tokens, is longer.

    A table of tokens by tokens grows along two; it is left to whoever names one.
    """
    found: dict[str, int] = {}
    for key, info in tensors.items():
        other = grown[key].shape if key in grown else info.shape
        if len(other) == len(info.shape):
            axes = [axis for axis, size in enumerate(info.shape) if other[axis] > size]
            found.update({key: axes[0]} if len(axes) == 1 else {})
    return found
