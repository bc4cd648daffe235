"""Reads the weights of norms (LayerNorm, RMSNorm), for notes of commands that otherwise read only headers."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from math import isfinite

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY

__all__ = ["NORM", "VALUES", "is_norm", "norm_weights"]

NORM = re.compile(r"(?:norm|ln|LayerNorm)[\w.]*[./](?:weight|gamma|scale)(?::0)?$")
"""Matches the ends of the keys of the weights of norms; torchtune, Flax and Keras name them scale or gamma."""
STATISTICS = ("running_mean", "moving_mean", "moving_mean:0")
"""The last names of tensors that only batch norms have. Their weights are around 0 if channels were pruned."""
NORMS, VALUES, FEWEST_VALUES = 384, 512, 16
"""How many norms are read, and how many values of each, at most; and the fewest values of a norm that is read."""
FORMATS = {"float32": "f", "float16": "e", "float64": "d"}


def is_norm(key: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a tensor has the weights of a norm, by its name; batch norms are left out."""
    if len(tensors[key].shape) != 1 or not NORM.search(key):
        return False
    at = max(key.rfind("."), key.rfind("/")) + 1
    return not any(key[:at] + name in tensors for name in STATISTICS)


def norm_weights(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> dict[str, tuple[float, ...]]:
    """Return the first ``VALUES`` weights of at most ``NORMS`` norms, by key; of more norms, some of each role.

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read. Norms that cannot be read, or
    that have values that are not finite, are left out.
    """
    found = {}
    for key in _spread([key for key, info in tensors.items() if is_norm(key, tensors) and _can_read(info)]):
        info = tensors[key]
        assert info.storage is not None
        file = handles.get(info.storage.file)
        if not is_local(file):
            continue
        with suppress(CheckpointError):  # the command reports it when it reads the values
            begin, number = info.storage.offset + info.offset, min(info.numel, VALUES)
            values = _numbers(info.dtype, file.read(begin, number * info.itemsize))
            if isfinite(sum(values)):
                found[key] = values
    return found


def _can_read(info: TensorInfo) -> bool:
    is_float = info.dtype in FORMATS or info.dtype == "bfloat16"
    return is_float and info.numel >= FEWEST_VALUES and info.is_plain and info.storage is not None


def _spread(keys: Collection[str]) -> Iterator[str]:
    """Yield at most ``NORMS`` keys: as many of each role, spread over its layers."""
    if len(keys) <= NORMS:
        yield from keys
        return
    roles: dict[str, list[str]] = {}
    for key in keys:
        roles.setdefault(NUMBER_IN_KEY.sub("#", key), []).append(key)
    each = max(1, NORMS // len(roles))
    for some in [*roles.values()][:NORMS]:
        number = min(each, len(some))
        yield from (some[at * len(some) // number] for at in range(number))


def _numbers(dtype: str, raw: bytes) -> tuple[float, ...]:
    """Return little-endian values as Python's floats. A bfloat16 is the upper half of a float32."""
    if dtype == "bfloat16":
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[::2], raw[1::2]
        raw, dtype = bytes(wide), "float32"
    letter = FORMATS[dtype]
    return struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)
