"""Links: what lies beside the weights of a model is its own only if it lies in its folder."""

from __future__ import annotations

import os
import re

from .uri import scheme_of

__all__ = ["leads_out"]

_LOCAL = ("", "file", "local")
_CACHED = re.compile(r"(.+/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/.+)?")
_BLOB = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""A folder of the hub's cache, whose files are links to blobs, which are called by their digest."""


def leads_out(path: str) -> bool:
    """Whether a file is, by links, one that lies elsewhere than in the folder of its path.

    The folder itself may be a link: its user named it. A file of the hub's cache lies among the blobs beside it.
    """
    if scheme_of(path) not in _LOCAL:
        return False
    path = path.partition("://")[2] or path
    folder, file = os.path.realpath(os.path.dirname(path) or os.curdir), os.path.realpath(path)
    if file.startswith(os.path.join(folder, "")):
        return False
    cached = _CACHED.fullmatch(folder)
    blobs, name = os.path.split(file)
    return cached is None or blobs != f"{cached[1]}/blobs" or not _BLOB.fullmatch(name)
