"""Finds weights that are quantised codes which were cast to a wider dtype without their scales."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress

from ..errors import CheckpointError
from ..storage.read.base import File
from ..storage.read.local import ConsumedFile
from ..tensors.info import TensorInfo
from ..util.text import listing

__all__ = ["cast_code_notes"]

LOW_BITS = {"bfloat16": 4, "float16": 7, "float32": 20}
"""How many more bits the mantissas of a dtype have than those of 8-bit floats (e4m3, with three bits)."""
KEYS, MATRICES, VALUES = 64, 8, 512
"""How many keys are looked at, how many matrices among them are read, and how many values of each, at most."""
FEWEST = 2
"""The fewest matrices of codes for a note."""
DIFFERENT, LARGEST, INTEGER = 24, 32.0, 128.0
"""Codes have at least this many different magnitudes, up to at least 32; codes of int8 have none above 128.

Decoded weights may have as few bits, if scales are powers of two, but they are not as large.
"""
COLUMNS = 64
"""The fewest columns of a matrix that is read."""


def cast_code_notes(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[str]:
    """Yield a note if the values of matrices are those of codes: 8-bit floats or integers, far too large for weights.

    A program that casts all tensors of a quantised model, scales included, writes such files. Some values of a few
    matrices are read. ``handles`` maps each ``Storage.file`` to the open file; remote files are not read.
    """
    found: dict[str, list[str]] = {}
    read = 0
    for key in list(tensors)[:: len(tensors) // KEYS + 1]:
        info = tensors[key]
        file = handles.get(info.storage.file) if info.storage is not None else None
        if file is None or file.remote or file.closed or isinstance(file, ConsumedFile) or not _is_matrix(info):
            continue
        with suppress(CheckpointError):  # the command reports it when it reads the values
            if kind := _kind(_some_values(file, info), info.dtype):
                found.setdefault(kind, []).append(key)
        read += 1
        if read == MATRICES:
            break
    for kind, keys in found.items():
        if len(keys) >= FEWEST:
            yield (
                f"the values of {len(keys)} of {read} matrices that were looked at are {kind} above {LARGEST:g}: "
                f"perhaps they are quantised codes that were cast without their scales: {listing(keys)}"
            )


def _is_matrix(info: TensorInfo) -> bool:
    shape = info.shape
    return len(shape) > 1 and shape[-1] >= COLUMNS and info.numel >= VALUES and info.dtype in LOW_BITS and info.is_plain


def _some_values(file: File, info: TensorInfo) -> bytes:
    """Return values in the middle of a matrix."""
    assert info.storage is not None
    begin = (info.numel - VALUES) // 2 * info.itemsize
    return file.read(info.storage.offset + info.offset + begin, VALUES * info.itemsize)


def _kind(raw: bytes, dtype: str) -> str:
    """Return what the values are if they seem to be codes, else ''."""
    wide = dtype == "float32"
    bits = struct.unpack(f"<{VALUES}{'I' if wide else 'H'}", raw)
    if dtype == "bfloat16":
        raw = struct.pack(f"<{VALUES}I", *(one << 16 for one in bits))
    values = {abs(one) for one in struct.unpack(f"<{VALUES}{'e' if dtype == 'float16' else 'f'}", raw)}
    if len(values) < DIFFERENT or not LARGEST <= max(values) < float("inf"):
        return ""
    if not any(one & ((1 << LOW_BITS[dtype]) - 1) for one in bits):
        return "8-bit floats"
    return "whole numbers" if max(values) <= INTEGER and all(one.is_integer() for one in values) else ""
