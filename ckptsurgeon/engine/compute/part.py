"""What computed tensors are made of: inputs, and the blocks that an output is computed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from ...checkpoint.checkpoint import Checkpoint
from ...tensors.info import TensorInfo
from ...tensors.ops.boxes import Array, Box, box_shape
from ...tensors.ops.casts import Lost

__all__ = ["Blockwise", "Part", "Place", "Seen", "placed"]

Part: TypeAlias = tuple[TensorInfo, Checkpoint]
"""An input of a step: its header and the checkpoint it is of."""


@dataclass(frozen=True, slots=True)
class Place:
    """A block of an output tensor: its number, its offset in bytes, and which part of the tensor it is."""

    index: int
    offset: int
    box: Box


Seen: TypeAlias = Callable[[int, Array], None]
"""Called with the number of an input and what was read of it."""

Blockwise: TypeAlias = Callable[[Place, Seen | None], tuple[Array, Lost]]
"""Returns one block of an output tensor, and how many of its values lost their size."""


def placed(boxes: Iterable[Box], itemsize: int) -> Iterator[Place]:
    """Yield the place of each of several boxes that follow each other; ``itemsize`` is bytes of the output."""
    offset = 0
    for index, box in enumerate(boxes):
        yield Place(index, offset, box)
        offset += prod(box_shape(box)) * itemsize
