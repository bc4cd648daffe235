"""Whether two paths are one file: what is then put at the one is taken from the other."""

from __future__ import annotations

import os
from collections.abc import Iterator

__all__ = ["entries", "entry_of", "is_same_file"]

_MOST_LINKS = 40
"""How many links Linux follows (``path_resolution(7)``)."""


def is_same_file(source: str, path: str) -> bool:
    """Whether a file lies at ``path`` already, or leads through it: put there, it would become a link to itself.

    A link at ``path`` that merely ends where ``source`` does is another one. A hard link is the same file.
    """
    if not os.path.lexists(path):
        return False
    return entry_of(path) in entries(source) or (not os.path.islink(path) and os.path.samefile(source, path))


def entries(path: str) -> Iterator[str]:
    """Yield every name that opening a file goes through: its own, and those that it is a link to."""
    for _ in range(_MOST_LINKS):
        yield entry_of(path)
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def entry_of(path: str) -> str:
    """Return the one true name of a directory entry: that of its folder resolved, its own not."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder or "."), name)
