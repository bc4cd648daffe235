"""Draws only the initial values that a source lacks, if one operation of torch fills the tensor.

A tensor that ``resize`` makes larger has most of its values from the source. Random numbers take most of the time, so
none are drawn for these values: the missing values get the first numbers of the tensor's stream, in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from ...planning.target import Draw
from ...tensors.info import TensorInfo
from .simple_draws import PIECE, TOGETHER, Fill, filler, pieces_of

__all__ = ["drawn_pieces"]


def drawn_pieces(
    draw: Draw, info: TensorInfo, key: str, seed: int, had: Sequence[int] | None = None
) -> Iterator[memoryview]:
    """Yield the initial values of a tensor in pieces of whole rows, in order, as bytes that the caller may change.

    ``had`` is the shape of the smaller tensor in the source, which gives the first values along each dimension. In the
    result, these values are 0, and only the others are drawn. If, apart from the first dimension, the tensor is larger
    in more than one dimension, or if ``had`` is None, all values are drawn.
    """
    if had is None or sum(a != b for a, b in zip(had[1:], info.shape[1:], strict=True)) > 1:
        return pieces_of(draw, info, key, seed)
    return _missing(draw, info, had, key, seed)


def _missing(draw: Draw, info: TensorInfo, had: Sequence[int], key: str, seed: int) -> Iterator[memoryview]:
    fill, shape = filler(draw, key, seed), info.shape
    dim = next((d for d in range(1, len(shape)) if had[d] < shape[d]), 0)
    yield from _rows(fill, info, had[0], dim, had[dim] if dim else 0)
    yield from _rows(fill, info, shape[0] - had[0], 0, 0, is_new=True)


def _rows(
    fill: Fill, info: TensorInfo, number: int, dim: int, begin: int, *, is_new: bool = False
) -> Iterator[memoryview]:
    """Yield the next ``number`` rows in pieces; from index ``begin`` of dimension ``dim`` on, values are drawn; else 0.

    If ``dim`` is 0, all values are drawn if ``is_new`` is true, and none if it is false.
    """
    inner = list(info.shape[1:])
    if dim:
        inner[dim - 1] -= begin
    drawn = math.prod(inner) if dim or is_new else 0
    for rows in _numbers(number, drawn, math.prod(info.shape[1:])):
        values = torch.zeros((rows, *info.shape[1:]), dtype=getattr(torch, info.dtype), device="cpu")
        if drawn:
            new = torch.empty(rows * drawn, dtype=values.dtype, device="cpu")
            fill(new)
            values.narrow(dim, begin, values.shape[dim] - begin).copy_(new.view(rows, *inner))
        yield values.view(-1).view(torch.uint8).numpy().data


def _numbers(rows: int, drawn: int, size: int) -> Iterator[int]:
    """Yield the number of rows of each piece; a row has ``size`` elements, of which ``drawn`` are drawn.

    In each piece but the last, the number of drawn elements is a multiple of ``TOGETHER``.
    """
    unit = TOGETHER // math.gcd(TOGETHER, drawn)
    step = rows if rows * drawn % TOGETHER else unit * max(1, PIECE // max(1, unit * size))
    for begin in range(0, rows, max(1, step)):
        yield min(step, rows - begin)
