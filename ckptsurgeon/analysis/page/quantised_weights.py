"""The quantised weights of a page: for each row of codes, its weight, and the rows with its scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..inspection import Inspection
from .columns import Places

__all__ = ["coded_of"]


def coded_of(
    found: Inspection, places: Places, outermost: Mapping[str, tuple[int, int] | None]
) -> dict[str, Any] | None:
    """Return the quantised weights as plain data; None if there are none. ``places`` maps each key to its row.

    ``weights`` has, for each row of codes, the index of its method in ``methods``, the shape of the decoded weight
    (None if it is not known), and what ``outermost`` has for the key of the codes (None if nothing): how many codes are
    the lowest or the highest, and how many there are. ``parts`` has, for each row of scales and other parts, the row of
    the codes.
    """
    methods: dict[str, int] = {}
    weights, parts = [], []
    for one in found.codes.tensors:
        row = places.get(one.codes)
        if row is None:
            continue
        shape = None if one.shape is None else list(one.shape)
        weights.append([row, methods.setdefault(one.method, len(methods)), shape, outermost.get(one.codes)])
        parts += [[places[key], row] for key in one.keys if key != one.codes and key in places]
    return {"methods": list(methods), "weights": weights, "parts": parts} if weights else None
