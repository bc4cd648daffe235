"""A note on matrices that --on-mismatch resizes or initialises, but that look transposed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..keys.transposed import is_transposed, square_siblings, transposed_note
from ..plan.step import Step
from .by_place import ShapeChange

__all__ = ["transposed_notes"]


def transposed_notes(changes: Iterable[ShapeChange], steps: Iterable[Step]) -> Iterator[str]:
    """Yield the note if shapes among ``changes`` are each other's transpose.

    ``steps`` are the steps of all tensors; square matrices that they copy may be transposed, too.
    """
    turned = [one for one in changes if is_transposed(one.have, one.want)]
    if turned:
        copied = {step.source_key: step.source_shape for step in steps if step.op == "copy"}
        flat = [one.source_key for one in turned if len(one.have) == 2]
        yield transposed_note([one.source_key for one in turned], square_siblings(flat, copied))
