"""Finds the journals that interrupted changes of safetensors headers left; the module is fast to import."""

from __future__ import annotations

import os
import re
from contextlib import suppress

__all__ = ["SUFFIX", "journals_of"]

SUFFIX = "ckpt-headers"
"""The suffix of the name of a journal."""


def journals_of(path: str) -> tuple[str, list[str]]:
    """Return the folder ``path``, or the folder of the file ``path``, and the paths of this user's journals in it.

    A journal is left if a change of a safetensors header was interrupted.
    """
    folder = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    return folder, _journals(folder)


def _journals(folder: str) -> list[str]:
    name = re.compile(rf"\..+\.{SUFFIX}", re.DOTALL)
    with suppress(OSError):
        found = [entry for entry in os.scandir(folder) if name.fullmatch(entry.name)]
        return sorted(
            entry.path for entry in found
            if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        )  # fmt: skip
    return []
