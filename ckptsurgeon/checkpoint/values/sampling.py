"""Chooses the samples that notes read: some keys of each role, and the first and the last rows of a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY

__all__ = ["Read", "first_and_last_rows", "some_of_each_role"]

Read = Callable[[TensorInfo], bytes]
"""A function that returns the bytes of a tensor, or of a part of it."""


def some_of_each_role(keys: Iterable[str], most: int) -> Iterator[str]:
    """Yield at most ``most`` keys: the same number for each role (name without numbers), spread over its layers."""
    roles: dict[str, list[str]] = {}
    for key in keys:
        roles.setdefault(NUMBER_IN_KEY.sub("#", key), []).append(key)
    each = max(1, most // max(1, len(roles)))
    for some in [*roles.values()][:most]:
        number = min(each, len(some))
        yield from (some[at * len(some) // number] for at in range(number))


def first_and_last_rows(info: TensorInfo, most: int) -> Iterator[TensorInfo]:
    """Yield the tensor if it has at most ``most`` bytes; else its first rows and its last rows, at least one row each.

    The tensor must be plain (``TensorInfo.is_plain``). Together, the rows have about ``most`` bytes.
    """
    if info.nbytes <= most or not info.shape:
        yield info
        return
    row = info.itemsize * math.prod(info.shape[1:])
    rows = max(1, most // 2 // row)
    shape = (rows, *info.shape[1:])
    yield replace(info, shape=shape)
    yield replace(info, shape=shape, offset=info.offset + (info.shape[0] - rows) * row)
