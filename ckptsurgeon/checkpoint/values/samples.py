"""Reads some values of a few matrices, small tensors and norms, which notes are about.

Commands that otherwise read only headers read these few values too.
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.dtypes import is_masked, size_of_float
from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY

__all__ = [
    "MATRICES",
    "NORM",
    "VALUES",
    "MatrixSample",
    "Read",
    "SmallSample",
    "first_and_last_rows",
    "is_norm",
    "norm_weights",
    "sampled_matrices",
    "sampled_small_tensors",
    "some_of_each_role",
]

Read = Callable[[TensorInfo], bytes]
"""A function that returns the bytes of a tensor, or of a part of it."""


def some_of_each_role(keys: Iterable[str], most: int) -> Iterator[str]:
    """Yield at most ``most`` keys: the same number for each role (name without numbers), spread over its layers."""
    roles: dict[str, list[str]] = {}
    for key in keys:
        roles.setdefault(NUMBER_IN_KEY.sub("#", key), []).append(key)
    each = max(1, most // max(1, len(roles)))
    for some in [*roles.values()][:most]:
        number = min(each, len(some))
        yield from (some[at * len(some) // number] for at in range(number))


def first_and_last_rows(info: TensorInfo, most: int) -> Iterator[TensorInfo]:
    """Yield the tensor if it has at most ``most`` bytes; else its first rows and its last rows, at least one row each.

    The tensor must be plain (``TensorInfo.is_plain``). Together, the rows have about ``most`` bytes.
    """
    if info.nbytes <= most or not info.shape:
        yield info
        return
    row = info.itemsize * math.prod(info.shape[1:])
    rows = max(1, most // 2 // row)
    shape = (rows, *info.shape[1:])
    yield replace(info, shape=shape)
    yield replace(info, shape=shape, offset=info.offset + (info.shape[0] - rows) * row)


# Matrices.

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


# Small tensors.

SAMPLED = 64
"""The largest number of small tensors that are read."""
MOST = 64 * SAMPLED
"""The largest number (approximate) of small tensors, spread over the model, that are sorted by role."""
SMALL = 32 << 10
"""The largest small tensor: 8192 values in float32."""


@dataclass(frozen=True)
class SmallSample:
    """The bytes of some small tensors of floats, by key, and the number of all small tensors (``of``)."""

    raw: Mapping[str, bytes]
    of: int


def sampled_small_tensors(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> SmallSample:
    """Read at most ``SAMPLED`` small tensors of floats, some of each role (name without numbers).

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read.
    """
    small = [key for key, info in tensors.items() if _is_small(info)]
    found = {}
    for key in some_of_each_role((key for key in small[:: len(small) // MOST + 1] if not is_masked(key)), SAMPLED):
        info = tensors[key]
        assert info.storage is not None
        file = handles.get(info.storage.file)
        if not is_local(file):
            continue
        with suppress(CheckpointError):  # commands that read the values report such errors
            found[key] = file.read(info.storage.offset + info.offset, info.nbytes)
    return SmallSample(found, len(small))


def _is_small(info: TensorInfo) -> bool:
    return bool(size_of_float(info.dtype)) and 0 < info.nbytes <= SMALL and info.is_plain and info.storage is not None


# Norms.

NORM = re.compile(r"(?:norm|ln|LayerNorm)[\w.]*[./](?:weight|gamma|scale)(?::0)?$")
"""Matches the ends of the keys of the weights of norms; torchtune, Flax and Keras name them scale or gamma."""
STATISTICS = ("running_mean", "moving_mean", "moving_mean:0")
"""The last part of the key of tensors that only batch norms have. Weights of batch norms are 0 for pruned channels."""
NORMS, NORM_VALUES, FEWEST_VALUES = 384, 512, 16
"""The most norms that are read, the most values of each, and the fewest values of a norm that is read."""
LETTERS = {"float32": "f", "float16": "e", "float64": "d"}


def is_norm(key: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a tensor has the weights of a norm, by its name; batch norms are left out."""
    if len(tensors[key].shape) != 1 or not NORM.search(key):
        return False
    at = max(key.rfind("."), key.rfind("/")) + 1
    return not any(key[:at] + name in tensors for name in STATISTICS)


def norm_weights(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> dict[str, tuple[float, ...]]:
    """Return the first ``NORM_VALUES`` weights of at most ``NORMS`` norms, by key; of more norms, some of each role.

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read. Norms that cannot be read, or
    that have NaN or infinite values, are left out.
    """
    found = {}
    norms = [key for key, info in tensors.items() if is_norm(key, tensors) and _can_read(info)]
    for key in norms if len(norms) <= NORMS else some_of_each_role(norms, NORMS):
        info = tensors[key]
        assert info.storage is not None
        file = handles.get(info.storage.file)
        if not is_local(file):
            continue
        with suppress(CheckpointError):  # commands that read the values report such errors
            begin, number = info.storage.offset + info.offset, min(info.numel, NORM_VALUES)
            values = _numbers(info.dtype, file.read(begin, number * info.itemsize))
            if math.isfinite(sum(values)):
                found[key] = values
    return found


def _can_read(info: TensorInfo) -> bool:
    is_float = info.dtype in LETTERS or info.dtype == "bfloat16"
    return is_float and info.numel >= FEWEST_VALUES and info.is_plain and info.storage is not None


def _numbers(dtype: str, raw: bytes) -> tuple[float, ...]:
    """Return little-endian values as Python's floats. A bfloat16 is the upper half of a float32."""
    if dtype == "bfloat16":
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[::2], raw[1::2]
        raw, dtype = bytes(wide), "float32"
    letter = LETTERS[dtype]
    return struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)
