"""Finds chunks and arrays that an item of an Orbax checkpoint lacks; no file of the checkpoint lists all its files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import product
from math import prod

from ..base import limits
from .stores import ChunkStore
from .zarr import ZarrArray

__all__ = ["arrays_without_metadata", "missing_chunks"]

_CHUNK = re.compile(r"(?:c/)?[0-9]+(?:[./][0-9]+)*")
"""The name of a chunk in the folder of its array."""


def missing_chunks(array: ZarrArray, store: ChunkStore, prefix: str) -> int:
    """Return the number of chunks of an array that ``store`` lacks; their keys begin with ``prefix``.

    Returns 0, without a search, if the array has more than ``limits.ORBAX_FILES`` chunks.
    """
    counts = [-(-size // step) for size, step in zip(array.shape, array.chunk, strict=True)]
    if prod(counts) > limits.ORBAX_FILES:
        return 0
    return sum(not store.has(f"{prefix}{array.key_of(place)}") for place in product(*map(range, counts)))


def arrays_without_metadata(files: Iterable[str], arrays: Collection[str]) -> list[str]:
    """Return the folders that contain chunks, but are not in ``arrays``; ``files`` are the paths of all files."""
    found = {}
    for path in files:
        name, _, rest = path.partition("/")
        if name not in arrays and _CHUNK.fullmatch(rest):
            found[name] = True
    return list(found)
