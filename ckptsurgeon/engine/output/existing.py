"""Finds the files of a checkpoint that are already in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from ...formats._open import writers
from ...formats.base.sharded_writer import RECIPE_FILE
from ...storage.small_files import open_file

__all__ = ["INDEX_BYTES", "checkpoint_files", "existing_checkpoint"]

INDEX_BYTES = 1 << 30
"""The most bytes that are read of a file of the folder, such as an index."""


def existing_checkpoint(path: str) -> list[str]:
    """Return the names of all checkpoint files in a folder, of any format, and of its recipe."""
    if not os.path.isdir(path):
        return []
    return checkpoint_files(os.listdir(path), lambda name: _content(os.path.join(path, name)))


def checkpoint_files(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Return which of the files ``names`` of a folder belong to a checkpoint of any format.

    ``read`` returns the content of a file; it may raise OSError.
    """
    present = set(names)
    found = present & {RECIPE_FILE}
    for writer in writers().values():
        found |= writer.sharding.family(present, read)
    return sorted(found)


def _content(path: str) -> bytes:
    with open_file(path) as file:
        return file.read(min(os.fstat(file.fileno()).st_size, INDEX_BYTES))  # read(n) allocates n bytes at once
