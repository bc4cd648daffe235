"""Finds the files of a folder by their suffixes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..util.text import natural_key

__all__ = ["files_with"]


def files_with(suffixes: Sequence[str], folder: str) -> tuple[list[str], int]:
    """Return the paths of a folder's files with these suffixes, in natural order, and the number of its other files.

    Hidden files do not count, and subfolders are not read.
    """
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    files = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    found = sorted((name for name in files if name.lower().endswith(tuple(suffixes))), key=natural_key)
    return [os.path.join(folder, name) for name in found], len(files) - len(found)
