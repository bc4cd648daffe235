"""Finds a file that has only one rank's part of the weights of Meta's Llama: the files of other ranks are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...tensors.info import TensorInfo
from ...util.text import count

__all__ = ["MISSING_RANKS", "missing_rank_notes"]

MISSING_RANKS = "has the weights of one rank of"
WIDTH, ROWS, COLUMNS = "norm.weight", "layers.0.attention.wq.weight", "layers.0.attention.wo.weight"
"""The keys of Meta's Llama: a norm, which each rank has whole, and two weights, split by rows and by columns."""


def missing_rank_notes(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield a note if the rows of the query weight and the columns of the output weight are 1/n of the model's width.

    In each of Meta's models, the heads of all ranks together are as wide as the model: so there are n ranks.
    """
    shapes = [tensors[key].shape if key in tensors else () for key in (WIDTH, ROWS, COLUMNS)]
    if [len(shape) for shape in shapes] != [1, 2, 2] or any(tensors[key].made for key in (WIDTH, ROWS, COLUMNS)):
        return
    (width,), (rows, _), (_, columns) = shapes
    ranks = width // rows if rows and width % rows == 0 else 0
    if ranks > 1 and columns * ranks == width:
        yield (
            f"the file {MISSING_RANKS} {ranks}: {ROWS} has {count(rows, 'row')}, and {WIDTH} {width} values; the other "
            f"files (consolidated.01.pth{' and so on' if ranks > 2 else ''}) are needed"
        )
