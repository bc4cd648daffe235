"""The tensors of two checkpoints that are compared by value, and the pairs that were found so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ....checkpoint.checkpoint import Checkpoint
from ....tensors.composition import cut, reshape
from ....tensors.info import TensorInfo
from ..operations.other_shapes import flat_shape
from ..operations.steps import Change
from .find_lines import Matrix
from .line_fingerprints import Lines, is_comparable, lines_of
from .rounded import rounded_lines

__all__ = ["EXPERTS", "Pairs", "Side"]

EXPERTS = 1024
"""Stacks of at most this many matrices are compared matrix by matrix."""
LEAST = 4
"""A matrix in a stack has at least this many rows and columns; kernels of convolutions have fewer."""


@dataclass(frozen=True)
class View:
    """A matrix of a model: a ``Matrix`` without the field ``lines``, the fingerprints of its rows and columns."""

    name: str
    info: TensorInfo
    stack: str = ""
    index: int = 0


@dataclass
class Side:
    """One of the two checkpoints: ``tensors`` are its tensors that can be compared, after a cast to ``dtype``."""

    checkpoint: Checkpoint
    dtype: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = {key: info for key, info in self.checkpoint.items() if is_comparable(info)}

    def matrices(self, left: dict[str, TensorInfo]) -> Iterator[View]:
        """Yield the matrices in ``left`` and in its stacks, without parts of quantised weights."""
        for key, info in left.items():
            shape = flat_shape(info.shape)
            if key in self.checkpoint.codes.by_key or 0 in shape:
                continue
            if len(shape) == 2:
                yield View(key, reshape(info, shape))
            elif len(shape) == 3 and shape[0] <= EXPERTS and min(shape[1:]) >= LEAST:
                for index in range(shape[0]):
                    yield View(f"{key}.{index}", reshape(cut(info, 0, index, 1), shape[1:]), key, index)


@dataclass
class Pairs:
    """The pairs so far: ``names`` has {source key: destination key} of renamed tensors, ``changes`` make the others.

    ``is_rounded`` is true if one checkpoint has float16 and the other bfloat16, so that equal numbers may be rounded
    differently. ``doubtful`` has (source keys, destination keys) of equal constant tensors, such as norms of ones,
    which values alone do not pair.
    """

    here: Side
    there: Side
    is_rounded: bool = False
    names: dict[str, str] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    doubtful: list[tuple[list[str], list[str]]] = field(default_factory=list)

    def matrices(self) -> tuple[list[Matrix], list[Matrix]]:
        """Return the matrices of both sides that have no partner yet, with the fingerprints of their lines."""
        left = self.undoubted()
        views = list(self.here.matrices(left[0])), list(self.there.matrices(left[1]))
        lines = self._lines(views[0], views[1])
        here, there = (
            [Matrix(one.name, one.info, found, one.stack, one.index) for one, found in zip(*both, strict=True)]
            for both in zip(views, lines, strict=True)
        )
        return here, there

    def _lines(self, here: Sequence[View], there: Sequence[View]) -> tuple[list[Lines], list[Lines]]:
        sources = self.here.checkpoint, self.there.checkpoint
        if self.is_rounded:
            return rounded_lines([(sources[0], one.info) for one in here], [(sources[1], one.info) for one in there])
        dtype = self.here.dtype
        first = [lines_of(sources[0], one.info, dtype) for one in here]
        return first, [lines_of(sources[1], one.info, dtype) for one in there]

    def sources(self) -> dict[str, TensorInfo]:
        """Return the tensors of the source that are not used yet."""
        used = {*self.names, *(key for change in self.changes for key in change.sources)}
        return {key: info for key, info in self.here.tensors.items() if key not in used}

    def destinations(self) -> dict[str, TensorInfo]:
        """Return the tensors of the destination that have no partner yet."""
        made = {*self.names.values(), *(key for change in self.changes for key in change.results.values())}
        return {key: info for key, info in self.there.tensors.items() if key not in made}

    def undoubted(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        """Return the tensors of both sides that have no partner yet and are not in ``doubtful``."""
        doubtful = [{key for pair in self.doubtful for key in pair[side]} for side in (0, 1)]
        return (
            {key: info for key, info in self.sources().items() if key not in doubtful[0] or info.numel == 1},
            {key: info for key, info in self.destinations().items() if key not in doubtful[1] or info.numel == 1},
        )

    def plain(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        """Return the tensors of ``undoubted`` that are not parts of quantised weights."""
        here, there = self.undoubted()
        return (
            {key: info for key, info in here.items() if key not in self.here.checkpoint.codes.by_key},
            {key: info for key, info in there.items() if key not in self.there.checkpoint.codes.by_key},
        )
