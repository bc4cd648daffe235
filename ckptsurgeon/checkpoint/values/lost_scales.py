"""Finds 8-bit floats that are wrong as weights: codes whose scales were lost, and int8 bytes cast to floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping
from functools import cache
from math import inf
from typing import NamedTuple

from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import NUMBER_IN_KEY, count, listing
from .samples import VALUES, MatrixSample, Read, first_and_last_rows

__all__ = ["EIGHT_BITS", "WHOLE", "lost_scale_notes", "unlike_other_layers", "whole_floats"]


class _Format(NamedTuple):
    """A type of 8-bit floats: the number of bits of the mantissa, and the bias of the exponent."""

    mantissa: int
    bias: int


EIGHT_BITS = {
    "float8_e4m3fn": _Format(3, 7), "float8_e4m3fnuz": _Format(3, 8),
    "float8_e5m2": _Format(2, 15), "float8_e5m2fnuz": _Format(2, 16),
}  # fmt: skip
FEWEST = 2
"""A note needs at least this many matrices that look like codes, or layers that store the same matrix differently."""
MEDIAN = 4.0
"""The smallest median magnitude of codes.

Scales are chosen so that the largest code of a tensor, a channel or a block is the largest number of the type, at least
240: the median of normally distributed codes is then over 30. The median of plain weights is below 0.1.
"""


@notes_of(NoteKind.LOST_SCALES)
def lost_scale_notes(
    sample: Collection[MatrixSample], unlike: Mapping[str, str], *, are_described: bool = False
) -> Iterator[str]:
    """Yield a note if matrices of 8-bit floats, which have no scales, have values as large as codes.

    ``sample`` has such matrices, ``unlike`` is the result of ``unlike_other_layers``. A single matrix may have any
    values: it gets a note only if it is in ``unlike``. There is also a note on the other matrices in ``unlike``, unless
    ``are_described`` is true: then a config.json describes the tensors, and other notes compare the two.
    """
    found = [one for one in sample if one.dtype in EIGHT_BITS and _median(one) > MEDIAN]
    if len(found) >= FEWEST or any(one.key in unlike for one in found):
        kinds = listing(list(dict.fromkeys(one.dtype for one in found)), where="")
        yield (
            f"the values of {len(found)} of {len(sample)} matrices of 8-bit floats that were looked at are as large as "
            f"codes (half of them are above {MEDIAN:g}), but {kinds} without scales are plain numbers: perhaps their "
            f"scales were lost: {listing([one.key for one in found])}"
        )
    if not are_described:
        yield from _unlike_notes(unlike, {one.key for one in found})


@notes_of(NoteKind.LOST_SCALES)
def _unlike_notes(unlike: Mapping[str, str], said: Container[str]) -> Iterator[str]:
    kinds: dict[str, list[str]] = {}
    for key, kind in unlike.items():
        if key not in said:
            kinds.setdefault(kind, []).append(key)
    for kind, keys in kinds.items():
        has = "has" if len(keys) == 1 else "have"
        yield (
            f"{count(len(keys), 'matrix', 'matrices')} {has} 8-bit floats without scales, although the same matrix of "
            f"most other layers {kind}: {listing(keys)}"
        )


def unlike_other_layers(
    plain: Collection[str], tensors: Mapping[str, TensorInfo], coded: Container[str]
) -> dict[str, str]:
    """Return {key: how other layers store this matrix} for matrices in ``plain`` that most layers store differently.

    ``plain`` has the keys of the matrices of 8-bit floats without scales, ``coded`` the keys of quantised tensors. A
    matrix is returned if more than half of all matrices of its role (the key without numbers) have scales, or are
    floats of one wider dtype.
    """
    roles = {NUMBER_IN_KEY.sub("#", key) for key in plain}
    ends = tuple({role.rpartition("#")[2] for role in roles})  # saves time: few keys have these ends
    kinds: dict[str, Counter[str]] = {role: Counter() for role in roles}
    for key, info in tensors.items() if roles else ():
        if key.endswith(ends) and len(info.shape) > 1 and (role := NUMBER_IN_KEY.sub("#", key)) in kinds:
            kinds[role][_storage(key, info, plain, coded)] += 1
    usual = {role: found.most_common(1)[0] for role, found in kinds.items() if found}
    return {
        key: kind for key in plain
        if (role := NUMBER_IN_KEY.sub("#", key)) in usual
        and (kind := usual[role][0]) and usual[role][1] * 2 > kinds[role].total()
    }  # fmt: skip


def _storage(key: str, info: TensorInfo, plain: Collection[str], coded: Container[str]) -> str:
    """Return the form of a matrix: "has scales" or, for its dtype, "is float16"; '' for 8-bit floats without scales.

    Integers get '', too. The parameters are the same as for ``unlike_other_layers``.
    """
    if key in plain or DTYPES[info.dtype].kind != "float":
        return ""
    return "has scales" if key in coded else f"is {info.dtype}" if DTYPES[info.dtype].bits > 8 else ""


def _median(one: MatrixSample) -> float:
    """Return the median magnitude of the values; infinity and NaN count as larger than all numbers."""
    magnitude = _magnitudes(one.dtype)
    return sorted(magnitude[code] for code in one.raw)[VALUES // 2]


@cache
def _magnitudes(dtype: str) -> tuple[float, ...]:
    """Return the magnitude of the number that each byte represents."""
    mantissa, bias = EIGHT_BITS[dtype]
    one, found = 1 << mantissa, []
    for code in range(128):
        exponent, rest = divmod(code, one)
        found.append((one + rest) / one * 2.0 ** (exponent - bias) if exponent else rest / one * 2.0 ** (1 - bias))
    return (*found, *found) if not dtype.endswith("fnuz") else (*found, inf, *found[1:])


TENSORS, SAMPLE = 1000, 4096
"""The largest number of tensors that are looked at, spread over the model, and (roughly) of bytes of each tensor."""
FEWEST_CODES, DIFFERENT = 1024, 16
"""A tensor needs this many codes other than 0, and different magnitudes; ternary weights have only one magnitude."""
LARGE, LARGEST = 32.0, 128.0
"""If int8 bytes were cast to 8-bit floats, the largest magnitude is from ``LARGE`` to ``LARGEST``.

Such bytes are spread over the whole range of int8, whose largest magnitude, 128, is ``LARGEST``.
"""
WHOLE = Note(
    NoteKind.CAST_CODES,
    f"8-bit floats that are all whole numbers up to {LARGEST:g}, although fractions are usual: perhaps their bytes "
    "were read as int8, and cast to float8_e4m3fn",
)


def whole_floats(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for e4m3 weights that are all whole numbers: probably int8 values cast to fp8.

    In weights that were quantised to e4m3, at least 2 % of the codes have fractions, and the largest code of most
    blocks is 448. The text follows "has" in a note: it says what the weight has. ``read`` returns the bytes of a
    tensor.
    """
    every = [one for one in codes.tensors if one.codes and tensors[one.codes].dtype == "float8_e4m3fn"]
    for one in every[:: len(every) // TENSORS + 1]:
        info = tensors[one.codes]
        if not info.is_plain or len(info.shape) != 2:
            continue
        if _are_whole(b"".join(map(read, first_and_last_rows(info, SAMPLE)))):
            yield one.name, WHOLE


def _magnitude(code: int) -> float:
    """Return the value of a positive e4m3 code: 4 bits of exponent and 3 of mantissa. https://arxiv.org/abs/2209.05433."""
    exponent, mantissa = code >> 3, code & 7
    return float((8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9)


@cache
def _of_int8() -> bytes:
    """Return the codes of the whole numbers up to ``LARGEST``, of both signs."""
    return bytes(code for code in range(256) if (size := _magnitude(code & 0x7F)).is_integer() and size <= LARGEST)


def _are_whole(data: bytes) -> bool:
    """Return whether there are many different codes, all of them whole numbers up to 128, and some of them large."""
    if data.translate(None, _of_int8()):
        return False  # as for nearly all tensors: there are thousands
    different = {code & 0x7F for code in set(data)} - {0}
    number = len(data) - data.count(0) - data.count(0x80)
    return number >= FEWEST_CODES and len(different) >= DIFFERENT and max(map(_magnitude, different)) >= LARGE
