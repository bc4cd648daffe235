"""Reads some values of a few matrices in each file, and makes notes on dtypes and zero points that are probably wrong.

Commands that otherwise read only headers read these few values too.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import suppress
from math import isfinite, sqrt
from typing import NamedTuple

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...tensors.odd_scales.shifted import MOSTLY, SHIFT
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import NUMBER_IN_KEY, listing, percent

__all__ = [
    "MISLABELLED",
    "SHIFTED_VALUES",
    "VALUES",
    "MatrixSample",
    "mislabelled_float_notes",
    "sampled_matrices",
    "shifted_weight_notes",
]

MATRICES, IN_FILE, FILES, VALUES = 32, 2, 256, 512
"""``VALUES`` values are read of each of about ``MATRICES`` matrices, in at most ``FILES`` files.

Of each file, at least ``IN_FILE`` matrices are read: so there are more than ``MATRICES`` if there are many files.
"""
KEYS = 32
"""For each matrix that is read of a file, at most this many keys of the file are considered."""
COLUMNS = 64
"""Matrices with fewer columns are not read."""
DTYPES = ("bfloat16", "float16", "float32")


class MatrixSample(NamedTuple):
    """The bytes of ``VALUES`` values in the middle of a matrix."""

    key: str
    dtype: str
    raw: bytes

    def numbers(self) -> tuple[float, ...]:
        """Return the values, of one of ``DTYPES``, as Python's floats."""
        raw, code = self.raw, "e" if self.dtype == "float16" else "f"
        if self.dtype == "bfloat16":
            raw = struct.pack(f"<{VALUES}I", *(one << 16 for one in struct.unpack(f"<{VALUES}H", raw)))
        return struct.unpack(f"<{VALUES}{code}", raw)


def sampled_matrices(
    tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], dtypes: Container[str] = DTYPES
) -> Iterator[MatrixSample]:
    """Yield some values of some matrices of each file, from as many layers as possible; only matrices of ``dtypes``.

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read. Matrices that cannot be read are
    left out: the command reports the fault when it reads the values.
    """
    for key, file in _chosen(tensors, handles, dtypes):
        info = tensors[key]
        assert info.storage is not None
        begin = info.storage.offset + info.offset + (info.numel - VALUES) // 2 * info.itemsize
        with suppress(CheckpointError):
            yield MatrixSample(key, info.dtype, file.read(begin, VALUES * info.itemsize))


def _chosen(
    tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], dtypes: Container[str]
) -> Iterator[tuple[str, File]]:
    """Yield the matrices to look at, and their files: some of each file, spread over the file."""
    by_file: dict[str, list[str]] = {}
    for key, info in tensors.items():
        if info.storage is not None:
            by_file.setdefault(info.storage.file, []).append(key)
    number = max(IN_FILE, MATRICES // max(1, len(by_file)))
    for name in list(by_file)[:: len(by_file) // FILES + 1]:
        file, keys = handles.get(name), by_file[name]
        if not is_local(file):
            continue
        some = [key for key in keys[:: len(keys) // (KEYS * number) + 1] if _is_matrix(tensors[key], dtypes)]
        yield from ((key, file) for key in _spread(some, number))


def _spread(keys: list[str], number: int) -> list[str]:
    """Return at most ``number`` keys, from as many layers, and with as many roles (keys without numbers), as possible.

    With every n-th key instead, all keys could have one role that only a few layers have.
    """
    if len(keys) <= number:
        return keys
    layers: dict[str, list[str]] = {}
    for key in keys:
        found = NUMBER_IN_KEY.search(key)
        layers.setdefault(key[: found.end()] if found else "", []).append(key)
    if len(layers) > number:
        layers.pop("", None)
    groups, chosen, used = list(layers.values()), dict[str, None](), Counter[str]()
    for at in range(number):
        group = groups[(2 * at + 1) * len(groups) // (2 * number)]
        left = {key: NUMBER_IN_KEY.sub("#", key) for key in group if key not in chosen}
        if left:
            key = min(left, key=lambda one: used[left[one]])
            used[left[key]] += 1
            chosen[key] = None
    return list(chosen)


def _is_matrix(info: TensorInfo, dtypes: Container[str]) -> bool:
    shape = info.shape
    return len(shape) > 1 and shape[-1] >= COLUMNS and info.numel >= VALUES and info.dtype in dtypes and info.is_plain


MISLABELLED = "the dtype in the header is perhaps wrong"
FEWEST_MISLABELLED = 2
"""There is a note only if at least this many matrices are mislabelled."""
DIFFERENT = 24
"""A matrix with fewer different magnitudes than this gets no note."""
USUAL = (1.5, 16.0)
"""In weights, the third quartile of the magnitudes, divided by the first, is between these bounds.

It is 3.6 for normally distributed values. A float16 has three bits of its mantissa where a bfloat16 has the last bits
of its exponent. So if float16 is read as bfloat16, this ratio becomes about its eighth power (28,000); if bfloat16 is
read as float16, it becomes the eighth root (1.2).
"""
WIDE, NARROW = 500.0, 1.45
"""The smallest ratio of quartiles of float16 numbers read as bfloat16, and the largest of bfloat16 read as float16."""
SIZES = (1e-5, 2.0)
"""In weights, the median magnitude is between these bounds."""


@notes_of(NoteKind.DTYPE_IN_HEADER)
def mislabelled_float_notes(sample: Collection[MatrixSample]) -> Iterator[str]:
    """Yield a note if float16 matrices have plausible values only if read as bfloat16, or the other way round."""
    for dtype, other in (("bfloat16", "float16"), ("float16", "bfloat16")):
        keys = [one.key for one in sample if one.dtype == dtype and _is_mislabelled(one.raw, dtype, other)]
        if len(keys) >= FEWEST_MISLABELLED:
            yield (
                f"the values of {len(keys)} of {len(sample)} matrices that were looked at look like weights only if "
                f"their {dtype} numbers are read as {other}: {MISLABELLED}: {listing(keys)}"
            )


def _is_mislabelled(raw: bytes, dtype: str, other: str) -> bool:
    codes = sorted(code & 0x7FFF for code in struct.unpack(f"<{VALUES}H", raw))  # in the order of magnitudes in both
    quartiles = [codes[VALUES * quarter // 4] for quarter in (1, 2, 3)]
    if not quartiles[0] or len({*codes}) < DIFFERENT:
        return False
    low, _, high = (_value(code, dtype) for code in quartiles)
    first, middle, third = (_value(code, other) for code in quartiles)
    is_odd = high >= WIDE * low if dtype == "bfloat16" else high <= NARROW * low
    return is_odd and SIZES[0] <= middle <= SIZES[1] and USUAL[0] * first <= third <= USUAL[1] * first


def _value(code: int, dtype: str) -> float:
    """Return the number that a code of 16 bits represents."""
    wide = dtype == "bfloat16"
    (value,) = struct.unpack("<f" if wide else "<e", struct.pack("<I", code << 16) if wide else struct.pack("<H", code))
    return float(value)


SHIFTED_VALUES = "perhaps they were decoded with wrong zero points"
FEWEST_SHIFTED = 8
"""A note needs at least this many matrices: by chance, the mean of 512 values may be 13 % of their root mean square."""


@notes_of(NoteKind.WRONG_ZERO_POINTS)
def shifted_weight_notes(sample: Collection[MatrixSample]) -> Iterator[str]:
    """Yield a note if the means of most matrices are far from 0, in the same direction.

    If 4-bit zero points are wrong by one, all weights are shifted by about a third of their usual size. If codes are
    decoded without zero points, no weight is negative. In trained networks, most matrices have a mean near 0.
    """
    means = {one.key: _mean(one.numbers()) for one in sample}
    for is_up, way in ((True, "above"), (False, "below")):
        keys = [key for key, mean in means.items() if abs(mean) > SHIFT and (mean > 0) is is_up]
        if len(means) >= FEWEST_SHIFTED and len(keys) > MOSTLY * len(means):
            yield (
                f"the values of {len(keys)} of {len(means)} matrices that were looked at have a mean {way} 0 by over "
                f"{percent(SHIFT)} of their size: {SHIFTED_VALUES}: {listing(keys)}"
            )


def _mean(values: Collection[float]) -> float:
    """Return the mean of values divided by their root mean square; 0 if this is not finite or if all values are 0."""
    size = sqrt(sum(one * one for one in values) / VALUES)
    return sum(values) / VALUES / size if size and isfinite(size) else 0.0
