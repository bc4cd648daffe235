"""Finds the images or sounds of a folder by their suffixes, within a limit."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ....errors import ConfigError
from ....storage.folder_files import files_with
from ....util.text import escape

__all__ = ["files_of"]

MOST = 1024
"""The largest number of images or sounds of a batch, which runs at once."""


def files_of(path: str, suffixes: Sequence[str], what: str) -> tuple[list[str], int]:
    """Return the files with these suffixes of the folder ``path``, and the number of its other files.

    If ``path`` is a single file, it is the only file of the result. Raises ConfigError if there are too many files; in
    its message, ``what`` is the word for the files, such as "images".
    """
    if not os.path.isdir(path):
        return [path], 0
    names, left_out = files_with(suffixes, path)
    if len(names) > MOST:
        raise ConfigError(
            f"the folder {escape(path)} has {len(names):,} {what}, but at most {MOST:,} are allowed.",
            hint="Give a folder with fewer files: all of them run in one batch.",
        )
    return names, left_out
