"""Quantises tensors, block by block, and measures the rounding losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

import numpy as np

from ...planning.plan.receipt import RoundedTensor
from ...tensors.encoders._encode import TensorStatistics, encode
from ...tensors.encoders._encoder import packing_of
from ...tensors.encoders._extremes import Read
from ...tensors.encoders._losses import RoundingLoss
from ...tensors.info import Encoded, TensorInfo
from ...tensors.ops.regions import Array, Box, blocks, box_shape
from .column_bands import OpenFiles
from .reading import OutputBlock, read_part

__all__ = ["Roundings", "column_strips", "encoded_block", "encoding_boxes", "measured_block"]

ELEMENTS = 1 << 19
"""The approximate number of elements of a tensor that each thread rounds at once."""
MOST = 1 << 23
"""The most elements of a block that has whole groups of rows.

Larger groups are split: to compute their scales, rows of other blocks are read again.
"""


@dataclass
class Roundings:
    """The rounding losses of quantised tensors (``losses``), by key and by index of the block.

    If ``is_measured`` is false, losses are not measured. ``kept`` caches numbers that are computed from all values of a
    tensor, such as its global scale.
    """

    is_measured: bool = False
    losses: dict[str, dict[int, RoundingLoss]] = field(default_factory=dict)
    kept: TensorStatistics = field(default_factory=TensorStatistics)
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, made: Encoded, index: int, losses: Sequence[RoundingLoss]) -> None:
        """Add the rounding losses of one block of a tensor; ``index`` is the block's index. Threads may call this."""
        self._shapes[made.name] = made.of[0].shape
        self.losses.setdefault(made.name, {})[index] = sum(losses, RoundingLoss())

    def rounded(self) -> tuple[RoundedTensor, ...]:
        """Return the rounding errors of all tensors, in the order in which the tensors were rounded."""
        found = []
        for name, by_block in self.losses.items():
            loss = sum((by_block[index] for index in sorted(by_block)), RoundingLoss())
            found.append(RoundedTensor(name, self._shapes[name], loss.relative, loss.largest))
        return tuple(found)


def encoding_boxes(info: TensorInfo) -> Iterator[Box]:
    """Yield the blocks in which a part of a quantised tensor (its codes, its scales) is computed.

    A block of codes has whole groups of rows, so that its scales do not depend on rows of other blocks. Groups with
    more than ``MOST`` elements are split.
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


def column_strips(info: TensorInfo, box: Box) -> tuple[Box, ...]:
    """Return strips of a block of codes that have whole groups of columns and about ``ELEMENTS`` elements each.

    Returns () if the block is not divided: it is small, a group has only one row or all columns, or the
    codes are packed or in another order.
    """
    made = info.made
    assert isinstance(made, Encoded)
    packing, step = packing_of(made), made.steps[-1]
    is_arranged = not {"turned", "ordered", "nested", "flat", "across"}.isdisjoint(name for name, _ in made.facts)
    if made.role != "codes" or is_arranged or packing.codes != packing.items or made.steps[-2] == 1:
        return ()
    rows, columns = box_shape(box)[-2:]
    width = max(1, ELEMENTS // max(1, rows * step)) * step
    spans = ((begin, min(begin + width, columns)) for begin in range(0, columns, width))
    return tuple((*box[:-1], span) for span in spans) if width < columns else ()


def encoded_block(info: TensorInfo, source: OpenFiles, place: OutputBlock, roundings: Roundings) -> Array:
    """Return a block of a part (codes, scales) of a quantised tensor; record its rounding losses in ``roundings``.

    The tensor that is quantised is read from ``source``.
    """
    return measured_block(info, partial(read_part, source), place, roundings)


def measured_block(
    info: TensorInfo, read: Read, place: OutputBlock, roundings: Roundings, *, strips: Sequence[Box] = ()
) -> Array:
    """Return a block of a part (codes, scales) of a quantised tensor; record its rounding losses in ``roundings``.

    The function ``read`` returns a region of the tensor that is quantised. The block is computed in the boxes
    ``strips``, which are ranges of its columns; if there are none, it is computed at once.
    """
    made, losses = info.made, list[RoundingLoss]()
    assert isinstance(made, Encoded)
    measured = losses.append if roundings.is_measured and made.role == "codes" else None
    found = [encode(read, info, box, kept=roundings.kept, measured=measured) for box in strips or (place.box,)]
    values = found[0] if len(found) == 1 else np.concatenate(found, axis=-1)
    if measured is not None:
        roundings.add(made, place.index, losses)
    return values
