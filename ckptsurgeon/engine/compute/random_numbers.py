"""Random numbers that depend only on a seed, a key, a model and a position, for DARE and DELLA."""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np

from ...tensors.ops.regions import Array

__all__ = ["random_numbers"]

WORDS = 8
"""How many 32-bit numbers Philox makes from one counter value."""


def random_numbers(seed: int, key: str, model: int, offset: int, shape: tuple[int, ...]) -> Array:
    """Return an array of ``shape``: random numbers in [0, 1) for a tensor's elements from the index ``offset`` on."""
    said = f"{seed}\0{model}\0{key}".encode("utf-8", "surrogatepass")
    philox = int.from_bytes(hashlib.blake2b(said, digest_size=16).digest(), "little")
    size, (first, skipped) = prod(shape), divmod(offset, WORDS)
    raw = np.random.Philox(key=philox, counter=first).random_raw((skipped + size + WORDS - 1) // WORDS * (WORDS // 2))
    words = raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + size]
    numbers: Array = ((words >> 8) * np.float32(2**-24)).reshape(shape)
    return numbers
