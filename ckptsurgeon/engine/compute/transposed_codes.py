"""Computes parts of quantised tensors that are stored transposed, such as the codes of GPTQ.

Each row of such a part needs all rows of the weight, but only a few rows of the weight are computed at a time. So the
part is computed in strips of a few columns, and stays in memory until it is written. This is little: codes of 4 bits
have an eighth of the bytes of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...tensors.encoders._arranged import is_transposed
from ...tensors.encoders._extremes import Read
from ...tensors.info import Encoded, TensorInfo
from ...tensors.ops.casts import CastLosses, raw_dtype
from ...tensors.ops.regions import Array, Box, blocks, box_shape
from .encoding import ELEMENTS, Roundings, encoding_boxes, measured_block
from .reading import Blockwise, OutputBlock, Seen

if TYPE_CHECKING:
    from ..apply_settings import ParallelMap

__all__ = ["STRIP_BYTES", "coding_boxes", "held_bytes", "in_strips"]

ALIGNED = 16
"""Strips begin at a multiple of this many columns, so that codes that share a scale are in the same strip."""
STRIP_BYTES = 8 * 4 * ELEMENTS
"""The bytes of memory for computing a strip of columns: for values, codes and intermediate arrays."""


def coding_boxes(info: TensorInfo) -> Iterator[Box]:
    """Yield the blocks in which a part of a quantised tensor is computed.

    If the part has several matrices that are stored transposed, each matrix is a block.
    """
    if not _is_transposed(info):
        yield from encoding_boxes(info)
    elif _is_several(info):
        for head in blocks(info.shape[:-2], 1):
            yield (*head, *((0, size) for size in info.shape[-2:]))
    else:
        yield from blocks(info.shape, ELEMENTS)


def held_bytes(info: TensorInfo) -> int:
    """Return the bytes of one matrix of ``info``, which stays in memory until all its strips are computed.

    ``info`` is a part of a quantised tensor. Returns 0 if it is not stored transposed, and so not computed in strips.
    """
    return prod(info.shape[-2:]) * raw_dtype(info.dtype).itemsize if _is_transposed(info) else 0


def in_strips(info: TensorInfo, read: Read, roundings: Roundings, spread: ParallelMap) -> Blockwise | None:
    """Return a function that returns a block of ``info``, a part of a quantised tensor such as its codes.

    Returns None if ``info`` is not computed in strips. ``read`` returns a region of the weight. If ``info`` is a single
    matrix, all of it is computed before this function returns; ``spread`` is a function like ``map`` that may use
    threads.
    """
    if not _is_transposed(info):
        return None

    def matrix(place: OutputBlock, spread: ParallelMap = map) -> Array:
        out = np.empty(box_shape(place.box), raw_dtype(info.dtype))

        def strip(one: OutputBlock) -> None:
            begin, end = one.box[-1]
            out[..., begin:end] = measured_block(info, read, one, roundings)

        list(spread(strip, _strips(info, place)))
        return out

    whole = None
    if not _is_several(info):
        whole = matrix(OutputBlock(0, 0, tuple((0, size) for size in info.shape)), spread)

    def block(place: OutputBlock, seen: Seen | None = None) -> tuple[Array, CastLosses]:
        values = matrix(place) if whole is None else whole[tuple(slice(*span) for span in place.box)]
        return np.ascontiguousarray(values), CastLosses()

    return block


def _made(info: TensorInfo) -> Encoded:
    assert isinstance(info.made, Encoded)
    return info.made


def _is_transposed(info: TensorInfo) -> bool:
    return is_transposed(_made(info))


def _is_several(info: TensorInfo) -> bool:
    """Return whether a tensor contains several matrices: it has more than two dimensions that are larger than 1."""
    return prod(info.shape[:-2]) > 1


def _strips(info: TensorInfo, place: OutputBlock) -> list[OutputBlock]:
    """Return the strips of columns of the matrix at ``place``; no two strips of the tensor have the same index."""
    columns = info.shape[-1]
    count = -(-prod(_made(info).of[0].shape[-2:]) // ELEMENTS)
    width = columns if count == 1 else -(-columns // (count * ALIGNED)) * ALIGNED
    spans = [(begin, min(begin + width, columns)) for begin in range(0, columns, width)]
    return [OutputBlock(place.index * columns + at, 0, (*place.box[:-1], span)) for at, span in enumerate(spans)]
