"""Reads the values of a tensor, and holds them against its checksum."""

from __future__ import annotations

import numpy as np

from ...engine.run.checksums import crc32
from ...errors import FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...tensors.ops.casts import count_special, raw_dtype
from .check import Check
from .differences import BLOCK, reader
from .origins import compare

__all__ = ["check_values"]


def check_values(check: Check, key: str) -> None:
    """Hold one tensor against its checksum, then against what it was made from."""
    info, made = check.output[key], check.expected.tensors[key]
    if info.opaque:
        raise FormatError(f"its values cannot be read: {info.opaque}.")
    crc = _read_through(check, info)
    if check.expected.has_checksums and crc != made.crc32:
        check.fail(key, f"has CRC-32 {crc:08x} where {made.crc32:08x} was recorded")
        return
    storage = info.storage
    whole_record = storage is not None and info.is_plain and info.nbytes == storage.nbytes
    if storage is not None and whole_record and storage.crc32 not in (None, crc):
        check.fail(key, "does not have the checksum of its record")
        return
    compare(check, key, info, made)
    check.advance(info.nbytes)


def _read_through(check: Check, info: TensorInfo) -> int:
    """Return the CRC-32 of a tensor's bytes, counting NaN and Inf on the way."""
    read, floating = reader(check.output, info), DTYPES[info.dtype].kind in ("float", "complex")
    crc = 0
    for done in range(0, info.nbytes, BLOCK):
        data = read(done, min(BLOCK, info.nbytes - done))
        crc = crc32(data, crc)
        if floating:
            nan, inf = count_special(np.frombuffer(data, raw_dtype(info.dtype)), info.dtype)
            check.nan, check.inf = check.nan + nan, check.inf + inf
        check.advance(len(data))
    return crc
