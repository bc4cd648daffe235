"""Computes the seal of an output: one digest over every byte of a file that is not part of a tensor.

The seal is stored in the recipe, which is itself in the file. So the digest is computed as if the seal were all zeros.
In a zip archive, it is also computed as if the checksum of the recipe's record were that of the recipe with zeros.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ...storage.read.base import File

__all__ = ["UNSEALED", "digest_outside", "seal", "seal_of"]

UNSEALED = "0" * 64
"""The placeholder for a seal: the digest is computed with this value in the recipe, and then takes its place."""
_SEAL = re.compile(r'"seal":\s*"([0-9a-f]{64})"\s*\}\s*\Z')
"""Matches the seal, the last entry of a recipe; an earlier entry called ``seal`` is part of a user's metadata."""

_CHUNK = 1 << 20


def seal_of(recipe: str) -> str:
    """Return the seal (a SHA-256 in hexadecimal) at the end of a recipe's text; '' if there is none."""
    found = _SEAL.search(recipe)
    return found.group(1) if found else ""


def seal(recipe: Sequence[str], digest: str) -> list[str]:
    """Return a recipe with ``digest`` in place of the zeros of its seal.

    ``recipe`` is the text in pieces; the last piece contains the seal.
    """
    *pieces, last = recipe
    return [*pieces, _SEAL.sub(lambda found: found.group(0).replace(UNSEALED, digest), last, count=1)]


def digest_outside(file: File, payload: Iterable[tuple[int, int]], patches: Sequence[tuple[int, bytes]] = ()) -> str:
    """Return the SHA-256 of the bytes of a file that are outside its tensors.

    ``payload`` has (begin, end) of each tensor, in ascending order. ``patches`` has (offset, bytes): the digest is
    computed as if the file had these bytes at these offsets, as it had before its seal was set.
    """
    digest, at = hashlib.sha256(), 0
    parts = [*payload, (file.size, file.size)]
    file.need((before, begin) for (_, before), (begin, _) in pairwise([(0, 0), *parts]) if before < begin)
    for begin, end in parts:
        while at < begin:
            size = min(_CHUNK, begin - at) if begin - at > 2 * _CHUNK else begin - at
            digest.update(_patched(file, at, size, patches))
            at += size
        at = max(at, end)
    return digest.hexdigest()


def _patched(file: File, offset: int, nbytes: int, patches: Sequence[tuple[int, bytes]]) -> bytes:
    data = bytearray(file.read(offset, nbytes))
    for at, patch in patches:
        low, high = max(at, offset), min(at + len(patch), offset + nbytes)
        if low < high:
            data[low - offset : high - offset] = patch[low - at : high - at]
    return bytes(data)
