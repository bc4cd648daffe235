"""Samples the bytes of tensors, to find files that are copies of each other."""

from __future__ import annotations

from collections.abc import Mapping

from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.composition import leaves
from ...tensors.info import TensorInfo

__all__ = ["sample_of"]

SAMPLED, BYTES = 16, 512
"""How many tensors of each file are compared with other files, and how many bytes of each part of such a tensor."""


def sample_of(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> tuple[object, ...]:
    """Return some bytes of some tensors with their keys, to compare files; () if each tensor repeats one value.

    The bytes are from the middle of each tensor.
    """
    found = []
    varied = False
    for key in list(tensors)[:: len(tensors) // SAMPLED + 1]:
        for leaf in leaves(tensors[key]):
            storage = leaf.storage
            file = handles.get(storage.file) if storage is not None and leaf.is_plain else None
            if storage is not None and is_local(file):
                number = min(BYTES, leaf.nbytes) // leaf.itemsize
                at = storage.offset + leaf.offset + (leaf.nbytes // leaf.itemsize - number) // 2 * leaf.itemsize
                raw = file.read(at, number * leaf.itemsize)
                varied = varied or raw != raw[: leaf.itemsize] * number
                found.append((key, raw))
    return tuple(found) if varied else ()
