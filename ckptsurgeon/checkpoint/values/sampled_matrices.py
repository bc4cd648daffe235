"""Reads some values of a few matrices in each file, for notes of commands that otherwise read only headers."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY

__all__ = ["VALUES", "MatrixSample", "sampled_matrices"]

MATRICES, IN_FILE, FILES, VALUES = 32, 2, 256, 512
"""Of at most ``FILES`` files, ``MATRICES`` matrices in all are read, but at least ``IN_FILE`` of each file.

``VALUES`` values of each matrix are read.
"""
KEYS = 32
"""How many keys of a file are considered for each matrix that is read, at most."""
COLUMNS = 64
"""The fewest columns of a matrix that is read."""
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
    """Yield some values of some matrices of each file, of as many layers as possible, each of one of ``dtypes``.

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read. Matrices that cannot be read are
    left out: the command reports it when it reads the values.
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
    """Return at most ``number`` keys: of each layer another role, so that as many layers as possible are looked at.

    Every n-th key could have the same role each time, and be in a few layers only: the other layers would never be
    looked at.
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
