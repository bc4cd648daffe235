"""Adds LoRA adapters to tensors, in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

from ...methods.lora.changing import SINGLE, changing, wide_dtype, widens
from ...methods.lora.expert_stack import is_stack
from ...methods.lora.kind_values import composed_rows, elements_of_kind, rotation, stack_rows
from ...methods.lora.products import LowRankChange
from ...methods.lora.rotated import neumann_terms
from ...methods.lora.singles import TILE
from ...planning.plan.compute import FACTORS, Lora, LoraTerm
from ...planning.plan.step import Step
from ...tensors.ops.casts import CastLosses, count_nonzero, goes_to_zero, raw_dtype, widened
from ...tensors.ops.regions import Array, blocks, box_shape
from ..part_receipt import CHANGES, EVERY, NO_MAGNITUDE, ZERO, ZERO_DORA
from .reading import Blockwise, OutputBlock, Part, Seen, numbered_blocks
from .wide_matrices import matrix_of, rows_of, whole

__all__ = [
    "AdapterChanges",
    "adapting_bytes",
    "adapting_of",
    "adapting_passes",
    "adapting_places",
    "is_single",
    "kept_bytes",
]

ADAPTING_ELEMENTS = TILE
"""How many elements a block has: as many as a tile of a matrix product.

With a quarter of this number, two threads were slower than one.
"""

DOUBLE = 8
"""The bytes of a number in double precision."""

ARRAYS = {"float32": 5, "float64": 10}
"""The most memory for each element of a block, in units of ``DOUBLE`` bytes, by the dtype of computation.

It is needed for the base, sums, products of the adapters, and rounded values."""

HALF, SMALLEST = 0.5, 2.0**-20
"""``HALF`` is the mantissa of a power of two, as ``frexp`` returns it.

``SMALLEST`` is the smallest scale with which factors stay in single precision.
"""

KEPT = 3
"""For each factor, at most this many arrays of its size are in memory at once, such as the factor times its weight."""


def adapting_places(step: Step) -> list[OutputBlock]:
    """Return the blocks of a tensor for which LoRA changes are computed one after the other.

    Each block has whole rows, because DoRA needs the norm of each row. For stacked experts, (experts, rows, columns), a
    block has some rows of one expert, or several whole experts.
    """
    row = prod(step.shape[2 if _is_stacked(step) else 1 :])
    limit = max(ADAPTING_ELEMENTS * ARRAYS["float32"] // ARRAYS[_wide(step)], row)
    return list(numbered_blocks(blocks(step.shape, limit), raw_dtype(step.dtype).itemsize))


def adapting_bytes(step: Step, places: Sequence[OutputBlock]) -> int:
    """Return the bytes of memory for computing one block of a tensor to which LoRA adapters are added."""
    elements: int = max((prod(box_shape(place.box)) for place in places), default=0)
    return elements * DOUBLE * ARRAYS[_wide(step)]


def kept_bytes(step: Step) -> int:
    """Return the bytes of the adapters' factors (A and B), which stay in memory while the tensor is computed."""
    inputs = [one for term, own in _lora(step).parted(step.inputs) if _is_factored(term) for one in own]
    elements: int = sum(prod(one.shape) for one in inputs)
    values = sum(
        elements_of_kind(term.kind, [one.shape for one in own], prod(step.shape[1:]))
        for term, own in _lora(step).parted(step.inputs)
        if _is_of_kind(term)
    )
    return (elements * KEPT + values) * DOUBLE


def adapting_passes(step: Step) -> int:
    """Return how many times the base tensor is read: 2 if DoRA needs the norms of the base's columns, otherwise 1."""
    return 2 if any(term.kind == "dora" and term.transposed for term in _lora(step).terms) else 1


@dataclass
class AdapterChanges:
    """Records the tensors that each adapter changes, and tensors whose change is zero because of a factor or magnitude.

    ``keys`` is {index of the adapter among the sources: {name of a group in ``CHANGES``: keys of tensors}}.
    """

    keys: dict[int, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, step: Step, changes: Sequence[LowRankChange]) -> None:
        """Record the changes that the adapters make to the tensor of a step, and which of them are zero.

        A change is zero if one of its factors, or its scale, is zero, because the change is their product.
        """
        for (_, own), one in zip(_lora(step).parted(step.inputs), changes, strict=True):
            of = self.keys.setdefault(own[-1].source, {kind: [] for kind in CHANGES})
            factors = [factor for factor in (one.left, one.right) if factor is not None]
            of[EVERY].append(step.key)
            if one.is_zero or not all(factor.any() for factor in factors):
                of[ZERO if one.magnitude is None else ZERO_DORA].append(step.key)
            if one.magnitude is not None and not one.magnitude.all():
                of[NO_MAGNITUDE].append(step.key)


def adapting_of(step: Step, parts: Sequence[Part], counted: AdapterChanges) -> Blockwise:
    """Return a function that computes a block of the base plus its adapters; the adapters' factors stay in memory.

    The changes of the adapters are recorded in ``counted``.
    """
    with np.errstate(all="ignore"):  # an adapter may have NaN or infinite values: the results are counted
        changes = _changes(step, _lora(step), parts)
        counted.add(step, changes)
        base, out = step.inputs[0].dtype, raw_dtype(step.dtype)
        change = changing(changes, _wide(step), step.dtype, base)
        taken = base if widens(_wide(step), step.dtype) else _wide(step)

    is_stacked = _is_stacked(step)

    def block(place: OutputBlock, seen: Seen | None) -> tuple[Array, CastLosses]:
        begin = place.box[0][0] if place.box else 0
        with np.errstate(all="ignore"):
            rows = rows_of(parts[0], place.box, seen, taken)
            if is_stacked:
                begin, rows = begin * step.shape[1] + place.box[1][0], rows.reshape(-1, step.shape[2])
            made, lost = change(rows, begin)
        made = made.reshape(-1).view(out)
        if goes_to_zero(base, step.dtype):
            zero = int(np.count_nonzero(widened(rows, taken) != 0)) - count_nonzero(made, step.dtype)
            lost = CastLosses(lost.infinite, max(0, zero))
        return made, lost

    return block


def is_single(step: Step) -> bool:
    """Return whether BLAS sums the changes, so that the last bits of the results may depend on the processor.

    BLAS is used for results of 16 bits, unless sums must have a fixed order: for DoRA, and for tensors saved in full.
    """
    step = step.numbers  # the dtype of a quantised weight is not that of its scales
    if step.lora is None or step.dtype not in SINGLE:
        return False
    return _wide(step) == "float32" or any(map(_is_of_kind, step.lora.terms))


def _lora(step: Step) -> Lora:
    assert step.lora is not None  # ensured by check_step
    return step.lora


def _wide(step: Step) -> str:
    """Return the dtype in which adapters are added to the base: "float32" or "float64"."""
    return wide_dtype(step.inputs[0].dtype, [term.kind for term in _lora(step).terms], step.dtype)


def _is_of_kind(term: LoraTerm) -> bool:
    """Return whether a term is no plain LoRA: LoHa, LoKr, OFT, a Tucker decomposition or stacked experts."""
    return term.kind not in FACTORS


def _is_stacked(step: Step) -> bool:
    """Return whether the tensor of a step is a stack of experts, each with factors of its own."""
    return is_stack(_lora(step).terms[0].kind)  # then all terms are


def _is_factored(term: LoraTerm) -> bool:
    return term.kind not in ("saved", "added")


def _changes(step: Step, lora: Lora, parts: Sequence[Part]) -> list[LowRankChange]:
    return [_change(step, term, own, parts[0]) for term, own in lora.parted(parts)]


def _change(step: Step, term: LoraTerm, own: Sequence[Part], base: Part) -> LowRankChange:
    if not _is_factored(term):
        scale = 1.0 if term.kind == "saved" else term.scale
        return LowRankChange(term.kind, term.weight, values=_values(step, own[0], scale))
    if _is_of_kind(term):
        return _kind_change(step, term, [whole(one) for one in own])
    left, right = _factors(term, own, "float32" if _stays_single(step, term, own) else "float64")
    if term.kind == "product":
        return LowRankChange("product", term.weight, left, right)
    magnitude = whole(own[2]).reshape(-1)
    change = LowRankChange("dora", term.weight, left, right, term.transposed, magnitude)
    if not term.transposed:
        return change
    return LowRankChange("dora", term.weight, left, right, True, magnitude, _norms(step, change, base))


def _factors(term: LoraTerm, own: Sequence[Part], dtype: str) -> tuple[Array, Array]:
    """Return both factors of the change of a LoRA: the left factor times the scale, and the right factor.

    They are computed in ``dtype``: "float32" or "float64". If an element is too large for float32, both are float64.
    """
    a, b = matrix_of(own[0], dtype), matrix_of(own[1], dtype)
    left, right = (a.T, b.T) if term.transposed else (b, a)
    scaled = left if term.scale == 1 else a.dtype.type(term.scale) * left
    left, right = np.ascontiguousarray(scaled), np.ascontiguousarray(right)
    if dtype == "float32" and not np.isfinite(left).all():
        return _factors(term, own, "float64")
    return left, right


def _stays_single(step: Step, term: LoraTerm, own: Sequence[Part]) -> bool:
    """Return whether the factors of a term are converted to float32, not float64, before their product is computed.

    They are if the output has 16 bits, all terms are plain LoRA, the base is not float64, and the factors stay exact in
    float32: they are float32, bfloat16 or float16, and the scale is a power of two (from 2^-20 to 2^20).
    """
    is_power = math.frexp(abs(term.scale))[0] == HALF and SMALLEST <= abs(term.scale) <= 1 / SMALLEST
    dtypes = {info.dtype for info, _ in own[:2]}
    is_exact = dtypes <= {"float32", *SINGLE} and term.kind == "product"
    return is_power and is_exact and step.dtype in SINGLE and _wide(step) == "float32"


def _kind_change(step: Step, term: LoraTerm, tensors: Sequence[Array]) -> LowRankChange:
    """Return the change of an adapter that is no plain LoRA (see ``_is_of_kind``), made from its ``tensors``."""
    is_zero = not term.scale or not all(one.any() for one in tensors)
    in_order = step.dtype not in SINGLE
    if is_stack(term.kind):
        rows = stack_rows(term.kind, tensors, step.shape[0], term.scale, in_order=in_order)
        return LowRankChange("added", term.weight, values=rows, is_zero=is_zero)
    terms = neumann_terms(term.kind)
    if terms is None:
        rows = composed_rows(term.kind, tensors, term.scale, in_order=in_order)
        return LowRankChange("added", term.weight, values=rows, is_zero=is_zero)
    turned = rotation(tensors[0], terms, prod(step.shape[1:]), transposed=not term.transposed, in_order=in_order)
    return LowRankChange("rotated", term.weight, rotate=turned, is_zero=is_zero)


def _values(step: Step, part: Part, scale: float) -> Callable[[int, int], Array]:
    """Return a function that reads rows of ``part`` and multiplies them by ``scale``.

    ``part`` has the shape of the base. The arguments of the function are the first row, and the row after the last.
    """
    tail = tuple((0, size) for size in step.shape[1:])
    return lambda begin, end: scale * rows_of(part, ((begin, end), *tail) if step.shape else (), None)


def _norms(step: Step, change: LowRankChange, base: Part) -> Array:
    """Return the norms of the columns of the matrix that is the base plus the low-rank product of ``change``."""
    squares = np.zeros(step.shape[1])
    for place in adapting_places(step):
        begin, end = place.box[0]
        adapted = rows_of(base, place.box, None) + change.product(begin, end)
        squares += np.add.reduce(adapted * adapted, axis=0)
    return np.sqrt(squares)
