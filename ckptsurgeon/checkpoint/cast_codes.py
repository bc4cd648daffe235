"""Finds weights that are really the codes of a quantised model, cast to a wider dtype without their scales."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping

from ..tensors.bitsandbytes_values import VALUES as TABLES
from ..util.note_kind import NoteKind
from ..util.notes import notes_of
from ..util.text import NUMBER_IN_KEY, listing
from .values.samples import VALUES, MatrixSample

__all__ = ["cast_code_notes"]

LOW_BITS = {"bfloat16": 4, "float16": 7, "float32": 20}
"""{dtype: number of bits that its mantissa has in addition to the three bits of 8-bit floats (e4m3)}"""
FEWEST = 2
"""Several matrices get a note if at least this many look like codes.

A single matrix gets a note, too, if at least this many other matrices of its role (the key without numbers) do not look
like codes.
"""
DIFFERENT, LARGEST, INTEGER = 24, 32.0, 128.0
"""Values look like 8-bit codes if they have at least ``DIFFERENT`` magnitudes, and the largest is at least ``LARGEST``.

Codes of int8 have no magnitude above ``INTEGER``. If scales are powers of two, decoded weights have as few bits as
codes, but they are smaller.
"""
SMALL, MOST = 5, 15
"""Whole numbers look like 4-bit codes if the largest magnitude is from 5 to 15, and most smaller magnitudes occur."""
FOUR_BITS = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}
"""The magnitudes of 4-bit floats (e2m1)."""
LEVELS = {kind: sorted({abs(one) for one in table}) for kind, table in TABLES.items()}
"""The magnitudes of nf4 and fp4 of bitsandbytes, whose largest is 1."""
NEAR = 1 / 256
"""The largest relative rounding error of a bfloat16."""


@notes_of(NoteKind.LOST_SCALES)
def cast_code_notes(sample: Collection[MatrixSample], coded: Collection[str] = ()) -> Iterator[str]:
    """Yield a note if the values of matrices look like codes: 8-bit or 4-bit floats, whole numbers, nf4 or fp4.

    A program that casts all tensors of a quantised model, scales included, writes such files. A single matrix gets a
    note only if the same module is quantised in other layers, or if the same matrix of other layers does not look like
    codes. ``coded`` has the keys of the parts of quantised tensors; they are not in ``sample``.
    """
    found: dict[str, list[str]] = {}
    for one in sample:
        if kind := _kind(one):
            found.setdefault(kind, []).append(one.key)
    for kind, keys in found.items():
        alone = keys[0]
        if len(keys) >= FEWEST or _is_unlike_others(alone, sample, found) or _is_coded_elsewhere(alone, coded):
            yield (
                f"the values of {len(keys)} of {len(sample)} matrices that were looked at are {kind}: perhaps they are "
                f"quantised codes that were cast without their scales: {listing(keys)}"
            )


def _is_unlike_others(key: str, sample: Collection[MatrixSample], found: Mapping[str, Collection[str]]) -> bool:
    """Return whether no other matrix in ``sample`` with the role of ``key`` looks like codes.

    The role is the key without its numbers. The result is false if fewer than ``FEWEST`` other matrices have this role.
    ``found`` has, for each kind of codes, the keys of the matrices that look like such codes.
    """
    role = NUMBER_IN_KEY.sub("#", key)
    others = [one.key for one in sample if one.key != key and NUMBER_IN_KEY.sub("#", one.key) == role]
    return len(others) >= FEWEST and not any(one in keys for one in others for keys in found.values())


def _is_coded_elsewhere(key: str, coded: Collection[str]) -> bool:
    """Return whether the module of ``key`` is quantised in some layer; ``coded`` has the keys of quantised parts."""
    module = NUMBER_IN_KEY.sub("#", key.rpartition(".")[0])
    end = module.rpartition(".")[2]
    return any(end in one and NUMBER_IN_KEY.sub("#", one).startswith(f"{module}.") for one in coded)


def _kind(one: MatrixSample) -> str:
    """Return the kind of codes that the values of a matrix seem to be, such as "4-bit floats"; '' for other values."""
    values = {abs(value) for value in one.numbers()}
    largest = max(values)
    for kind, levels in LEVELS.items():
        if len(levels) - 1 <= len(values) <= len(levels) and all(_is_level(value, levels) for value in values):
            return f"levels of {kind}"
    if values <= FOUR_BITS and len(values) >= len(FOUR_BITS) - 1:
        return "4-bit floats"
    are_whole = all(value.is_integer() for value in values)
    if are_whole and SMALL <= largest <= MOST and len(values) > largest * 3 / 4:
        return f"whole numbers up to {largest:g}"
    if len(values) < DIFFERENT or not LARGEST <= largest < float("inf"):
        return ""
    bits = struct.unpack(f"<{VALUES}{'I' if one.dtype == 'float32' else 'H'}", one.raw)
    if not any(code & ((1 << LOW_BITS[one.dtype]) - 1) for code in bits):
        return f"8-bit floats above {LARGEST:g}"
    return f"whole numbers above {LARGEST:g}" if are_whole and largest <= INTEGER else ""


def _is_level(value: float, levels: list[float]) -> bool:
    """Return whether a magnitude equals one of ``levels``, except for rounding."""
    return any(abs(value - level) <= NEAR * level for level in levels)
