"""Reads small parts of weights, for notes by verbs that otherwise plan from headers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...storage.read.base import File
from ...storage.read.local import is_local as is_local_file
from ...tensors.dtypes import DTYPES
from ...tensors.info import Decoded, TensorInfo
from ...tensors.odd_scales.collected import OddScales

if TYPE_CHECKING:
    from ...tensors.ops.regions import Array, Box  # imports numpy

__all__ = ["SampledFiles", "is_local", "is_sampled", "middle", "numbers", "rows_of_group", "spread"]

ROWS, COLUMNS, ALIGNED = 16, 128, 256
"""How many rows and columns in the middle of a matrix are read; the first column is a multiple of the third number.

Of a layer with 4096 inputs in 16 bits, at most 128 kB are read: the stored rows between the first and the last.
"""
SMALLEST = 64
"""The fewest rows and columns of a matrix that is read."""

LARGEST = 256
"""The most rows of a block of quantised weights that is decoded whole."""


@dataclass
class SampledFiles:
    """The open files of a checkpoint, for reading samples of its tensors.

    Odd scales in the samples are recorded in this object, not in the checkpoint.
    """

    checkpoint: Checkpoint
    odd_scales: OddScales = field(default_factory=OddScales)

    def file(self, info: TensorInfo) -> File:
        """Return the open file that stores a tensor."""
        return self.checkpoint.file(info)


def is_local(checkpoint: Checkpoint) -> bool:
    """Return whether all files of a checkpoint are local and open, and the run does not delete them (``consume``)."""
    return all(map(is_local_file, checkpoint.open_files().values()))


def is_sampled(info: TensorInfo) -> bool:
    """Return whether a tensor is a matrix of real numbers, or a stack of them, that is large enough for a sample."""
    dtype = DTYPES[info.dtype]
    is_large = 2 <= len(info.shape) <= 3 and min(info.shape[-2:]) >= SMALLEST and info.shape[0] > 0
    return is_large and dtype.kind == "float" and not dtype.is_packed and not info.opaque


def rows_of_group(info: TensorInfo) -> int:
    """Return how many rows of a quantised matrix share a scale; 1 if they are more than ``LARGEST``, or not known."""
    facts = dict(info.made.facts) if isinstance(info.made, Decoded) else {}
    rows = int(facts.get(f"step{len(info.shape) - 2}", 1))
    return rows if rows <= LARGEST else 1


def spread(keys: Sequence[str], most: int) -> list[str]:
    """Return at most ``most`` keys, evenly spread."""
    number = min(most, len(keys))
    return [keys[at * len(keys) // number] for at in range(number)]


def middle(
    shape: Sequence[int], rows: int = ROWS, columns: int = COLUMNS, *, multiple: int = 1, is_end: bool = False
) -> Box:
    """Return the slices of a box in the middle of a matrix; for stacked matrices, in the middle of the first one.

    The first row is a multiple of ``multiple``. If ``is_end`` is true, the rows are some of the last ones.
    """
    *lead, height, width = shape
    row = max(0, height - rows) // (1 if is_end else 2) // multiple * multiple
    column = max(0, width - columns) // 2 // ALIGNED * ALIGNED  # groups of quantised weights begin there
    return (*((0, 1) for _ in lead), (row, min(height, row + rows)), (column, min(width, column + columns)))


def numbers(checkpoint: Checkpoint, key: str, box: Box) -> Array:
    """Return a part of a tensor in double precision; raises CheckpointError if it cannot be read."""
    from ...engine.compute.reading import read_part  # imports numpy
    from ...tensors.ops.casts import cast

    info = checkpoint[key]
    found: Array = cast(read_part(SampledFiles(checkpoint), info, box), info.dtype, "float64")[0]
    return found
