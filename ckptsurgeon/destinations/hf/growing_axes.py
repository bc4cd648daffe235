"""Finds the axes that grow with the vocabulary, by comparing a model with the same model with more tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from ...tensors.info import TensorInfo

__all__ = ["GrowingAxes", "grown_axes"]

Tensors = Mapping[str, TensorInfo]


class GrowingAxes(Mapping[str, int]):
    """{key: axis that grows with the vocabulary}; it is computed on first use, by building a larger model."""

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
    """Return {key: axis along which the tensor is longer in ``grown``}; ``grown`` is the same model with more tokens.

    A tensor that grows along two axes, such as a table (tokens, tokens), is left out: the user has to choose an axis.
    """
    found: dict[str, int] = {}
    for key, info in tensors.items():
        other = grown[key].shape if key in grown else info.shape
        if len(other) == len(info.shape):
            axes = [axis for axis, size in enumerate(info.shape) if other[axis] > size]
            found.update({key: axes[0]} if len(axes) == 1 else {})
    return found
