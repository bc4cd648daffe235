"""Small files, read whole: configurations and token lists, of this machine or at an address."""

from __future__ import annotations

from contextlib import closing

from ...errors import SourceError
from ...util.text import escape, human_bytes
from ..small_files import SMALL_BYTES
from .base import File
from .uri import open_source

__all__ = ["SMALL_BYTES", "read_small"]


def read_small(path: str, most: int = SMALL_BYTES) -> bytes:
    """Return the bytes of a file of at most that size; raises SourceError if it is missing, larger or not regular."""
    source = open_source(path)
    if not isinstance(source, File):
        raise SourceError(f"{escape(path)} is a folder.")
    with closing(source) as file:
        if file.size > most:
            raise SourceError(f"{escape(path)} has {human_bytes(file.size)}; at most {human_bytes(most)} are read.")
        return file.read(0, file.size)
