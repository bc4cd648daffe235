"""Extracts low-rank factors from the difference of two tensors, which is read in blocks of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ...errors import PlanError
from ...methods.lora.composed import SIDES
from ...methods.lora.composing import (
    composed_values,
    decompose_composed,
    decompose_stack,
    elements_of_composed,
    elements_of_stack,
    stack_pairs,
    stack_values,
)
from ...methods.lora.decomposition import (
    PASSES,
    Decomposition,
    decompose,
    decompose_product,
    elements_held,
    elements_of_product,
    singular_values,
)
from ...methods.lora.expert_stack import experts_of, is_stack, stack_sizes
from ...methods.lora.shared_basis import MergeInBasis, elements_of_knots, knots_product
from ...planning.plan.compute import DIFFERENCE, KNOTS, PRODUCT, Factor
from ...planning.plan.receipt import FactorFit
from ...planning.plan.step import Step
from ...tensors.ops.casts import CastLosses, cast, raw_dtype
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array, blocks, box_shape
from ...util.text import escape
from .column_bands import banded
from .random_numbers import random_numbers
from .reading import Blockwise, OutputBlock, Part, Seen, read_part
from .wide_matrices import matrix_of

__all__ = [
    "FactorCache",
    "differ",
    "factor_pairs",
    "factoring_bytes",
    "factoring_of",
    "factoring_passes",
    "factoring_places",
    "factoring_reason",
    "rank_with_energy",
]

FACTORING_ELEMENTS = 1 << 20
"""How many elements a block has, if the difference of two tensors is computed in blocks of rows."""

BLOCK_BYTES = 5 * 8
"""The bytes of memory for each element of a block: five doubles, for both tensors and for two blocks of differences."""

_FACTOR_NAME = re.compile(r"[._]lora(_embedding)?[._]([ABab]|down|up)(\.\w+)*$")
"""Matches the end of the key of a factor, after the name of the module: ``.lora_A.weight``, ``_lora.down.weight``."""


@dataclass
class FactorCache:
    """Caches the last low-rank decomposition, since both factors of a tensor (A and B) are computed from it.

    ``fits`` are the approximation errors of all decompositions so far, by the key of the tensor.
    """

    fits: dict[str, FactorFit] = field(default_factory=dict)
    _last: tuple[Any, Decomposition] | None = None

    def of(self, step: Step, parts: Sequence[Part]) -> Decomposition:
        """Return the low-rank decomposition of the matrix that a step approximates."""
        assert step.factor is not None  # ensured by check_step
        which = (step.inputs, replace(step.factor, part="A", scale=1.0))
        if self._last is None or self._last[0] != which:
            self._last = None  # frees its memory before the next decomposition
            found, shape = _decomposed(step, step.factor, parts)
            self._last = which, found
            self.fits[step.source_key] = FactorFit(_named(step, step.factor), shape, step.factor.rank, found.error)
        return self._last[1]


def _named(step: Step, factor: Factor) -> str:
    """Return the name under which the error of a decomposition is recorded: the key of the weight that changes.

    For LoHa, LoKr and the products of LoRAs, whose weights are not inputs, it is the name of the module.
    """
    if factor.of in SIDES:
        return step.source_key.rpartition(".")[0]
    is_product = factor.of in (PRODUCT, KNOTS) or is_stack(factor.of)
    return _FACTOR_NAME.sub("", step.source_key) if is_product else step.source_key


def _decomposed(step: Step, factor: Factor, parts: Sequence[Part]) -> tuple[Decomposition, tuple[int, ...]]:
    """Return the decomposition of the matrix that a step approximates, and the weight's shape before flattening."""
    if factor.of == PRODUCT:
        a, b = (matrix_of(part) for part in parts)
        return decompose_product(b, a, factor.rank), (len(b), *step.source_shape[1:])
    if is_stack(factor.of):
        a, b = (matrix_of(part) for part in parts)
        experts = experts_of(factor.of)
        return decompose_stack(a, b, experts, factor.rank), (experts, len(b), a.shape[1])
    if factor.of == KNOTS:
        every = [matrix_of(part) for part in parts]
        pairs = list(zip(every[1::2], every[::2], strict=True))
        found = knots_product(pairs, factor.weights, _merge_in_basis(factor, step.inputs[0].key), factor.rank)
        return found, (len(every[1]), *step.source_shape[1:])
    if factor.of in SIDES:
        found = decompose_composed(factor.of, _finite(parts, [one.key for one in step.inputs]), factor.rank)
        return found, (len(found.left), found.right.shape[1])
    matrix = step.source_shape[0], prod(step.source_shape[1:])
    return decompose(lambda: _differences(parts), matrix, factor.rank, factor.seed), step.source_shape


def _merge_in_basis(factor: Factor, key: str) -> MergeInBasis:
    """Return the settings with which KnOTS merges the products of a factor's inputs.

    The random numbers of DARE depend on ``key``. It is the key of the step's first input, so the steps of both factors
    (A and B) get the same numbers.
    """

    def uniform(model: int, shape: tuple[int, ...]) -> Array:
        return random_numbers(factor.seed, key, model, 0, shape)

    return MergeInBasis(factor.merge, factor.density, uniform)


def _finite(parts: Sequence[Part], keys: Sequence[str]) -> list[Array]:
    """Return the tensors of a LoHa or LoKr as matrices; raises PlanError if a value is not finite.

    ``keys`` are the keys of ``parts``, for the error.
    """
    matrices = [matrix_of(part) for part in parts]
    for key, matrix in zip(keys, matrices, strict=True):
        if not np.isfinite(matrix).all():
            raise PlanError(
                f"the tensor {escape(key)} has values that are not finite.",
                hint="Leave the module out with --exclude.",
            )
    return matrices


def rank_with_energy(parts: Sequence[Part], energy: float, kind: str = "", keys: Sequence[str] = ()) -> int:
    """Return the smallest rank that keeps the share ``energy`` of the sum of a change's squared singular values.

    ``parts`` are the factors A and B or, if ``kind`` is in ``SIDES``, the tensors ``keys`` of a LoHa or LoKr. For
    stacked experts, it is the smallest rank that keeps this share of the change of each expert.
    """
    if is_stack(kind):
        a, b = (matrix_of(part) for part in parts)
        return max(_rank_with_energy(values**2, energy) for values in stack_values(a, b, experts_of(kind)))
    if kind:
        squares = composed_values(kind, _finite(parts, keys)) ** 2
    else:
        squares = singular_values(matrix_of(parts[1]), matrix_of(parts[0])) ** 2
    return _rank_with_energy(squares, energy)


def _rank_with_energy(squares: Array, energy: float) -> int:
    total = np.cumsum(squares)
    if not total[-1] > 0:
        return 1
    return int(np.searchsorted(total, energy * total[-1])) + 1


def factor_pairs(factor: Factor, left: Array, right: Array) -> list[tuple[Array, Array]]:
    """Return the factors (out, rank) and (rank, in) whose product a change is: a pair for each of stacked experts."""
    return stack_pairs(right, left, experts_of(factor.of)) if is_stack(factor.of) else [(left, right)]


def factoring_places(step: Step) -> list[OutputBlock]:
    """Return a list with a single block, the whole factor that a step computes: low-rank factors are small."""
    return [OutputBlock(0, 0, tuple((0, size) for size in step.shape))]


def factoring_bytes(step: Step) -> int:
    """Return the bytes of memory for computing the factors of a tensor."""
    assert step.factor is not None  # ensured by check_step
    if step.factor.of == PRODUCT:
        a, b = (one.shape for one in step.inputs)
        return 8 * elements_of_product(b[0], prod(a[1:]), a[0])
    if is_stack(step.factor.of):
        sizes = stack_sizes(step.factor.of, [one.shape for one in step.inputs])
        assert sizes is not None  # ensured by check_step
        return 8 * elements_of_stack(*sizes, experts_of(step.factor.of))
    if step.factor.of == KNOTS:
        ranks = [one.shape[0] for one in step.inputs[::2]]
        return 8 * elements_of_knots(step.inputs[1].shape[0], prod(step.source_shape[1:]), ranks)
    if step.factor.of in SIDES:
        return 8 * elements_of_composed(step.factor.of, [one.shape for one in step.inputs], step.factor.rank)
    rows, columns = step.source_shape[0], prod(step.source_shape[1:])
    return max(FACTORING_ELEMENTS, columns) * BLOCK_BYTES + 8 * elements_held((rows, columns), step.factor.rank)


def factoring_reason(step: Step) -> str:
    """Return a text for messages that says why computing the factors of a tensor takes memory."""
    assert step.factor is not None  # ensured by check_step
    if step.factor.of in SIDES:
        return "the singular value decomposition of a LoHa or LoKr is in memory"
    if step.factor.of == KNOTS:
        return "the changes of all adapters are in memory, in the basis that they share"
    return "the low-rank factors of a difference are computed from blocks of rows in memory"


def factoring_passes(step: Step) -> int:
    """Return how many times a step reads its inputs to make a low-rank factor.

    It is 0 for the factor B, which is computed together with the factor A.
    """
    assert step.factor is not None  # ensured by check_step
    if step.factor.part == "B":
        return 0
    return PASSES if step.factor.of == DIFFERENCE else 1


def factoring_of(step: Step, parts: Sequence[Part], factors: FactorCache) -> Blockwise:
    """Return a function that computes one factor, A or B, of a low-rank approximation of a matrix.

    The function raises PlanError if a value of the factor is out of the range of its dtype.
    """

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
    """Yield the first tensor minus the second as a matrix, in blocks of rows; kernel dimensions become columns."""
    (info, _), _ = parts
    for box in blocks(info.shape, max(FACTORING_ELEMENTS, prod(info.shape[1:]))):
        ours, theirs = (
            cast(read_part(source, one, box), one.dtype, "float64")[0].reshape(box_shape(box)[0], -1)
            for one, source in parts
        )
        yield ours - theirs
