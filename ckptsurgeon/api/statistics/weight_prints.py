"""Digests that identify the weights of a checkpoint: digests of its files, and digests of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...storage.read.local import ConsumedFile
from ...tensors.composition import is_decoded, leaves
from ...tensors.info import TensorInfo
from ..inputs.stored_recipes import tail_of

__all__ = ["are_of", "weight_prints"]

PLACES, BYTES = 1024, 32
"""To recognise weights, ``BYTES`` bytes are read at each of ``PLACES`` positions, and in the middle of each tensor."""
FILES, TENSORS = "weights", "tensors"
"""The fields of the digests."""


def weight_prints(opened: Checkpoint) -> dict[str, list[str]]:
    """Return the digests of a checkpoint's files (``FILES``) and tensors (``TENSORS``; [] if remote or quantised)."""
    return {FILES: _of_files(opened), TENSORS: _of_tensors(opened)}


def are_of(said: Mapping[str, Any], opened: Checkpoint) -> bool:
    """Return whether the digests in ``said`` belong to the checkpoint ``opened``.

    If the digests of the files differ, those of the tensors may still be equal: a copy of a model may have other
    shards, or another format. Files of statistics of older versions have no digests of tensors.
    """
    return said.get(FILES) == _of_files(opened) or (bool(said.get(TENSORS)) and said[TENSORS] == _of_tensors(opened))


def _of_files(opened: Checkpoint) -> list[str]:
    """Return the digests of headers, of the last bytes, and of bytes at many positions of all files.

    Fine-tuning may change only some layers, so bytes at ``PLACES`` positions of each file are read.
    """
    return [*sorted(one.sha256 for one in opened.files), tail_of(opened), _sample_of_files(opened)]


def _sample_of_files(opened: Checkpoint) -> str:
    """Return the SHA-256 of bytes at evenly spread positions of a checkpoint's files; '' if the files are remote."""
    digest = hashlib.sha256()
    for _, file in sorted(opened.open_files().items()):
        if file.remote:
            return ""
        step = max(file.size // PLACES, BYTES)
        for at in range(0, file.size, step):
            digest.update(file.read(at, min(BYTES, file.size - at)))
    return digest.hexdigest()


def _of_tensors(opened: Checkpoint) -> list[str]:
    """Return two digests: one of all keys, dtypes and shapes, and one of some bytes of the values.

    Returns [] if the files are remote, or if the values of a tensor depend on more than its bytes.
    """
    if any(file.remote or isinstance(file, ConsumedFile) for file in opened.open_files().values()):
        return []
    stored = [(key, one) for key in sorted(opened) for one in leaves(opened[key]) if one.storage is not None]
    if any(one.opaque for _, one in stored) or any(map(is_decoded, opened.values())):
        return []
    names = hashlib.sha256(repr([(key, *_of_bytes(one)) for key, one in stored]).encode())
    values = hashlib.sha256()
    step = max(sum(one.nbytes for _, one in stored) // PLACES, BYTES)
    begin = 0
    for _, one in stored:
        for at in (one.nbytes // 2, *range(-begin % step, one.nbytes, step)):
            values.update(_bytes_at(opened, one, at))
        begin += one.nbytes
    return [names.hexdigest(), values.hexdigest()]


def _of_bytes(info: TensorInfo) -> tuple[object, ...]:
    """Return the properties of a stored tensor that determine its values in addition to its bytes.

    For example, a transposed view has the same bytes as the tensor, but other strides.
    """
    big_endian = info.storage is not None and info.storage.big_endian
    return info.dtype, tuple(info.shape), info.stride, info.conj, info.neg, big_endian


def _bytes_at(opened: Checkpoint, info: TensorInfo, at: int) -> bytes:
    """Return some bytes of a stored tensor, from the position ``at`` on."""
    assert info.storage is not None
    rest = min(info.nbytes, info.storage.nbytes - info.offset) - at  # a view may repeat elements
    return opened.file(info).read(info.storage.offset + info.offset + at, min(BYTES, rest)) if rest > 0 else b""
