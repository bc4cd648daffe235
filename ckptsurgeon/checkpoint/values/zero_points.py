"""Finds zero points of GPTQ and AWQ that contradict the settings or other tensors, or that were rounded by a cast.

Symmetric quantisation has one zero point for all codes, the middle of their range, so all zero points of a model are
equal. GPTQ's first format stores each zero point minus one. Several zero points are packed into one word of 32 bits: a
cast to a float rounds such words, because a float has fewer bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from ...tensors.quantised.methods import family
from ...tensors.quantised.settings import values_called
from ...util.note_kind import NoteKind
from ...util.notes import Note
from .samples import Read, first_and_last_rows

__all__ = ["ROUNDED", "TENSORS", "UNLIKE_OTHERS", "odd_zero_points", "rounded_zero_points"]

PARTS = (".qzeros", ".weight_zero_point")
MOST_OF_TENSOR = 4096
"""The largest number (approximate) of bytes of a tensor's zero points that are read."""
FEWEST_WORDS, SAMPLED = 16, 256
"""A tensor with fewer words than ``FEWEST_WORDS`` is not judged; about ``SAMPLED`` words of a tensor are looked at."""
PRECISION = 1 << 27
"""From this number on, float32 keeps only multiples of 16: the lowest 4 bits of a word so large are then 0."""
ALL, SOME = 0.99, 0.5
"""Words were rounded if at least the share ``ALL`` of them has 0 in the lowest 4 bits, which rounding sets to 0.

Rounding keeps the two highest groups of 4 bits. So if at least the share ``SOME`` of the words has 0 in one of these
groups, rounding is not the reason.
"""
SAID = (
    "packed {} whose lowest bits are nearly always 0, unlike their highest bits: were the packed words cast to a "
    "floating-point dtype and back?"
)


def rounded_zero_points(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for each tensor whose packed zero points look like rounded integers.

    The text follows "has" in a note: it says what the weight has. ``read`` returns the bytes of a tensor.
    """
    every = [(one, part) for one in codes.tensors for part in PARTS if part in one.parts]
    for one, part in every[:: len(every) // TENSORS + 1]:
        zeros = tensors[one.parts[part]]
        if zeros.is_plain and zeros.dtype in ("int32", "uint32") and len(zeros.shape) > 1:
            data = b"".join(map(read, first_and_last_rows(zeros, MOST_OF_TENSOR)))
            if _are_rounded([int.from_bytes(data[at : at + 4], "little") for at in _places(len(data))]):
                yield one.name, Note(NoteKind.BROKEN_CODES, SAID.format(part[1:]))


def _places(size: int) -> range:
    """Return the offsets of some words, evenly spread over ``size`` bytes."""
    return range(0, size // 4 * 4, 4 * (size // 4 // SAMPLED + 1))


def _are_rounded(words: list[int]) -> bool:
    some = [word for word in words if PRECISION <= word <= (1 << 32) - PRECISION]
    if len(some) < FEWEST_WORDS or sum(word & 15 == 0 for word in some) < ALL * len(some):
        return False
    return all(sum(word >> at & 15 == 0 for word in some) < SOME * len(some) for at in (24, 28))


MOST, TENSORS = 8 << 20, 2000
"""Limits on the bytes of zero points that are read (approximate), and on the tensors; other tensors are skipped."""
FEWEST, VALUES = 4, 64
"""At least ``FEWEST`` tensors must each repeat one value; those with fewer than ``VALUES`` zero points do not count."""
ASYMMETRIC = (
    "qzeros that are not the middle of the codes, although its quantization_config says sym true, so runtimes may "
    "ignore them, and compute wrong weights"
)
ROUNDED = Note(
    NoteKind.BROKEN_CODES,
    "qzeros that are all the middle of the codes, except for the lowest bits of each 32-bit word: were the packed "
    "words cast to a floating-point dtype and back?",
)
FORMATS = "(GPTQ stores zero points less 1; gptq_v2 and AWQ as they are)"
UNLIKE_OTHERS = "similar tensors are all "
UNLIKE = (
    f"qzeros that are all {{own}}, although those of {{number}} {UNLIKE_OTHERS}{{usual}}: perhaps they are of another "
    f"format {FORMATS}"
)
SEVERAL = (
    f"different qzeros, although those of {{number}} {UNLIKE_OTHERS}{{usual}}, as in symmetric quantisation: perhaps a "
    f"part of them is of another format {FORMATS}"
)
MIDDLES = {2: b"\x55\xaa", 4: b"\x77\x88", 8: b"\x7f\x80"}
"""{bits of a code: two bytes}: if zero points are the middle of the codes, packed words repeat one of these bytes.

The first byte is for the format ``gptq``, which stores zero points less 1, the second for ``gptq_v2``.
"""
DIFFERENT = -1


def odd_zero_points(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (name of the weight, text) for each GPTQ or AWQ tensor whose zero points are suspect.

    Zero points are suspect if they contradict the setting ``sym``, or differ from the zero points of most tensors. Of
    many tensors, only some are examined. The text follows "has" in a note: it says what the weight has. ``read``
    returns the bytes of a tensor.
    """
    found = dict(_zero_points(codes, tensors, read))
    said = dict(_asymmetric(found)) if settings.get("sym") is True else {}
    yield from said.items()
    if len({*values_called(settings, "sym")}) < 2 and len({*values_called(settings, "zero_point")}) < 2:
        yield from _unlike({name: one for name, one in found.items() if name not in said})


def _zero_points(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, tuple[str, int, bytes]]]:
    """Yield (name of the weight, (family, bits, bytes)) for some GPTQ and AWQ tensors.

    ``family`` is "GPTQ" or "AWQ", ``bits`` the bits of a zero point. The bytes are the first and last rows of the zero
    points, as they are stored.
    """
    ends = {".qweight", ".qzeros", ".scales"}
    every = [one for one in codes.tensors if family(one.method) in ("GPTQ", "AWQ") and ends <= one.parts.keys()]
    for one in every[:: len(every) // TENSORS + 1]:
        zeros, scales = tensors[one.parts[".qzeros"]], tensors[one.parts[".scales"]]
        bits = 8 * zeros.nbytes // max(scales.numel, 1)
        if not zeros.is_plain or len(zeros.shape) != 2 or len(scales.shape) != 2 or bits not in range(2, 9):
            continue
        if scales.shape[1] * bits == 32 * zeros.shape[1]:  # then no word has bits that are not used
            data = b"".join(map(read, first_and_last_rows(zeros, MOST // len(every))))
            if data:
                yield one.name, (family(one.method), bits, data)


def _asymmetric(found: Mapping[str, tuple[str, int, bytes]]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) for each GPTQ tensor with zero points that are not the middle of the range of codes.

    ``found`` has the pairs that ``_zero_points`` yields.
    """
    for name, (kind, bits, data) in found.items():
        middles = MIDDLES.get(bits, b"") if kind == "GPTQ" else b""
        if middles and not any(data.count(middle) == len(data) for middle in middles):
            yield name, ROUNDED if any(map(_is_rounded, middles, repeat(data))) else ASYMMETRIC


def _is_rounded(middle: int, data: bytes) -> bool:
    """Return whether ``data`` repeats one rounded word: four bytes ``middle`` as an int32, cast to a float and back.

    The float may be a float32 or bfloat16. Zero points of symmetric codes look so after a cast of the checkpoint.
    """
    word = int.from_bytes(bytes([middle] * 4), "little", signed=True)
    step = 1 << (word.bit_length() - 24)
    rounded = [round(word / one) * one for one in (step, step << 16)]
    words = [one.to_bytes(4, "little", signed=True) for one in rounded]
    return any(data == one * (len(data) // 4) for one in words)


def _unlike(found: Mapping[str, tuple[str, int, bytes]]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) for each tensor whose zero points differ from the usual value of its family and bits.

    The usual value is the commonest one among tensors with a single value; these must be more than half of the tensors.
    ``found`` has the pairs that ``_zero_points`` yields.
    """
    groups: dict[tuple[str, int], dict[str, int]] = {}
    for name, (kind, bits, data) in found.items():
        if len(data) * 8 >= VALUES * bits:
            groups.setdefault((kind, bits), {})[name] = _only_value(data, bits)
    for values in groups.values():
        numbers = Counter(one for one in values.values() if one != DIFFERENT)
        if numbers.total() < FEWEST or numbers.total() * 2 <= len(values):
            continue
        usual, number = numbers.most_common(1)[0]
        for name, own in values.items():
            if own != usual and (own != DIFFERENT or number >= FEWEST):
                said = (SEVERAL if own == DIFFERENT else UNLIKE).format(own=own, number=number, usual=usual)
                yield name, Note(NoteKind.BROKEN_CODES, said)


def _only_value(data: bytes, bits: int) -> int:
    """Return the zero point of ``bits`` bits that ``data`` repeats; ``DIFFERENT`` if there are several zero points."""
    value = int.from_bytes(data[:4], "little") & ((1 << bits) - 1)
    words = sum(value << at for at in range(0, 32 * bits, bits)).to_bytes(4 * bits, "little")
    return value if data == (words * (len(data) // len(words) + 1))[: len(data)] else DIFFERENT
