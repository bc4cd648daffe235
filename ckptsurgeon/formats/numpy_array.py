"""Reads numpy's ``.npy``: one array, as a state dict whose only key is the file name without suffix."""

from __future__ import annotations

import hashlib
import os

from ..storage.read.base import File, Source
from ..tensors.info import Storage
from ._npy import MAGIC, npy_entry
from .base.header import FilePrint, Header, naming

__all__ = ["FORMAT"]

_HEAD_BYTES = (1 << 16) + 12


class _NumpyArray:
    name = "numpy"
    magic = (MAGIC,)

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with the magic bytes of an array."""
        return isinstance(source, File) and head.startswith(self.magic)

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of the file; raises FormatError if the file has more or fewer bytes than its array."""
        assert isinstance(source, File)
        head = source.read(0, min(_HEAD_BYTES, source.size))
        with naming(source):
            entry = npy_entry(head, Storage(name, 0, source.size, None, source.name))
        key = os.path.splitext(source.name)[0] or "array"
        return Header(
            format=self.name,
            tree={key: entry},
            files=(FilePrint.of(source, hashlib.sha256(head).hexdigest(), name),),
            handles={name: source},
        )


FORMAT = _NumpyArray()
