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
MATRICES, IN_FILE, FILES, VALUES = 32, 2, 256, 512
"""How many matrices are read, or how many of each file if that is more; how many files and values of each, at most."""
FEWEST = 2
"""The fewest matrices of codes for a note."""
DIFFERENT, LARGEST, INTEGER = 24, 32.0, 128.0
"""Codes of 8 bits have at least this many different magnitudes, up to at least 32; those of int8 have none above 128.

Decoded weights may have as few bits, if scales are powers of two, but they are not as large.
"""
SMALL, MOST = 5, 15
"""Whole numbers are codes of 4 bits if the largest magnitude is from 5 to 15, and most smaller ones occur, too."""
FOUR_BITS = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}
"""The magnitudes of 4-bit floats (e2m1)."""
COLUMNS = 64
"""The fewest columns of a matrix that is read."""


def cast_code_notes(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[str]:
    """Yield a note if the values of matrices are those of codes: 8-bit or 4-bit floats, or whole numbers.

    A program that casts all tensors of a quantised model, scales included, writes such files. Some values of a few
    matrices in each file are read. ``handles`` maps each ``Storage.file`` to the open file; remote files are not read.
    """
    found: dict[str, list[str]] = {}
    chosen = list(_chosen(tensors, handles))
    for key, file in chosen:
        with suppress(CheckpointError):  # the command reports it when it reads the values
            if kind := _kind(_some_values(file, tensors[key]), tensors[key].dtype):
                found.setdefault(kind, []).append(key)
    for kind, keys in found.items():
        if len(keys) >= FEWEST:
            yield (
                f"the values of {len(keys)} of {len(chosen)} matrices that were looked at are {kind}: perhaps they are "
                f"quantised codes that were cast without their scales: {listing(keys)}"
            )


def _chosen(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[tuple[str, File]]:
    """Yield the matrices to look at, and their files: some of each file, spread over the file."""
    by_file: dict[str, list[str]] = {}
    for key, info in tensors.items():
        if info.storage is not None:
            by_file.setdefault(info.storage.file, []).append(key)
    number = max(IN_FILE, MATRICES // max(1, len(by_file)))
    for name in list(by_file)[:: len(by_file) // FILES + 1]:
        file, keys = handles.get(name), by_file[name]
        if file is None or file.remote or file.closed or isinstance(file, ConsumedFile):
            continue
        some = [key for key in keys[:: len(keys) // (8 * number) + 1] if _is_matrix(tensors[key])]
        yield from ((key, file) for key in some[:: len(some) // number + 1])


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
    largest = max(values)
    if values <= FOUR_BITS and len(values) >= len(FOUR_BITS) - 1:
        return "4-bit floats"
    are_whole = all(one.is_integer() for one in values)
    if are_whole and SMALL <= largest <= MOST and len(values) > largest * 3 / 4:
        return f"whole numbers up to {largest:g}"
    if len(values) < DIFFERENT or not LARGEST <= largest < float("inf"):
        return ""
    if not any(one & ((1 << LOW_BITS[dtype]) - 1) for one in bits):
        return f"8-bit floats above {LARGEST:g}"
    return f"whole numbers above {LARGEST:g}" if are_whole and largest <= INTEGER else ""
