"""Counts the extreme codes of a quantised weight: the lowest and the highest that its encoding has."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from ..checkpoint.checkpoint import Checkpoint
from ..engine.compute.reading import read_part
from ..tensors.info import Decoded, TensorInfo
from ..tensors.ops.casts import raw_dtype, widened
from ..tensors.ops.regions import Array, blocks
from .stats import BLOCK

__all__ = ["outermost_codes"]

BYTES = ("int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
"""The dtypes of codes that have a byte each."""
LARGEST_FP4 = (7, 15)
"""The codes of 6 and -6, the largest numbers of 4-bit floats (e2m1)."""


def outermost_codes(checkpoint: Checkpoint, info: TensorInfo) -> tuple[int, int] | None:
    """Return (number of codes that are the lowest or the highest code, number of all codes) of a decoded weight.

    The codes are read. A weight that was too large for its scale has such a code; so has the largest weight of each
    block or group. Returns None for codes that have neither 4 nor 8 bits, that share a tensor with their scales (GGUF),
    or that have columns of padding.
    """
    made = info.made
    if not isinstance(made, Decoded):
        return None
    codes = dict(made.parts).get("codes")
    ends = _ends(checkpoint, made) if codes is not None else ()
    if codes is None or not ends:
        return None
    found = _counts(checkpoint, codes)
    number = int(found.sum())
    if len(ends) < 256:  # two codes in a byte
        found, number = found.reshape(16, 16).sum(0) + found.reshape(16, 16).sum(1), 2 * number
    if number != prod(info.shape):  # some columns are padding
        return None
    return int(found[np.array(ends)].sum()), number


def _counts(checkpoint: Checkpoint, codes: TensorInfo) -> Array:
    """Return how often each byte occurs in a tensor."""
    found = np.zeros(256, np.int64)
    for box in blocks(codes.shape, BLOCK):
        octets = np.ascontiguousarray(read_part(checkpoint, codes, box)).reshape(-1).view("u1")
        found += np.bincount(octets, minlength=256)
    return found


def _ends(checkpoint: Checkpoint, made: Decoded) -> tuple[bool, ...]:
    """Return, for each code of 4 or 8 bits, whether it is the lowest or the highest; () if codes have other bits."""
    stored, facts = dict(made.parts), dict(made.facts)
    if made.encoding in ("scaled", "torch_quantised", "ctranslate2") and not {"bits"} & facts.keys():
        return _ends_of_bytes(stored["codes"].dtype)
    if made.encoding == "fp4":
        return tuple(code in LARGEST_FP4 for code in range(16))
    if made.encoding == "bitsandbytes" and stored["values"].shape == (16,):
        table = read_part(checkpoint, stored["values"], ((0, 16),)).tolist()
        return tuple(value in (min(table), max(table)) for value in table)
    bits = 4 if made.encoding == "awq" else int(facts.get("bits", 0)) if made.encoding in ("gptq", "packed") else 0
    return tuple(code in (0, (1 << bits) - 1) for code in range(1 << bits)) if bits in (4, 8) else ()


@lru_cache
def _ends_of_bytes(dtype: str) -> tuple[bool, ...]:
    """Return, for each byte, whether it is the lowest or the highest finite value of a dtype of 8 bits.

    -127 counts too, because most quantisers do not use -128.
    """
    if dtype not in BYTES:
        return ()
    values = widened(np.arange(256, dtype="u1").view(raw_dtype(dtype)), dtype).astype("<f8")
    finite = values[np.isfinite(values)]
    low, high = (-127, 127) if dtype == "int8" else (finite.min(), finite.max())
    return tuple(bool(one) for one in ((values <= low) | (values >= high)) & np.isfinite(values))
