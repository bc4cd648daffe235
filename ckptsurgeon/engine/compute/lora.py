"""Adds LoRA adapters to tensors, and extracts low-rank factors from the difference of two tensors, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ...errors import PlanError
from ...methods.lora.changing import SINGLE, changing, wide_dtype
from ...methods.lora.composed import SIDES
from ...methods.lora.composing import composed_values, decompose_composed, elements_of_composed
from ...methods.lora.decomposition import (
    PASSES,
    Decomposition,
    decompose,
    decompose_product,
    elements_held,
    elements_of_product,
    singular_values,
)
from ...methods.lora.kind_values import composed_rows, elements_of_kind, rotation
from ...methods.lora.products import LowRankChange
from ...methods.lora.rotated import neumann_terms
from ...methods.lora.singles import TILE
from ...planning.plan.compute import DIFFERENCE, FACTORS, PRODUCT, Factor, Lora, LoraTerm
from ...planning.plan.receipt import FactorFit
from ...planning.plan.step import Step
from ...tensors.ops.casts import CastLosses, cast, count_nonzero, goes_to_zero, raw_dtype
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array, Box, blocks, box_shape
from ...util.text import escape
from ..part_receipt import CHANGES, EVERY, NO_MAGNITUDE, ZERO, ZERO_DORA
from .bands import banded
from .reading import Blockwise, OutputBlock, Part, Seen, numbered_blocks, read_part

__all__ = [
    "AdapterChanges",
    "FactorCache",
    "adapting_bytes",
    "adapting_of",
    "adapting_passes",
    "adapting_places",
    "differ",
    "factoring_bytes",
    "factoring_of",
    "factoring_passes",
    "factoring_places",
    "factoring_reason",
    "is_single",
    "kept_bytes",
    "rank_with_energy",
]

# Adding adapters to tensors, in blocks of rows.

ADAPTING_ELEMENTS = TILE
"""How many elements a block has: as many as a tile of a matrix product.

With a quarter of this number, two threads were slower than one."""

DOUBLE = 8
"""The bytes of a number in double precision."""

ARRAYS = {"float32": 5, "float64": 10}
"""The most memory for each element of a block, in units of ``DOUBLE`` bytes, by the dtype of computation.

It is needed for the base, sums, products of the adapters, and rounded values."""

KEPT = 3
"""For each factor, at most this many arrays of its size are in memory at once, such as the factor times its weight."""


def adapting_places(step: Step) -> list[OutputBlock]:
    """Return the blocks in which LoRA adapters are added to a tensor.

    Each block has whole rows, because DoRA needs the norm of each row.
    """
    limit = max(ADAPTING_ELEMENTS * ARRAYS["float32"] // ARRAYS[_wide(step)], prod(step.shape[1:]))
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
    """Records the tensors that each adapter changes, and those whose change is zero because of a factor or magnitude.

    ``keys`` is {index of the adapter among the sources: {name of a group in ``CHANGES``: keys of tensors}}.
    """

    keys: dict[int, dict[str, list[str]]] = field(default_factory=dict)

    def add(self, step: Step, changes: Sequence[LowRankChange]) -> None:
        """Record what the adapters change in the tensor of a step.

        A change is zero if one of its two factors is zero, because the change is their product.
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

    The changes of the adapters are counted in ``counted``.
    """
    with np.errstate(all="ignore"):  # an adapter may have NaN or infinite values: the results are counted
        changes = _changes(step, _lora(step), parts)
        counted.add(step, changes)
        wide = _wide(step)
        change, out = changing(changes, wide, step.dtype), raw_dtype(step.dtype)

    def block(place: OutputBlock, seen: Seen | None) -> tuple[Array, CastLosses]:
        begin = place.box[0][0] if place.box else 0
        with np.errstate(all="ignore"):
            rows = _rows(parts[0], place.box, seen, wide)
            made, lost = change(rows, begin)
        made = made.reshape(-1).view(out)
        if goes_to_zero(step.inputs[0].dtype, step.dtype):
            zero = int(np.count_nonzero(rows != 0)) - count_nonzero(made, step.dtype)
            lost = CastLosses(lost.infinite, max(0, zero))
        return made, lost

    return block


def is_single(step: Step) -> bool:
    """Return whether BLAS sums what adapters add; then the last bits of the results may depend on the processor.

    This is so for results of 16 bits, unless DoRA or tensors saved in full need sums in order.
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
    """Return whether a term is the change of a LoHa, LoKr, OFT or Tucker decomposition."""
    return term.kind not in FACTORS


def _is_factored(term: LoraTerm) -> bool:
    return term.kind not in ("saved", "added")


def _changes(step: Step, lora: Lora, parts: Sequence[Part]) -> list[LowRankChange]:
    return [_change(step, term, own, parts[0]) for term, own in lora.parted(parts)]


def _change(step: Step, term: LoraTerm, own: Sequence[Part], base: Part) -> LowRankChange:
    if not _is_factored(term):
        scale = 1.0 if term.kind == "saved" else term.scale
        return LowRankChange(term.kind, term.weight, values=_values(step, own[0], scale))
    if _is_of_kind(term):
        return _kind_change(step, term, [_whole(one) for one in own])
    a, b = _matrix(own[0]), _matrix(own[1])
    left, right = (a.T, b.T) if term.transposed else (b, a)
    left, right = np.ascontiguousarray(term.scale * left), np.ascontiguousarray(right)
    if term.kind == "product":
        return LowRankChange("product", term.weight, left, right)
    magnitude = _whole(own[2]).reshape(-1)
    change = LowRankChange("dora", term.weight, left, right, term.transposed, magnitude)
    if not term.transposed:
        return change
    return LowRankChange("dora", term.weight, left, right, True, magnitude, _norms(step, change, base))


def _kind_change(step: Step, term: LoraTerm, tensors: Sequence[Array]) -> LowRankChange:
    """Return the change of a LoHa, LoKr, OFT or Tucker decomposition, which is made from ``tensors``."""
    is_zero = not term.scale or not all(one.any() for one in tensors)
    in_order = step.dtype not in SINGLE
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
    return lambda begin, end: scale * _rows(part, ((begin, end), *tail) if step.shape else (), None)


def _norms(step: Step, change: LowRankChange, base: Part) -> Array:
    """Return the norms of the columns of the matrix that is the base plus the low-rank product of ``change``."""
    squares = np.zeros(step.shape[1])
    for place in adapting_places(step):
        begin, end = place.box[0]
        adapted = _rows(base, place.box, None) + change.product(begin, end)
        squares += np.add.reduce(adapted * adapted, axis=0)
    return np.sqrt(squares)


def _rows(part: Part, box: Box, seen: Seen | None, dtype: str = "float64") -> Array:
    """Return the rows of a tensor in ``box`` as a matrix of ``dtype``, with all dimensions after the first flattened.

    ``seen``, if given, is called with 0 (the index of the input) and the values as they were read.
    """
    info, source = part
    values = read_part(source, info, box)
    if seen is not None:
        seen(0, values)
    wide, _ = cast(values, info.dtype, dtype)
    return wide.reshape(len(wide) if box else 1, prod(wide.shape[1:]))


def _whole(part: Part) -> Array:
    info, source = part
    return cast(read_part(source, info, tuple((0, size) for size in info.shape)), info.dtype, "float64")[0]


def _matrix(part: Part) -> Array:
    """Return a factor as a matrix in double precision; the kernel dimensions of a convolution become columns."""
    wide = _whole(part)
    return wide.reshape(len(wide), prod(wide.shape[1:]))


# Extracting low-rank factors from the difference of two tensors, which is read in blocks of rows.

FACTORING_ELEMENTS = 1 << 20
"""How many elements a block has, if the difference of two tensors is computed in blocks of rows."""

BLOCK_BYTES = 5 * 8
"""The bytes of memory for each element of a block: five doubles, for both tensors and for two blocks of differences."""


@dataclass
class FactorCache:
    """Caches the last low-rank decomposition, since both factors of a tensor (A and B) are computed from it.

    ``fits`` are the approximation errors of all decompositions so far, by the key of the tensor.
    """

    fits: dict[str, FactorFit] = field(default_factory=dict)
    _last: tuple[Any, Decomposition] | None = None

    def of(self, step: Step, parts: Sequence[Part]) -> Decomposition:
        """Return the low-rank decomposition of a step's first input minus its second input, or of their product."""
        assert step.factor is not None  # ensured by check_step
        which = (step.inputs, step.factor.rank, step.factor.seed, step.factor.of)
        if self._last is None or self._last[0] != which:
            self._last = None  # frees its memory before the next decomposition
            found, shape = _decomposed(step, step.factor, parts)
            self._last = which, found
            key = step.source_key.rpartition(".")[0] if step.factor.of in SIDES else step.source_key
            self.fits[step.source_key] = FactorFit(key, shape, step.factor.rank, found.error)
        return self._last[1]


def _decomposed(step: Step, factor: Factor, parts: Sequence[Part]) -> tuple[Decomposition, tuple[int, ...]]:
    """Return the decomposition of the matrix that a step approximates, and the shape of the weight, not flattened."""
    if factor.of == PRODUCT:
        a, b = (_matrix(part) for part in parts)
        return decompose_product(b, a, factor.rank), (len(b), *step.source_shape[1:])
    if factor.of in SIDES:
        found = decompose_composed(factor.of, _finite(parts, [one.key for one in step.inputs]), factor.rank)
        return found, (len(found.left), found.right.shape[1])
    matrix = step.source_shape[0], prod(step.source_shape[1:])
    return decompose(lambda: _differences(parts), matrix, factor.rank, factor.seed), step.source_shape


def _finite(parts: Sequence[Part], keys: Sequence[str]) -> list[Array]:
    """Return the tensors ``keys`` of a LoHa or LoKr as matrices; raises PlanError for values that are not finite."""
    matrices = [_matrix(part) for part in parts]
    for key, matrix in zip(keys, matrices, strict=True):
        if not np.isfinite(matrix).all():
            raise PlanError(
                f"the tensor {escape(key)} has values that are not finite.",
                hint="Leave the module out with --exclude.",
            )
    return matrices


def rank_with_energy(parts: Sequence[Part], energy: float, kind: str = "", keys: Sequence[str] = ()) -> int:
    """Return the smallest rank that keeps the share ``energy`` of the squared singular values of a module's change.

    ``parts`` are the factors A and B or, if ``kind`` is in ``SIDES``, the tensors ``keys`` of a LoHa or LoKr.
    """
    if kind:
        squares = composed_values(kind, _finite(parts, keys)) ** 2
    else:
        squares = singular_values(_matrix(parts[1]), _matrix(parts[0])) ** 2
    total = np.cumsum(squares)
    if not total[-1] > 0:
        return 1
    return int(np.searchsorted(total, energy * total[-1])) + 1


def factoring_places(step: Step) -> list[OutputBlock]:
    """Return a list with one block: the whole low-rank factor that a step makes, since such factors are small."""
    return [OutputBlock(0, 0, tuple((0, size) for size in step.shape))]


def factoring_bytes(step: Step) -> int:
    """Return the bytes of memory for computing the factors of a tensor."""
    assert step.factor is not None  # ensured by check_step
    if step.factor.of == PRODUCT:
        a, b = (one.shape for one in step.inputs)
        return 8 * elements_of_product(b[0], prod(a[1:]), a[0])
    if step.factor.of in SIDES:
        return 8 * elements_of_composed(step.factor.of, [one.shape for one in step.inputs], step.factor.rank)
    rows, columns = step.source_shape[0], prod(step.source_shape[1:])
    return max(FACTORING_ELEMENTS, columns) * BLOCK_BYTES + 8 * elements_held((rows, columns), step.factor.rank)


def factoring_reason(step: Step) -> str:
    """Return why computing the factors of a tensor takes memory, for messages."""
    assert step.factor is not None  # ensured by check_step
    if step.factor.of in SIDES:
        return "the singular value decomposition of a LoHa or LoKr is in memory"
    return "the low-rank factors of a difference are computed from blocks of rows in memory"


def factoring_passes(step: Step) -> int:
    """Return how many times a step reads its inputs to make a low-rank factor.

    This is 0 for the factor B, which is computed together with the factor A.
    """
    assert step.factor is not None  # ensured by check_step
    if step.factor.part == "B":
        return 0
    return PASSES if step.factor.of == DIFFERENCE else 1


def factoring_of(step: Step, parts: Sequence[Part], factors: FactorCache) -> Blockwise:
    """Return a function that computes a low-rank factor (A or B) of a difference, a product, or a LoHa or LoKr."""

    def block(place: OutputBlock, seen: Seen | None) -> tuple[Array, CastLosses]:
        assert step.factor is not None  # ensured by check_step
        with np.errstate(all="ignore"):  # values that are not finite raise an error later
            found = factors.of(step, parts)
        first = step.factor.part == ("A" if step.factor.transposed else "B")
        values = found.left if first else found.right
        values = values.T if step.factor.transposed else values
        made, lost = rounded(np.ascontiguousarray(values) / step.factor.divisor, "float64", step.dtype)
        if lost.infinite:
            raise PlanError(
                f"values of this LoRA factor exceed the range of {step.dtype}.", hint="Use --dtype float32."
            )
        return made.view(raw_dtype(step.dtype)), CastLosses()

    return block


def differ(first: Part, second: Part) -> bool:
    """Return whether two tensors with the same shape have different values."""
    files = [(info, banded(info, source)) for info, source in (first, second)]
    for box in blocks(first[0].shape, FACTORING_ELEMENTS):
        ours, theirs = (read_part(source, info, box) for info, source in files)
        if first[0].dtype != second[0].dtype:
            ours, theirs = cast(ours, first[0].dtype, "float64")[0], cast(theirs, second[0].dtype, "float64")[0]
        if not np.array_equal(ours.reshape(-1).view("u1"), theirs.reshape(-1).view("u1")):
            return True
    return False


def _differences(parts: Sequence[Part]) -> Iterator[Array]:
    """Yield blocks of rows of the first tensor minus the second; kernel dimensions of a convolution become columns."""
    (info, _), _ = parts
    for box in blocks(info.shape, max(FACTORING_ELEMENTS, prod(info.shape[1:]))):
        ours, theirs = (
            cast(read_part(source, one, box), one.dtype, "float64")[0].reshape(box_shape(box)[0], -1)
            for one, source in parts
        )
        yield ours - theirs
