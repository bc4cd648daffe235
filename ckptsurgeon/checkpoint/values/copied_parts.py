"""Finds quantised tensors with the same scales, or codes, as another tensor, although their other parts differ.

In such a tensor, one part was probably overwritten by the part of the other tensor. A few bytes at three places of each
tensor are read: if these have many different values, two tensors are not equal by chance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import log2

from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import EXPERT_SCALES, QuantisedTensor, QuantisedTensors
from .samples import Read

__all__ = ["copied_parts"]

SCALES = frozenset({
    "weight_scale_inv", "weight_scale", "scale_weight", "weights_scaling_factor", "_scale_inv", "_scale", "_scales",
    "scales", "absmax", "biases", "SCB", "weight_sf", *(end.rpartition(".")[2] for end in EXPERT_SCALES),
})  # fmt: skip
"""The last words of the keys of scales and biases, which normally differ from weight to weight."""
TENSORS, PIECE = 4096, 64
"""The largest number of tensors that are compared, spread over the model, and of bytes that are read at each place."""
INFORMATION = 48.0
"""Two parts may be equal by chance if the entropy of the bytes that were read is less than this number of bits.

The entropy is that low if there are few scales, or if they are nearly constant.
"""
COPIED = (
    "{part} equal to those of another tensor in all bytes that were compared, but different {rest}: was one written in "
    "place of the other"
)


def copied_parts(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read) -> Iterator[tuple[str, str]]:
    """Yield (names of both weights, text) for each tensor that has the same scales or codes as another tensor.

    The text follows "has" in a note: it says what the weight has. ``read`` returns the bytes of a small tensor. If all
    parts are equal, nothing is yielded: the weight is a copy, which ``ckpt check`` reports.
    """
    every = [one for one in codes.tensors if one.codes and one.codes in tensors]
    some = every[:: len(every) // TENSORS + 1]
    alike: dict[tuple[object, ...], list[tuple[QuantisedTensor, str]]] = defaultdict(list)
    for one in some:
        for end, key in one.parts.items():
            if key == one.codes or _last_word(end) in SCALES:
                info = tensors[key]
                if info.is_plain and info.numel > 1 and len(set(piece := read(_piece(info, 0)))) > 1:
                    alike[end, info.dtype, info.shape, piece].append((one, end))
    for group in alike.values():
        if len(group) > 1:
            yield from _copies(group, tensors, read)


def _copies(
    group: list[tuple[QuantisedTensor, str]], tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, str]]:
    """Yield (names of both weights, text), as ``copied_parts`` does, for one group of quantised tensors.

    ``group`` has pairs (tensor, ending of the key of its part): parts of one kind, such as scales, whose first bytes
    are equal. Parts are compared at three places (``_pieces``). A tensor is yielded if its part equals the part of an
    earlier tensor in the group, but their other parts differ (codes, if the equal parts are scales). Parts with too
    little information may be equal by chance, and are passed over.
    """
    by_bytes: dict[bytes, list[tuple[QuantisedTensor, str]]] = defaultdict(list)
    for one, end in group:
        by_bytes[_pieces(tensors[one.parts[end]], read)].append((one, end))
    for data, equal in by_bytes.items():
        first, end = equal[0]
        if len(equal) < 2 or _information(data, tensors[first.parts[end]].itemsize) < INFORMATION:
            continue
        for one, _ in equal[1:]:
            is_codes = first.parts[end] == first.codes
            others = [
                other for other, key in one.parts.items()
                if other in first.parts and (_last_word(other) in SCALES if is_codes else key == one.codes)
            ]  # fmt: skip
            if any(_differ(one, first, other, tensors, read) for other in others):
                part, rest = ("codes", "scales") if is_codes else (f"scales ({end.lstrip('._')})", "codes")
                yield f"{one.name} = {first.name}", COPIED.format(part=part, rest=rest)


def _differ(
    one: QuantisedTensor, other: QuantisedTensor, end: str, tensors: Mapping[str, TensorInfo], read: Read
) -> bool:
    return _pieces(tensors[one.parts[end]], read) != _pieces(tensors[other.parts[end]], read)


def _last_word(end: str) -> str:
    return end.rpartition(".")[2]


def _pieces(info: TensorInfo, read: Read) -> bytes:
    """Return the bytes at the beginning, in the middle and at the end of a tensor; all of them if they are few."""
    number = info.numel
    if not info.is_plain:
        return b""
    if info.nbytes <= 3 * PIECE:
        return read(_piece(info, 0, number))
    step = max(1, PIECE // info.itemsize)
    return b"".join(read(_piece(info, at)) for at in (0, (number - step) // 2, number - step))


def _piece(info: TensorInfo, at: int, number: int = 0) -> TensorInfo:
    """Return the header of ``number`` successive values of a plain tensor; the first of them has the index ``at``.

    If ``number`` is 0, these are as many values as fit in ``PIECE`` bytes.
    """
    number = number or min(info.numel, max(1, PIECE // info.itemsize))
    return replace(info, shape=(number,), offset=info.offset + at * info.itemsize)


def _information(data: bytes, size: int) -> float:
    """Return the entropy of all values (of ``size`` bytes each) in bits, as if they were independent of each other."""
    values = Counter(data[at : at + size] for at in range(0, len(data), size))
    number = values.total()
    return sum(times * log2(number / times) for times in values.values())
