"""Fingerprints of all rows and columns of a matrix, which is read once, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....checkpoint.checkpoint import Checkpoint
from ....engine.compute.column_bands import banded
from ....engine.compute.reading import read_part
from ....tensors.dtypes import DTYPES
from ....tensors.info import TensorInfo
from ....tensors.ops.casts import cast
from ....tensors.ops.regions import Array, Box, blocks

__all__ = [
    "ELEMENTS",
    "HALVES",
    "Lines",
    "agreement",
    "bits_of",
    "common_dtype",
    "ends_of",
    "is_comparable",
    "lines_of",
    "mixed",
    "numbers_of",
    "sample_of",
]

Hashes = npt.NDArray[np.uint64]
ELEMENTS = 1 << 18
"""At most this many elements of a tensor are in memory at once."""
HALVES = {"float16", "bfloat16"}
SAMPLE = 1 << 12
"""A sample has at most this many elements at the beginning of a tensor, and as many at its end."""
_PRECISION = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Floating-point types, the most precise first."""


@dataclass(frozen=True)
class Lines:
    """The fingerprints of the rows and of the columns of a matrix; equal lines have equal fingerprints."""

    rows: Hashes
    columns: Hashes


def is_comparable(info: TensorInfo) -> bool:
    """Return whether the values of a tensor can be compared with values of another dtype or form."""
    return not info.opaque and not DTYPES[info.dtype].is_packed and DTYPES[info.dtype].kind not in ("quantized", "bits")


def common_dtype(one: str, other: str) -> str:
    """Return the dtype in which values of two dtypes are compared: of two float types, the less precise; '' if none."""
    if one == other:
        return one
    if one not in _PRECISION or other not in _PRECISION:
        return ""
    return max(one, other, key=_PRECISION.index)


def bits_of(values: Array, dtype: str, wanted: str) -> npt.NDArray[np.uint64]:
    """Return the bits of values after a cast to ``wanted``, as integers: two for a complex128 value, otherwise one."""
    if common_dtype(dtype, wanted) == wanted:
        values = cast(values, dtype, wanted)[0]
    plain = np.ascontiguousarray(values)
    if plain.dtype.kind == "c":
        return plain.view(np.uint64)
    return plain.view(f"u{plain.itemsize}").astype(np.uint64)


def numbers_of(bits: npt.NDArray[np.uint64], box: Sequence[tuple[int, int]]) -> npt.NDArray[np.uint64]:
    """Return an integer for each element of the part ``box`` of a matrix, made from its ``bits``; 1 for a zero."""
    parts = bits.reshape(*(end - begin for begin, end in box), -1)
    return parts @ _weights(1, 1 + parts.shape[-1]) + np.uint64(1) if parts.shape[-1] > 1 else bits + np.uint64(1)


def _weights(begin: int, end: int) -> Hashes:
    """Return a pseudo-random odd factor for each position in a line."""
    return mixed(np.arange(begin + 1, end + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def mixed(state: Hashes) -> Hashes:
    """Return a pseudo-random number for each number (SplitMix64, https://prng.di.unimi.it/splitmix64.c)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def lines_of(source: Checkpoint, info: TensorInfo, dtype: str) -> Lines:
    """Return the fingerprints of the lines of a matrix, after a cast to ``dtype``, the common dtype of two models."""
    rows, columns = np.zeros(info.shape[0], np.uint64), np.zeros(info.shape[1], np.uint64)
    files = banded(info, source)
    for box in blocks(info.shape, ELEMENTS):
        (top, bottom), (left, right) = box
        bits = numbers_of(bits_of(read_part(files, info, box), info.dtype, dtype), box)
        rows[top:bottom] += bits @ _weights(left, right)
        columns[left:right] += _weights(top, bottom) @ bits
    return Lines(rows, columns)


def sample_of(source: Checkpoint, info: TensorInfo, dtype: str) -> tuple[bytes, bool]:
    """Return (digest of the first and last elements of a tensor, whether all elements of the tensor are equal).

    If the first and last elements are all equal, for example zeros of padding, the digest is of all elements.
    """
    digest, is_constant = _digest(source, info, dtype, ends_of(info.shape))
    return _digest(source, info, dtype, blocks(info.shape, ELEMENTS)) if is_constant else (digest, False)


def _digest(source: Checkpoint, info: TensorInfo, dtype: str, boxes: Iterable[Box]) -> tuple[bytes, bool]:
    """Return (digest of the parts ``boxes`` of a tensor, whether all elements of these parts are equal)."""
    found, firsts, is_constant = hashlib.sha256(), [], True
    for box in boxes:
        bits = bits_of(read_part(source, info, box), info.dtype, dtype).reshape(-1)
        found.update(bits.tobytes())
        firsts += bits[:1].tolist()
        is_constant = is_constant and bool((bits == firsts[0]).all())
    return found.digest(), is_constant


def ends_of(shape: tuple[int, ...]) -> list[Box]:
    """Return two boxes (ranges of all dimensions), at the beginning and the end of a tensor; one for a small tensor."""
    if 0 in shape:
        return []
    first: list[tuple[int, int]] = []
    last: list[tuple[int, int]] = []
    left = SAMPLE
    for size in reversed(shape):
        number = min(size, max(1, left))
        left //= max(number, 1)
        first.append((0, number))
        last.append((size - number, size))
    boxes = [tuple(reversed(first)), tuple(reversed(last))]
    return boxes[:1] if boxes[0] == boxes[1] else boxes


def agreement(first: Checkpoint, one: TensorInfo, second: Checkpoint, other: TensorInfo) -> str:
    """Return how two tensors agree: "bits", "cast" (equal after a cast to the less precise dtype) or '' (they differ).

    Float16 and bfloat16 may also be "rounded": both may be roundings of the same numbers. The tensors are read block by
    block.
    """
    dtype = common_dtype(one.dtype, other.dtype)
    if not dtype or one.shape != other.shape:
        return ""
    said = "bits" if one.dtype == other.dtype else "cast"
    here, there = banded(one, first), banded(other, second)
    for box in blocks(one.shape, ELEMENTS):
        bits = [
            bits_of(read_part(files, info, box), info.dtype, dtype) for files, info in ((here, one), (there, other))
        ]
        if not np.array_equal(bits[0], bits[1]):
            if {one.dtype, other.dtype} != HALVES or not _is_rounding(bits[0], bits[1]):
                return ""
            said = "rounded"
    return said


def _is_rounding(one: Hashes, other: Hashes) -> bool:
    """Return whether elements, as bits of bfloat16, may be roundings of the same numbers to float16 and bfloat16.

    Rounding a number to float16 and then to bfloat16 gives the same as rounding it directly to bfloat16, or one of the
    two neighbours of this bfloat16 number. Small float16 numbers are multiples of 2 to the power of -24, so a
    difference of this size is also allowed.
    """
    ordered = [np.where(bits >> 15, -(bits & 0x7FFF).astype(np.int64), bits.astype(np.int64)) for bits in (one, other)]
    near = np.abs(ordered[0] - ordered[1]) <= 1
    values = [(bits.astype(np.uint32) << 16).view(np.float32) for bits in (one[~near], other[~near])]
    return bool((np.abs(values[0] - values[1]) <= 2.0**-24).all())
