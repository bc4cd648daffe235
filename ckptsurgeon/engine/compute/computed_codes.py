"""Computes a weight and rounds it to codes in one pass: the weight is never stored, and never completely in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from math import isfinite, prod
from threading import Lock

import numpy as np

from ...planning.plan.coded_part import CodedPart
from ...planning.plan.step import Step
from ...tensors.dtypes import BLOCKS, DTYPES, ROUNDED, contiguous_stride
from ...tensors.encoders._encoder import is_computed_in, is_encoder, part_shape
from ...tensors.encoders._extremes import Read, shifted
from ...tensors.info import Encoded, TensorInfo
from ...tensors.ops.casts import CACHED, CastLosses, raw_dtype
from ...tensors.ops.regions import Array, Box, blocks, box_shape
from ..apply_settings import MergeContext
from .encoding import column_strips, measured_block
from .reading import Blockwise, OutputBlock, Seen
from .transposed_codes import in_strips

__all__ = ["ComputedWeight", "coding_of", "fits", "part_of"]


def part_of(step: Step) -> TensorInfo:
    """Return the header of the tensor that a step stores: a part of a quantised tensor, such as its codes.

    For scales, the shape in the header is the number of groups along each dimension, even if the output stores them in
    another shape.
    """
    part = step.coded
    assert part is not None
    order = step.column_order
    of = (TensorInfo(part.dtype, part.shape), *([TensorInfo(order.dtype, order.shape)] if order is not None else []))
    made = Encoded(of, part.encoding, part.role, part.steps, part.scale_dtype, part.facts, part.key)
    return TensorInfo(step.dtype, part_shape(made, step.shape), made=made)


def fits(step: Step, part: CodedPart) -> bool:
    """Return whether an encoder can compute ``part``, a part of a quantised tensor, in the step's dtype and shape.

    This may be false if a user has edited the plan.
    """
    if not _is_encoding(part) or not _has_order(step, part):
        return False
    info = part_of(step)
    assert isinstance(info.made, Encoded)
    if not is_computed_in(info.made, step.dtype):
        return False
    if part.role == "codes":
        return _is_reshaped(step, part, info) and DTYPES[info.dtype].bits >= 8
    few = {"whole": 1, "shape": len(part.shape)}
    return prod(step.shape) == few.get(part.role, prod(info.shape))


def _has_order(step: Step, part: CodedPart) -> bool:
    """Return whether the last input of a step is a valid order of columns (``g_idx``); True if ``part`` needs none.

    ``part`` is the part of a quantised tensor that the step stores.
    """
    if not dict(part.facts).get("ordered"):
        return True
    order = step.column_order
    is_order = order is not None and order.dtype in ("int32", "int64") and order.shape == part.shape[-1:]
    return is_order and part.encoding in ORDERED and len(part.shape) == 2


ORDERED = ("gptq", "packed")
"""The encodings in which columns of one group, which share a scale, need not be adjacent."""
ROLES = ("codes", "scale", "bias", "nested", "zero", "whole", "shape")
"""The roles of the parts of a quantised tensor that an encoder can compute."""
OF_WEIGHTS = ("float32", "float64")
"""The dtypes in which weights are computed before they are rounded to codes."""
LIMITS = {"bits": (1, 8), "width": (1, 8), "nested": (1, 1 << 20), "zeros_packed": (0, 2), "ordered": (0, 1)}
"""The allowed minimum and maximum of the numbers that describe an encoding (``CodedPart.facts``), by name."""


BLOCKED = "gguf"
"""The encoding whose scales are stored within the codes, so that the codes are its only part."""


def _is_encoding(part: CodedPart) -> bool:
    """Return whether an encoder exists for the encoding, role, dtype, shape and facts (such as bits) of ``part``."""
    facts = dict(part.facts)
    if not is_encoder(part.encoding, facts) or part.role not in ROLES or part.dtype not in OF_WEIGHTS:
        return False
    if len(part.shape) < 2 or len(part.steps) != len(part.shape) or min(part.steps) < 1:
        return False
    if part.encoding == BLOCKED:
        numbers = {ROUNDED[name]: BLOCKS[name][0] for name in ROUNDED}
        is_of_blocks = facts["type"] in numbers and part.shape[-1] % numbers[int(facts["type"])] == 0
        if not is_of_blocks or part.role != "codes" or part.scale_dtype:
            return False
    elif part.scale_dtype not in DTYPES:
        return False
    if ("nested" in facts) != ("offset" in facts) or (part.role == "nested" and "nested" not in facts):
        return False
    return all(
        isfinite(value) and LIMITS.get(name, (value, value))[0] <= value <= LIMITS.get(name, (value, value))[1]
        for name, value in facts.items()
    )


def _is_reshaped(step: Step, part: CodedPart, info: TensorInfo) -> bool:
    """Return whether the step has the shape of ``info``, or stores the elements of ``info`` in another allowed shape.

    ``info`` describes the computed codes. Only some encodings allow another shape.
    """
    may = any(dict(part.facts).get(name) for name in ("flat", "across"))
    return step.shape == info.shape or (may and prod(step.shape) == prod(info.shape))


def coding_of(
    step: Step,
    weight: Blockwise,
    places: Sequence[OutputBlock],
    context: MergeContext,
    order: Array | None = None,
) -> Blockwise:
    """Return a function that computes a block of a step's output, which is a part of a quantised tensor.

    Such a part contains, for example, the codes or the scales. ``weight`` is a function that computes each of the
    blocks ``places`` of the weight that is quantised. ``order`` has the values of ``step.column_order``.
    """
    info, roundings = part_of(step), context.roundings
    is_boxwise = step.numbers.op == "average"
    read = _reader(info, ComputedWeight(step.coded, places, weight, is_boxwise=is_boxwise), order)
    strips = in_strips(info, read, roundings, context.spread)
    if strips is not None:
        return strips

    def block(place: OutputBlock, seen: Seen | None = None) -> tuple[Array, CastLosses]:
        narrow = column_strips(info, place.box) if is_boxwise else ()
        return np.ascontiguousarray(measured_block(info, read, place, roundings, strips=narrow)), CastLosses()

    return block


def _reader(info: TensorInfo, weight: ComputedWeight, order: Array | None) -> Read:
    """Return a function that reads the tensors from which ``info`` is computed.

    These are the weight and, if ``order`` is not None, the order of the weight's columns: the last tensor of
    ``info.made.of``, whose values are ``order``.
    """
    if order is None:
        return weight.read
    assert isinstance(info.made, Encoded)
    columns, values = info.made.of[-1], order

    def read(one: TensorInfo, box: Box) -> Array:
        return values[slice(*box[0])] if one is columns else weight.read(one, box)

    return read


class ComputedWeight:
    """A weight that is computed block by block when a part of it is read; several threads may read.

    The function ``compute`` computes one of the blocks ``places``, which follow each other in the weight. The blocks
    that were computed last are cached. If ``is_boxwise`` is true, ``compute`` accepts any other box, too. A part that
    has only some of the columns is then computed by itself, since otherwise blocks of whole rows would be computed
    again for each such part.
    """

    def __init__(
        self, part: CodedPart | None, places: Sequence[OutputBlock], compute: Blockwise, *, is_boxwise: bool = False
    ) -> None:
        assert part is not None
        self._is_boxwise, self._columns = is_boxwise, part.shape[-1]
        self._places, self._compute, self._dtype = places, compute, raw_dtype(part.dtype)
        self._stride = contiguous_stride(part.shape)
        self._begins = [place.offset // self._dtype.itemsize for place in places]
        self._kept: OrderedDict[int, Array] = OrderedDict()
        self._lock = Lock()

    def read(self, info: TensorInfo, box: Box) -> Array:
        """Return the part ``box`` of the weight."""
        if self._is_boxwise and box[-1] != (0, self._columns):
            return self._alone(box)
        found = list(self._overlapping(box))
        if len(found) == 1 and found[0][1] == box:
            number = found[0][0]
            return self._block(number)[_within(box, self._places[number].box)]
        out = np.empty(box_shape(box), self._dtype)
        for number, common in found:
            own = self._places[number].box
            out[_within(common, box)] = self._block(number)[_within(common, own)]
        return out

    def _alone(self, box: Box) -> Array:
        out = np.empty(box_shape(box), self._dtype)
        for part in blocks(out.shape, CACHED):
            place = OutputBlock(0, 0, shifted(part, box))
            out[tuple(slice(*span) for span in part)] = self._compute(place, None)[0].reshape(box_shape(part))
        return out

    def _overlapping(self, box: Box) -> Iterator[tuple[int, Box]]:
        """Yield the index of each block that overlaps ``box``, and the overlap."""
        if not prod(box_shape(box)):
            return
        first = sum(begin * step for (begin, _), step in zip(box, self._stride, strict=True))
        last = sum((end - 1) * step for (_, end), step in zip(box, self._stride, strict=True))
        for number in range(bisect_right(self._begins, first) - 1, bisect_right(self._begins, last)):
            common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(self._places[number].box, box, strict=True))
            if all(begin < end for begin, end in common):
                yield number, common

    def _block(self, number: int) -> Array:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        place = self._places[number]
        values = self._compute(place, None)[0].reshape(box_shape(place.box))
        values.flags.writeable = False
        with self._lock:
            self._kept[number] = values
            while sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return values


KEPT_BYTES = 4 << 20
"""How many bytes of computed blocks are cached, so that rows are computed only once for both their codes and scales."""


def _within(part: Box, of: Box) -> tuple[slice, ...]:
    """Return the slices that select ``part`` from an array that contains the box ``of``."""
    return tuple(slice(begin - at, end - at) for (begin, end), (at, _) in zip(part, of, strict=True))
