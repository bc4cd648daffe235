"""Compares, by their headers, source tensors that the destination ties, and makes the error for unequal ones."""

from __future__ import annotations

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import escape

__all__ = ["UnequalTensorsError", "are_known_equal", "unequal_error"]

_HINTS = {
    "resize": "If both are used, write tie_word_embeddings: false in the config.json of the source. Otherwise, leave "
    "out the one that should not be used: ckpt filter --exclude.",
}


class UnequalTensorsError(PlanError):
    """Two tensors of a source that the destination ties have different values."""


def unequal_error(first: str, other: str, name: str, verb: str = "") -> UnequalTensorsError:
    """Return the error for two tensors of the source ``name`` that have different values.

    ``verb`` is the verb whose plan is made, such as ``resize``; the hint depends on it.
    """
    return UnequalTensorsError(
        f"the tensors {escape(first)} and {escape(other)} of {escape(name)} are not equal, but the destination ties "
        "them.",
        hint=_HINTS.get(verb, "Leave out the one that should not be used, with --exclude."),
    )


def are_known_equal(a: TensorInfo, b: TensorInfo) -> bool | None:
    """Return whether two tensors are equal in dtype, shape and values, as far as headers say.

    Returns None if the headers do not decide it: then the values have to be compared.
    """
    if a.place is not None and a.place == b.place:
        return True
    known = [_checksum(info) for info in (a, b)]
    is_unequal = a.shape != b.shape or a.dtype != b.dtype or (None not in known and known[0] != known[1])
    return False if is_unequal else None


def _checksum(info: TensorInfo) -> int | None:
    """Return the CRC-32 that the file contains for exactly the bytes of this tensor; None if there is none."""
    whole = info.is_plain and info.storage is not None and info.nbytes == info.storage.nbytes
    return info.storage.crc32 if whole and info.storage is not None else None
