"""Compares a tensor of an output with the same tensor computed again from its sources.

Extracted low-rank factors are compared by their product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import copysign, hypot, sqrt
from typing import Any

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...engine.apply_settings import MergeContext
from ...engine.compute.compute import computed_blocks
from ...engine.compute.extracting_lora import factor_pairs
from ...engine.compute.reading import cast_for, read_part
from ...engine.compute.rows import overlaid_boxes, overlaid_part
from ...engine.one_output_part import is_copy
from ...planning.plan.compute import Factor
from ...planning.plan.step import Step
from ...tensors.dtypes import DTYPES, contiguous_stride
from ...tensors.info import TensorInfo
from ...tensors.ops.casts import cast, raw_dtype
from ...tensors.ops.regions import Array

__all__ = ["BLOCK", "Origins", "first_difference", "first_different_byte", "product_fault", "reader"]

BLOCK = 1 << 20

TOLERANCE = 1e-5
"""The allowed difference, relative to the largest value of a block: kernels add in different orders."""

LAST_BITS = {16: 2**-7, 8: 2**-1}
"""{bits of a dtype: the largest relative difference of two values that were rounded from nearly the same number}."""

Origins = Sequence[tuple[TensorInfo, Checkpoint]]
"""The inputs of a step, each as its header and its checkpoint."""


def reader(source: Checkpoint, info: TensorInfo) -> Callable[[int, int], bytes]:
    """Return a function of (offset, size) that reads bytes of a tensor as if the tensor were stored contiguously."""
    if info.is_plain and info.storage is not None:
        file, begin = source.file(info), info.storage.offset + info.offset
        return lambda offset, size: file.read(begin + offset, size)
    data = read_part(source, info, tuple((0, size) for size in info.shape)).tobytes()
    return lambda offset, size: data[offset : offset + size]


def first_difference(
    step: Step,
    info: TensorInfo,
    output: Checkpoint,
    origins: Origins,
    *,
    keeper: Checkpoint | None,
    context: MergeContext,
    near: bool = False,
) -> int | None:
    """Compute a tensor of an output again and return the offset of the first byte that differs; None if none does.

    ``step`` is the step of the plan that made the tensor, ``origins`` are its source tensors. If a source fills only a
    part of the tensor, ``keeper`` is the destination's checkpoint, from which the other values come; it is None if
    these were drawn at random. ``context`` has the settings for computing merges. With ``near``, nearly equal values
    count as equal.
    """
    origin, theirs = origins[0]
    if is_copy(step, origin):
        return first_different_byte(output, info, theirs, origin)
    read = reader(output, info)
    if step.overlays and keeper is None:
        return _overlay_difference(step, output, info, theirs, origin)
    kept = [(keeper[step.key], keeper)] if step.overlays and keeper is not None else []
    for offset, values, _ in computed_blocks(step, [*origins, *kept], context):
        raw = values.reshape(-1).view("u1").data
        here = read(offset, len(raw))
        if raw != here and not (near and _is_near(step.dtype, raw, here)):
            return offset + _mismatch(raw, here)
    return None


def _is_near(dtype: str, wanted: Any, found: Any) -> bool:
    """Return whether two arrays, given as bytes, have nearly equal values.

    Values may differ by ``TOLERANCE`` times the largest value. Values with 8 or 16 bits may also differ in their last
    bits, by ``LAST_BITS``.
    """
    first, second = (cast(np.frombuffer(one, raw_dtype(dtype)), dtype, "float64")[0] for one in (wanted, found))
    finite = np.isfinite(first)
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
        return False
    largest = np.max(np.abs(first[finite]), initial=0.0)
    steps = LAST_BITS.get(DTYPES[dtype].bits, 0.0)
    apart = np.abs(first[finite] - second[finite])
    return bool((apart <= TOLERANCE * largest + steps * np.abs(first[finite])).all())


def first_different_byte(output: Checkpoint, info: TensorInfo, theirs: Checkpoint, origin: TensorInfo) -> int | None:
    """Return the offset of the first byte at which two tensors of one dtype differ; None if they are equal.

    The first tensor is ``info`` of ``output``, the second is ``origin`` of ``theirs``.
    """
    if info.nbytes != origin.nbytes:
        return min(info.nbytes, origin.nbytes)
    here, there = reader(output, info), reader(theirs, origin)
    for done in range(0, info.nbytes, BLOCK):
        size = min(BLOCK, info.nbytes - done)
        a, b = here(done, size), there(done, size)
        if a != b:
            return done + _mismatch(a, b)
    return None


def _mismatch(a: Any, b: Any) -> int:
    first, second = np.frombuffer(a, "u1"), np.frombuffer(b, "u1")
    return int(np.argmax(first != second))


def _overlay_difference(
    step: Step, output: Checkpoint, info: TensorInfo, theirs: Checkpoint, origin: TensorInfo
) -> int | None:
    """Compare only the part of a tensor that comes from a source, because the other values were drawn at random.

    ``info`` is the tensor in ``output``, ``origin`` the tensor in its source ``theirs``.

    Returns the byte offset of the first block that differs; None if none does.
    """
    stride = contiguous_stride(info.shape)
    limit = BLOCK // info.itemsize
    for box in overlaid_boxes(step, origin, limit):
        here = read_part(output, info, box)
        values = overlaid_part(step, origin, theirs, box)
        there, _ = cast_for(step, values, origin.dtype)
        if not np.array_equal(here.view("u1"), there.view("u1")):
            return sum(begin * step for (begin, _), step in zip(box, stride, strict=True)) * info.itemsize
    return None


# Extracted factors are extracted again, and the products of both pairs of factors are compared.
#
# Factors are unique only up to a rotation in the rank dimension, and singular vectors up to their sign. LAPACK and BLAS
# of another machine round differently, and may return other factors with the same product.

UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half a unit in the last place of a dtype, relative to a value."""

SMALLEST = {"float16": 2.0**-25}
"""Half the smallest value above zero of a dtype: the largest rounding error of values near zero."""


@dataclass(frozen=True)
class _Product:
    """A matrix given as the product of ``left`` (rows, rank) and ``right`` (rank, columns), in double precision."""

    left: Array
    right: Array

    def rounding(self, dtype: str) -> float:
        """Return an upper bound of the change of the product, as a norm, if one factor is rounded to ``dtype``.

        It is twice the largest first-order change, to cover second-order terms.
        """
        left, right = float(np.linalg.norm(self.left)), float(np.linalg.norm(self.right))
        least = SMALLEST.get(dtype, 0.0) * max(sqrt(self.left.size) * right, sqrt(self.right.size) * left)
        return 2 * (UNITS[dtype] * left * right + least)

    def apart(self, other: _Product) -> float:
        """Return the norm of the difference of two products, without computing these possibly huge matrices.

        The difference is [L1, -L2] times [R1; R2]. Both factors are replaced by their triangular factor (QR), which
        does not change the norm and avoids cancellation.
        """
        left = np.linalg.qr(np.hstack([self.left, -other.left]))[1]
        right = np.linalg.qr(np.vstack([self.right, other.right]).T)[1]
        return float(np.linalg.norm(left @ right.T))


def product_fault(step: Step, pair: Origins, origins: Origins, context: MergeContext) -> str:
    """Return the fault of the product of the factors A and B of an adapter; '' if it is correct.

    ``pair`` are the factors in the output; ``origins`` are the tensors from which the factors are extracted again.
    Differences that rounding explains are allowed: the factors were rounded to their dtypes, and two decompositions of
    one matrix differ as described in ``Decomposition``.
    """
    assert step.factor is not None  # ``check_step`` ensures this
    found, again = _products(step.factor, *pair), context.factors.of(step, origins)
    size, scale = abs(step.factor.scale), step.factor.scale
    wanted = _parted(step.factor, again.left / copysign(sqrt(size), scale), again.right / sqrt(size))
    allowed = again.unsure / size + sum(hypot(*(one.rounding(info.dtype) for one in wanted)) for info, _ in pair)
    apart = hypot(*(one.apart(other) for one, other in zip(found, wanted, strict=True)))
    if apart <= allowed:
        return ""
    return (
        "the product of the low-rank factors A and B differs from the product that the sources give: the norm of the "
        f"difference is {apart:.2g}, and rounding explains at most {allowed:.2g}"
    )


def _products(factor: Factor, a: tuple[TensorInfo, Checkpoint], b: tuple[TensorInfo, Checkpoint]) -> list[_Product]:
    first, second = (_matrix(*one) for one in (a, b))
    return [_Product(first.T, second.T)] if factor.transposed else _parted(factor, second, first)


def _parted(factor: Factor, left: Array, right: Array) -> list[_Product]:
    """Return the product of two factors or, for stacked experts, the product of each expert."""
    return [_Product(*pair) for pair in factor_pairs(factor, left, right)]


def _matrix(info: TensorInfo, source: Checkpoint) -> Array:
    """Return a factor as a float64 matrix; all dimensions after the first become columns, as for a convolution."""
    values = read_part(source, info, tuple((0, size) for size in info.shape))
    return cast(values, info.dtype, "float64")[0].reshape(len(values), -1)
