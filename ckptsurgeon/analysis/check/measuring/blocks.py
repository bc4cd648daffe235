"""Divides tensors into blocks, each read in one piece, and computes the statistics of each block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import numpy as np

from ....checkpoint.checkpoint import Checkpoint
from ....engine.checksums import crc32
from ....engine.compute.column_bands import banded
from ....engine.compute.reading import read_part
from ....tensors.dtypes import BLOCK_EXPONENTS, BLOCK_SCALES, DTYPES
from ....tensors.info import TensorInfo
from ....tensors.ops.regions import Array, Box, blocks
from .figures import BLOCK, Figures, Workspace, figures_of
from .repeats import Words, words_of

__all__ = ["Block", "BlockFigures", "blocks_of", "is_measured", "measured_block"]

PARTS = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
"""The dtypes of the real and imaginary parts of complex numbers, which are measured as separate values."""
LARGE = 8 * BLOCK
"""The sums of a tensor of at least this many bytes (4 MiB) are estimated from one of 64 values."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a tensor: ``nbytes`` bytes from ``offset`` in its file, or the ranges ``box`` of its dimensions.

    ``box`` is set for tensors that are not stored as contiguous plain bytes.

    ``columns`` is the number of columns if the rows of a matrix are measured, else 0. ``step`` is the distance in bytes
    between the 8-byte samples that are kept to find repeated bytes (see ``repeats``); 0 if none are kept.
    ``is_sampled`` is true if the sums of the values may be estimated from a part of the block.
    """

    key: str
    info: TensorInfo
    offset: int = 0
    nbytes: int = 0
    box: Box | None = None
    _: KW_ONLY
    columns: int = 0
    step: int = 0
    is_sampled: bool = False


@dataclass(slots=True)
class BlockFigures:
    """The figures of a block; ``totals`` and ``squares`` have the sum of values and the sum of squares of each row."""

    figures: Figures | None
    crc32: int
    nbytes: int
    totals: Array | None = None
    squares: Array | None = None
    words: Words | None = None


def is_measured(info: TensorInfo) -> bool:
    """Return whether a tensor can be measured: it is not empty, and its bytes can be read."""
    if info.opaque or info.numel == 0:
        return False
    dtype = DTYPES[info.dtype]
    return info.is_plain or not (dtype.is_packed or dtype.kind in ("bits", "quantized"))


def blocks_of(key: str, info: TensorInfo, *, by_row: bool, step: int = 0) -> Iterator[Block]:
    """Yield the blocks of a tensor.

    With ``by_row``, each block of a matrix consists of whole rows, and each row is measured, unless a row is larger
    than a block. ``step`` is the distance in bytes between the 8-byte samples that are kept to find repeated bytes (see
    ``repeats``); 0 to keep none.
    """
    dtype = DTYPES[info.dtype]
    if not info.is_plain or info.storage is None:
        for box in blocks(info.shape, BLOCK // max(info.itemsize, 1)):
            yield Block(key, info, box=box)
        return
    unit = dtype.block[1] if dtype.block else 1 << 12
    columns = info.shape[-1] if by_row and len(info.shape) == 2 and info.shape[1] * info.itemsize <= BLOCK else 0
    unit = columns * info.itemsize or unit
    size, begin = BLOCK // unit * unit, info.storage.offset + info.offset
    is_sampled = info.nbytes >= LARGE and not columns
    for at in range(0, info.nbytes, size):
        yield Block(
            key, info, begin + at, min(size, info.nbytes - at), columns=columns, step=step, is_sampled=is_sampled
        )


def measured_block(checkpoint: Checkpoint, block: Block, work: Workspace) -> BlockFigures:
    """Read a block and return its figures (counts, extremes, sums). Raises SourceError if the file ends too early."""
    raw = _read(checkpoint, block, work)
    words = words_of(raw, block.offset, block.step) if block.step else None
    found = _measured(raw, block, work)
    found.words = words
    return found


def _measured(raw: Array, block: Block, work: Workspace) -> BlockFigures:
    crc, dtype = crc32(raw), block.info.dtype
    if dtype in BLOCK_SCALES:
        scales = figures_of(_scales(raw, dtype), "float16", work)
        if scales is not None and scales.zeros:
            scales.zeros -= _zeros_of_zeros(raw, dtype)
        return BlockFigures(scales, crc, raw.size)
    if dtype in BLOCK_EXPONENTS:
        return BlockFigures(figures_of(_exponents(raw, dtype), dtype, work), crc, raw.size)
    dtype = PARTS.get(dtype, dtype)
    if DTYPES[dtype].is_packed or DTYPES[dtype].kind not in ("float", "int", "uint", "bool"):
        return BlockFigures(None, crc, raw.size)
    sample = block.offset // BLOCK if block.is_sampled else None
    found = BlockFigures(figures_of(raw, dtype, work, in_order=bool(block.columns), sample=sample), crc, raw.size)
    if block.columns:
        values = work.floats.reshape(-1, block.columns)
        found.totals, found.squares = _of_each_row(values)
    return found


def _read(checkpoint: Checkpoint, block: Block, work: Workspace) -> Array:
    if block.box is not None:
        part = read_part(banded(block.info, checkpoint), block.info, block.box)
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    raw = work.bytes[: block.nbytes]
    checkpoint.file(block.info).readinto(block.offset, raw.data)
    return raw


def _scales(raw: Array, dtype: str) -> Array:
    begin, number = BLOCK_SCALES[dtype]
    layout = DTYPES[dtype].block
    assert layout is not None
    return np.ascontiguousarray(raw.reshape(-1, layout[1])[:, begin : begin + 2 * number]).reshape(-1)


FEW_CODES = 3
"""If all codes of a GGUF block are equal, its bytes, without the scale, have at most this many different values."""


def _zeros_of_zeros(raw: Array, dtype: str) -> int:
    """Return the number of scales of 0 in blocks whose weights are all 0, as in the row of a padding token.

    ``raw`` are the bytes of GGUF blocks. In a block of zeros, all codes are equal. If the codes of a block differ, its
    scale of 0 is not counted: there, the right scale was lost.
    """
    begin, number = BLOCK_SCALES[dtype]
    layout = DTYPES[dtype].block
    assert layout is not None
    blocks, end = raw.reshape(-1, layout[1]), begin + 2 * number
    empty = blocks[(_scales(raw, dtype).view("<f2").reshape(-1, number)[:, 0]) == 0]
    codes = np.sort(np.concatenate([empty[:, :begin], empty[:, end:]], 1), 1)
    is_zero = np.count_nonzero(np.diff(codes, axis=1), 1) < FEW_CODES
    scales = np.ascontiguousarray(empty[is_zero, begin:end]).view("<f2")
    return scales.size - int(np.count_nonzero(scales))


def _exponents(raw: Array, dtype: str) -> Array:
    layout = DTYPES[dtype].block
    assert layout is not None
    return np.ascontiguousarray(raw.reshape(-1, layout[1])[:, BLOCK_EXPONENTS[dtype]])


def _of_each_row(values: Array) -> tuple[Array, Array]:
    rows, columns = values[:, None, :], values[:, :, None]
    totals = np.matmul(rows, np.ones((values.shape[1], 1), values.dtype))  # row by row: equal rows, equal sums
    return totals.reshape(-1).astype(np.float64), np.matmul(rows, columns).reshape(-1).astype(np.float64)
