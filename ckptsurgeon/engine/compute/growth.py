"""Finds merged tensors whose values are far larger than in all inputs, as if the merge amplified rounding errors.

Methods with a ridge invert matrices of inputs: in directions with hardly any inputs, the inverse is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...planning.plan.step import Step
from ...util.text import count, escape, listing

if TYPE_CHECKING:
    from ...tensors.ops.regions import Array

__all__ = ["RIDGE", "Growths", "grown_notes", "largest_of"]

RIDGE = "ridge"
"""Only results of merge methods with this parameter are examined; a larger ridge makes the merged values smaller."""
FAR = 4.0
"""A tensor gets a note if its largest magnitude is more than this many times the largest magnitude of all inputs."""


def largest_of(arrays: Sequence[Array]) -> float:
    """Return the largest absolute value of arrays of numpy or torch; 0 if they are empty."""
    return max((max(float(one.max()), -float(one.min())) for one in arrays if 0 not in one.shape), default=0.0)


@dataclass(frozen=True)
class Growths:
    """The largest absolute values of the inputs and of the result of merged tensors, for each block of a tensor.

    ``blocks`` is {key: {index of a block: (largest value of the inputs, largest value of the result)}}. Several threads
    may add blocks.
    """

    blocks: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)

    def add(self, key: str, index: int, before: float, after: float) -> None:
        """Add the largest values of one block of a tensor: of its inputs (``before``), and of the result."""
        self.blocks.setdefault(key, {})[index] = before, after

    def grown(self) -> dict[str, float]:
        """Return {key: how many times as large the values became} for tensors whose values became far larger."""
        found = {}
        for key, blocks in self.blocks.items():
            before, after = (max(one) for one in zip(*blocks.values(), strict=True))
            if before > 0 and after > FAR * before:
                found[key] = after / before
        return found


def grown_notes(grown: Mapping[str, float], steps: Iterable[Step]) -> tuple[str, ...]:
    """Return a note on merged tensors whose values became far larger; ``steps`` made them."""
    used = (step.merge.parameters[RIDGE] for step in steps if step.key in grown and step.merge is not None)
    larger = max([0.01, *(10 * one for one in used if isinstance(one, (int, float)))])
    has = "has" if len(grown) == 1 else "have"
    texts = [f"{escape(key)} ({times:.3g} times)" for key, times in sorted(grown.items(), key=lambda one: -one[1])]
    return (
        f"{count(len(grown), 'merged tensor')} {has} values over {FAR:g} times as large as the largest of all inputs, "
        f"so the result may be useless: a larger ridge keeps it nearer to the models (--param {RIDGE}={larger:g}): "
        f"{listing(texts, where='')}",
    )
