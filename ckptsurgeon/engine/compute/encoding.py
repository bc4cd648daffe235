"""Rounds tensors to the codes of quantised ones, block by block, and measures what the codes lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

from ...planning.plan.receipt import RoundedTensor
from ...tensors.encoders._encode import WholeNumbers, encode
from ...tensors.encoders._encoder import packing_of
from ...tensors.encoders._extremes import Read
from ...tensors.encoders._losses import RoundingLoss
from ...tensors.info import Encoded, TensorInfo
from ...tensors.ops.regions import Array, Box, blocks
from .bands import OpenFiles
from .reading import OutputBlock, read_part

__all__ = ["Roundings", "encoded_block", "encoding_boxes", "measured_block"]

ELEMENTS = 1 << 20
"""About the elements of a tensor that are rounded at once, by each thread."""
MOST = 1 << 23
"""The most, if blocks of more rows spare that a tensor is read several times for its scales."""


@dataclass
class Roundings:
    """What the codes of each tensor lose, by the key of the tensor and the number of the block; and its global scale.

    ``is_measured`` is false if nobody asks for losses.
    """

    is_measured: bool = False
    kept: WholeNumbers = field(default_factory=WholeNumbers)
    _losses: dict[str, dict[int, RoundingLoss]] = field(default_factory=dict)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, made: Encoded, index: int, losses: Sequence[RoundingLoss]) -> None:
        """Add the losses in the block number ``index`` of a tensor; several threads may call this."""
        self._shapes[made.name] = made.of[0].shape
        self._losses.setdefault(made.name, {})[index] = sum(losses, RoundingLoss())

    def rounded(self) -> tuple[RoundedTensor, ...]:
        """Return the errors of all tensors, in the order in which they were rounded."""
        found = []
        for name, by_block in self._losses.items():
            loss = sum((by_block[index] for index in sorted(by_block)), RoundingLoss())
            found.append(RoundedTensor(name, self._shapes[name], loss.relative, loss.largest))
        return tuple(found)


def encoding_boxes(info: TensorInfo) -> Iterator[Box]:
    """Yield the blocks in which a part of a quantised tensor is computed.

    A block of codes has whole groups of rows, if they are not very long, so that its scales need no other rows.
    """
    made = info.made
    assert isinstance(made, Encoded)
    if made.role != "codes":
        is_of_groups = made.role not in ("whole", "shape")
        yield from blocks(info.shape, max(1, ELEMENTS // prod(made.steps)) if is_of_groups else ELEMENTS)
        return
    packing, (*lead, rows, items) = packing_of(made), info.shape
    columns = max(1, items * packing.codes // packing.items)
    high = made.steps[-2] if made.steps[-2] < rows else 1
    if 0 in info.shape or high * columns > MOST:
        whole = max(packing.items, ELEMENTS // packing.codes * packing.items)
        yield from blocks(info.shape, whole)
        return
    size = high * max(1, ELEMENTS // (high * columns))
    for head in blocks(lead, 1) if lead else ((),):
        for begin in range(0, rows, size):
            yield (*head, (begin, min(begin + size, rows)), (0, items))


def encoded_block(info: TensorInfo, source: OpenFiles, place: OutputBlock, roundings: Roundings) -> Array:
    """Return a block of a part of a quantised tensor of stored numbers, and note what its codes lose."""
    return measured_block(info, partial(read_part, source), place, roundings)


def measured_block(info: TensorInfo, read: Read, place: OutputBlock, roundings: Roundings) -> Array:
    """Return a block of a part of a quantised tensor, and note what its codes lose.

    ``read`` returns a part of the numbers that are rounded.
    """
    made, losses = info.made, list[RoundingLoss]()
    assert isinstance(made, Encoded)
    measured = losses.append if roundings.is_measured and made.role == "codes" else None
    values = encode(read, info, place.box, kept=roundings.kept, measured=measured)
    if measured is not None:
        roundings.add(made, place.index, losses)
    return values
