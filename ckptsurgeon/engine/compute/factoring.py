"""Takes low-rank factors from the difference of two tensors, which is read in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any

import numpy as np

from ...errors import PlanError
from ...methods.lora.decomposition import PASSES, Decomposition, decompose, elements_held
from ...planning.plan.receipt import Fit
from ...planning.plan.step import Step
from ...tensors.ops.boxes import Array, blocks, box_shape
from ...tensors.ops.casts import Lost, cast, raw_dtype
from ...tensors.ops.means import rounded
from .part import Blockwise, Part, Place, Seen
from .reading import read_part

__all__ = ["Factors", "differ", "factoring_bytes", "factoring_of", "factoring_passes", "factoring_places"]

ELEMENTS = 1 << 20
"""Elements of a block of rows."""

BLOCK_BYTES = 5 * 8
"""Bytes for each of them: of both tensors in double precision, one as it is stored, their difference, the last one."""


@dataclass
class Factors:
    """The last decomposition, whose second factor follows the first, and how well each of them fits."""

    fits: dict[str, Fit] = field(default_factory=dict)
    _last: tuple[Any, Decomposition] | None = None

    def of(self, step: Step, parts: Sequence[Part]) -> Decomposition:
        """Return the decomposition that a step's factor is of."""
        assert step.factor is not None  # by check_step
        which = (step.inputs, step.factor.rank, step.factor.seed)
        if self._last is None or self._last[0] != which:
            matrix = step.source_shape[0], prod(step.source_shape[1:])
            self._last = None  # its memory is that of the next one
            found = decompose(lambda: _differences(parts), matrix, step.factor.rank, step.factor.seed)
            self._last = which, found
            self.fits[step.source_key] = Fit(step.source_key, step.source_shape, step.factor.rank, found.error)
        return self._last[1]


def factoring_places(step: Step) -> list[Place]:
    """Return the one block in which a factor is made: it is small."""
    return [Place(0, 0, tuple((0, size) for size in step.shape))]


def factoring_bytes(step: Step) -> int:
    """Return the bytes that it takes to make the factors of a tensor."""
    assert step.factor is not None  # by check_step
    rows, columns = step.source_shape[0], prod(step.source_shape[1:])
    return max(ELEMENTS, columns) * BLOCK_BYTES + 8 * elements_held((rows, columns), step.factor.rank)


def factoring_passes(step: Step) -> int:
    """Return how often the tensors are read: the second factor is made with the first."""
    assert step.factor is not None  # by check_step
    return PASSES if step.factor.part == "A" else 0


def factoring_of(step: Step, parts: Sequence[Part], factors: Factors) -> Blockwise:
    """Return what makes a factor of the first input minus the second."""

    def block(place: Place, seen: Seen | None) -> tuple[Array, Lost]:
        assert step.factor is not None  # by check_step
        with np.errstate(all="ignore"):  # what is not finite raises
            found = factors.of(step, parts)
        first = step.factor.part == ("A" if step.factor.transposed else "B")
        values = found.left if first else found.right
        values = values.T if step.factor.transposed else values
        made, lost = rounded(np.ascontiguousarray(values) / sqrt(step.factor.scale), "float64", step.dtype)
        if lost.infinite:
            raise PlanError(f"its factors are beyond {step.dtype}.", hint="Use --dtype float32.")
        return made.view(raw_dtype(step.dtype)), Lost()

    return block


def differ(first: Part, second: Part) -> bool:
    """Whether two tensors of one shape hold different values."""
    for box in blocks(first[0].shape, ELEMENTS):
        ours, theirs = (read_part(source, info, box) for info, source in (first, second))
        if first[0].dtype != second[0].dtype:
            ours, theirs = cast(ours, first[0].dtype, "float64")[0], cast(theirs, second[0].dtype, "float64")[0]
        if not np.array_equal(ours.reshape(-1).view("u1"), theirs.reshape(-1).view("u1")):
            return True
    return False


def _differences(parts: Sequence[Part]) -> Iterator[Array]:
    """Yield blocks of rows of the first tensor minus the second; a kernel lies along the columns."""
    (info, _), _ = parts
    for box in blocks(info.shape, max(ELEMENTS, prod(info.shape[1:]))):
        ours, theirs = (
            cast(read_part(source, one, box), one.dtype, "float64")[0].reshape(box_shape(box)[0], -1)
            for one, source in parts
        )
        yield ours - theirs
