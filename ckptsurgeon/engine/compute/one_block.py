"""Computes one block of a tensor: its size, and its values, which are cast, resized, averaged or concatenated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod

import numpy as np

from ...errors import PlanError
from ...planning.plan.step import MERGES, Step
from ...tensors.composition import is_rowwise
from ...tensors.decoders._decoder import decode_rounded
from ...tensors.decoders._tables import is_looked_up
from ...tensors.dtypes import DTYPES
from ...tensors.info import Decoded, Encoded, TensorInfo
from ...tensors.ops.casts import CACHED, CastLosses, cast, raw_dtype, widened
from ...tensors.ops.means import average, largest, rounded
from ...tensors.ops.regions import Array, Box, blocks, box_shape
from ...util.torchrun import cores_of_process
from ..resample.resample import interpolate, interpolation_box
from ..resample.resize_in_parts import ADAPTERS, adaptation_box, adapted, centred
from .column_bands import OpenFiles
from .concatenating import concatenated
from .encoding import Roundings, encoded_block
from .reading import OutputBlock, Part, Seen, cast_for, named, naming_scales, read_as, read_part
from .rows import mapped_block, overlaid_block

__all__ = ["THREADS", "block_limit", "computed_block"]

# The size of a block.

THREADS = min(8, cores_of_process())
"""The number of threads for computing: one for each core of this process, but at most 8.

With more threads, the disk is the limit. If two processes share two cores, four threads take a tenth more processor
time than two.
"""

BLOCK_BYTES = 2 << 20
"""The approximate bytes of an output block, or of its input if that is larger; each thread has one block in memory."""

MADE_BYTES = 16 << 20
"""Takes the place of ``BLOCK_BYTES`` for derived tensors.

It is larger, because a block of a transposed tensor needs all rows of the source.
"""

ROWS_BYTES = 4 << 20
"""Takes the place of ``MADE_BYTES`` if rows of the output are made of rows of the source.

With small blocks, threads wait less for each other: at the end of a tensor, and to write to the same file.
"""

LOOKED_UP = max(1 << 19, min(1 << 21, (1 << 22) // THREADS))
"""How many elements a block has if codes are decoded by look-up in a table.

An element takes 1 byte of codes and 2 or 4 bytes of values.

With larger blocks, fewer tables are made, Python does less for each element, and threads wait less for each other. With
many threads, blocks are smaller, so that all threads together take no more memory."""

DOUBLES = 4 * 8
"""The bytes of memory for each element of a tensor that is read, weighted and summed in double precision."""


def block_limit(step: Step, info: TensorInfo, itemsize: int) -> int:
    """Return the number of elements of a block of the output.

    The block, or its input if that is larger, then takes about ``BLOCK_BYTES``. ``itemsize`` is the size of an output
    element in bytes.
    """
    if _is_looked_up(step, info):
        return LOOKED_UP
    if info.made is None or isinstance(info.made, Decoded):
        block = BLOCK_BYTES
    else:
        block = ROWS_BYTES if is_rowwise(info) else MADE_BYTES
    limit = block // max(itemsize, info.itemsize)
    if step.op in ADAPTERS:
        limit = BLOCK_BYTES // DOUBLES
    if step.op == "interpolate" or step.op in ADAPTERS:
        limit = limit * prod(step.shape) // max(prod(step.shape), info.numel)
    if step.op in ("average", "concat") or isinstance(info.made, Decoded):
        limit = min(limit, CACHED)
    return max(1, limit)


def _is_looked_up(step: Step, info: TensorInfo) -> bool:
    """Return whether most values of an output are looked up in a table of decoded codes.

    Such outputs have larger blocks.
    """
    is_float = DTYPES[step.dtype].kind == "float" and DTYPES[step.dtype].bits <= 32
    return step.op == "copy" and is_float and isinstance(info.made, Decoded) and is_looked_up(info.made)


# The values of a block.


def computed_block(
    step: Step, parts: Sequence[Part], roundings: Roundings, place: OutputBlock, seen: Seen | None
) -> tuple[Array, CastLosses]:
    """Return the block ``place`` of an output tensor, and the counts of values that a cast lost.

    ``roundings`` records the rounding losses of a tensor that is quantised. If a step has several inputs, ``seen`` is
    called with the index of each input and the values that were read from this input.
    """
    (info, source), box = parts[0], place.box
    if step.op == "interpolate":
        part = interpolation_box(box, info.shape, step.shape)
        floats = interpolate(read_part(source, info, part), part, box, info.shape, step.shape, dtype=info.dtype)
        values, lost = cast_for(step, floats, "float64" if info.dtype == "float64" else "float32")
    elif step.op in ADAPTERS:
        part = adaptation_box(step.policy, box, info.shape, step.shape)
        wide, _ = cast(read_part(source, info, part), info.dtype, "float64")
        values, lost = cast_for(
            step, adapted(step.policy, wide, part, box, source=info.shape, destination=step.shape), "float64"
        )
    elif step.op == "center":
        dtype = raw_dtype(info.dtype)
        kernel = centred(
            lambda part: read_part(source, info, part), dtype, box, source=info.shape, destination=step.shape
        )
        values, lost = cast_for(step, kernel, info.dtype)
    elif step.overlays:
        values, lost = overlaid_block(step, parts[0], parts[1], box)
    elif step.op == "map":
        values, lost = cast_for(step, mapped_block(step, info, source, box), info.dtype)
    elif step.op in MERGES:
        values, lost = _merged(step, parts, box, seen)
    elif step.op == "concat":
        values, lost = concatenated(step, parts, box)
    elif isinstance(info.made, Encoded):
        values, lost = cast_for(step, encoded_block(info, source, place, roundings), info.dtype)
    else:
        values, lost = _copied(step, info, source, box)
    return values, lost


def _copied(step: Step, info: TensorInfo, source: OpenFiles, box: Box) -> tuple[Array, CastLosses]:
    """Return the part ``box`` of an input in the dtype of the output, and the counts of values that the cast lost."""
    if isinstance(info.made, Decoded) and DTYPES[step.dtype].kind == "float":
        with naming_scales(source, info):
            found = decode_rounded(partial(read_part, source), info, box, step.dtype, source.odd_scales)
        if found is not None:
            values, are_finite = found
            return values, CastLosses(are_finite=are_finite)
    limit = BLOCK_BYTES // info.itemsize
    if not _is_looked_up(step, info) or prod(box_shape(box)) <= limit:
        return cast_for(step, read_part(source, info, box), info.dtype)
    values, lost = np.empty(box_shape(box), raw_dtype(step.dtype)), CastLosses()
    for part in blocks(values.shape, limit):  # in smaller blocks: some values may not be looked up after all
        place = tuple((first + begin, first + end) for (first, _), (begin, end) in zip(box, part, strict=True))
        made, more = cast_for(step, read_part(source, info, place), info.dtype)
        values[tuple(slice(*span) for span in part)] = made.reshape(box_shape(part))
        lost += more
    return values, lost


def _read(parts: Sequence[Part], box: Box, seen: Seen | None) -> Iterator[tuple[Array, str]]:
    """Yield, for each input, its values in the region ``box`` and its dtype; only one input is in memory at a time.

    ``seen``, if given, is called with the index of each input and its values.
    """
    for number, (info, source) in enumerate(parts):
        values = read_as(source, info, box)
        if seen is not None:
            seen(number, values)
        yield values, info.dtype


def _merged(step: Step, parts: Sequence[Part], box: Box, seen: Seen | None) -> tuple[Array, CastLosses]:
    if step.op == "max":
        try:
            return cast_for(step, *largest(_read(parts, box, seen)))
        except PlanError as error:
            hint = "Use --int-buffers last, or first: these keep the dtype of that checkpoint."
            raise PlanError(error.message, hint=hint) from None
    with np.errstate(all="ignore"):
        total, wide = average(_read(parts, box, seen), step.weights)
    lost = CastLosses() if np.isfinite(total).all() else CastLosses(_lost(total, _read(parts, box, None)))
    values, more = named(step, rounded, total, wide)
    return values, lost + more


def _lost(total: Array, parts: Iterator[tuple[Array, str]]) -> int:
    """Return the number of values of a sum that are infinite or NaN although all inputs are finite at this index."""
    odd = ~np.isfinite(total)
    for values, dtype in parts:
        odd &= np.isfinite(np.asarray(widened(values, dtype)))
    return int(np.count_nonzero(odd))
