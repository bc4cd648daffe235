"""Draws the values of tensors that one operation of torch fills: without constructing the module, and in pieces.

torch fills a tensor in row-major order from one stream of random numbers, and computes 16 normal values at a time from
16 random numbers (``normal_fill`` in aten/src/ATen/native/cpu/DistributionTemplates.h of
https://github.com/pytorch/pytorch). So if the size of the pieces is a multiple of 16 elements, the pieces get the same
values as the whole tensor. Each tensor has a separate generator, so several threads may draw.

Normal values of 16 bits are drawn in single precision and rounded, which takes two thirds of the time: torch does the
same, but not with vectors. Versions of torch that draw other values (``_rounds``) draw them themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from ...planning.target import Draw
from ...tensors.info import TensorInfo
from .recording.graph import derived_seed

__all__ = ["PIECE", "RANDOM", "TOGETHER", "Fill", "drawn_whole", "filler", "pieces_of"]

Fill: TypeAlias = Callable[[Tensor], None]
"""A function that fills a tensor with the next values of a stream."""
RANDOM = ("normal_", "uniform_")
"""The operations that draw random numbers."""
TOGETHER = 16
"""The number of elements that torch computes together, from the same number of random numbers."""
PIECE = 1 << 20
"""The approximate number of elements of a piece."""
ROUNDED = 1 << 15
"""The number of elements that are drawn in single precision at once: they fit in a core's cache, and for more of them
torch would start threads."""


def pieces_of(draw: Draw, info: TensorInfo, key: str, seed: int) -> Iterator[memoryview]:
    """Yield the initial values of a tensor in pieces of whole rows, in order, as bytes that the caller may change."""
    fill = filler(draw, key, seed)
    row = math.prod(info.shape[1:])
    for begin, end in _spans(info.numel, row):
        values = torch.empty(end - begin, dtype=getattr(torch, info.dtype), device="cpu")
        fill(values)
        yield values.view(torch.uint8).numpy().data


def drawn_whole(draw: Draw, info: TensorInfo, key: str, seed: int) -> memoryview:
    """Return the initial values of a tensor as bytes."""
    fill = filler(draw, key, seed)
    values = torch.empty(info.numel, dtype=getattr(torch, info.dtype), device="cpu")
    for begin, end in _spans(info.numel, math.prod(info.shape[1:])):
        fill(values[begin:end])
    return values.view(torch.uint8).numpy().data


def filler(draw: Draw, key: str, seed: int) -> Fill:
    """Return a function that fills a tensor with the next values of the stream of ``key``."""
    generator = torch.Generator(device="cpu").manual_seed(derived_seed(seed, key, 0))
    options = {"generator": generator} if draw.how in RANDOM else {}

    def fill(values: Tensor) -> None:
        if draw.how == "normal_" and values.numel() % TOGETHER == 0 and _rounds(values.dtype):
            _fill_rounded(values, draw, generator)
        else:
            getattr(values, draw.how)(*draw.numbers, **options)

    return fill


def _fill_rounded(values: Tensor, draw: Draw, generator: torch.Generator) -> None:
    """Fill a tensor of 16-bit floats with normal values that are drawn in single precision."""
    wide = torch.empty(min(ROUNDED, values.numel()), device="cpu")
    for begin in range(0, values.numel(), ROUNDED):
        part = values[begin : begin + ROUNDED]
        part.copy_(wide[: part.numel()].normal_(*draw.numbers, generator=generator))


@cache
def _rounds(dtype: torch.dtype) -> bool:
    """Return whether torch's normal values of a 16-bit dtype are its normal values of float32, rounded."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    drawn = [
        torch.empty(4 * TOGETHER, dtype=one, device="cpu").normal_(0.5, 2.0, generator=torch.Generator("cpu"))
        for one in (dtype, torch.float32)
    ]
    return torch.equal(drawn[0], drawn[1].to(dtype))


def _spans(size: int, row: int) -> Iterable[tuple[int, int]]:
    """Return ranges (begin, end) that divide ``size`` elements into pieces of whole rows of ``row`` elements.

    If ``size`` is not a multiple of ``TOGETHER``, torch computes the last values of the tensor twice. Then the tensor
    cannot be divided, and there is only one range.
    """
    if size % TOGETHER or not size:
        return [(0, size)]
    unit = math.lcm(row, TOGETHER)
    step = unit * max(1, PIECE // unit)
    return [(begin, min(begin + step, size)) for begin in range(0, size, step)]
