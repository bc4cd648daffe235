"""Decodes bitsandbytes: its 4-bit codes (nf4, fp4) and its int8 weights.

Two 4-bit codes are in a byte, the first in its upper half. The weight is flattened and divided into blocks, each with a
scale. The 16 values of nf4 (https://arxiv.org/abs/2305.14314) or fp4 are stored in the file too. With double
quantisation, the scales are codes too: the file stores the 256 values of these codes, and the ``quant_state`` contains
an offset that is added to the scales.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ...util.text import brief_repr
from ..bitsandbytes_values import STATE
from ..composition import decoded, reshape
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ..quantised.contradictions import STORAGE, cast_from
from ._decoder import Request, UndecodableError, groups_of, whole

__all__ = ["DECODER"]

MOST_DIMENSIONS = 8
"""A shape in a ``quant_state`` may have at most this many dimensions."""
MOST_VALUES = 2**63 - 1
"""The most values of a weight: sizes are int64 in every format."""
LARGEST = 3.4028234663852886e38
"""The largest number of float32, in which the scales are computed."""
PART_OF_127 = 7.874015718698502e-3
"""1 / 127, as bitsandbytes rounds it."""


class _Blocks:
    """The decoder of bitsandbytes' 4-bit codes.

    ``Decoded.facts`` has ``size0``, ``size1`` and so on (the shape of the weight), and ``block`` (how many elements
    share a scale). With double quantisation, it also has ``nested`` (how many scales share a scale) and ``offset``
    (added to scales).
    """

    families = ("bitsandbytes",)

    def describe(self, asked: Request) -> TensorInfo:
        codes = asked.codes
        if (scale := asked.parts.get(".SCB")) is not None:
            if asked.stored(".weight_format").strip(b"\0"):
                raise UndecodableError("the codes are stored in the order of a GPU kernel (weight_format)")
            if scale.shape != codes.shape[:1]:
                raise UndecodableError(
                    f"the SCB has the shape {list(scale.shape)}, not {list(codes.shape[:1])}, one scale for each row"
                )
            scale = reshape(scale, (*scale.shape, *(1,) * (len(codes.shape) - 1)))
            steps = [(f"step{dim}", size if dim else 1) for dim, size in enumerate(codes.shape)]
            made = Decoded((("codes", codes), ("scale", scale)), "scaled", (*steps, ("times", PART_OF_127)))
            return decoded(codes.shape, made)
        if cast := cast_from(asked.parts, asked.settings.fields.get(STORAGE)):
            raise UndecodableError(
                f"the codes were stored as {cast} ({STORAGE}) and then cast to {codes.dtype}, which changed their bytes"
            )
        state = _state(next((asked.stored(end) for end in asked.parts if end.startswith(STATE)), b""))
        shape, block = _sizes(state)
        codes = _bytes(codes)
        table, scales = _table(asked.parts, ".quant_map", 16), _needed(asked.parts, ".absmax")
        number = prod(shape)
        said = f"the quant_state has the shape {shape}, which needs"
        if codes.numel != -(-number // 2):
            raise UndecodableError(f"{said} {-(-number // 2):,} bytes of codes, but there are {codes.numel:,}")
        if scales.numel != -(-number // block):
            raise UndecodableError(
                f"{said} {-(-number // block):,} scales (one for {block} values), but the absmax has {scales.numel:,}"
            )
        found = [("codes", codes), ("scale", reshape(scales, (scales.numel,))), ("values", table)]
        sizes = [(f"size{dim}", size) for dim, size in enumerate(shape)]
        facts: list[tuple[str, float]] = [*sizes, ("block", block)]
        nested, outer = state.get("nested_blocksize"), asked.parts.get(".nested_absmax")
        if nested is not None or outer is not None:
            values, outer = _table(asked.parts, ".nested_quant_map", 256), _needed(asked.parts, ".nested_absmax")
            nested, offset = _of_nested(state, scales, outer)
            found += [("nested_scale", reshape(outer, (outer.numel,))), ("nested_values", values)]
            facts += [("nested", nested), ("offset", offset)]
        return decoded(tuple(shape), Decoded(tuple(found), "bitsandbytes", tuple(facts)))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        facts, stored = dict(made.facts), dict(made.parts)
        span = _span(_shape(facts), box)
        blocks = groups_of(span, int(facts["block"]))
        found: dict[str, Box] = {"codes": (groups_of(span, 2),), "scale": (blocks,), "values": whole(stored["values"])}
        if "nested" in facts:
            found["nested_scale"] = (groups_of(blocks, int(facts["nested"])),)
            found["nested_values"] = whole(stored["nested_values"])
        return found

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        facts = dict(made.facts)
        span = _span(_shape(facts), box)
        block = int(facts["block"])
        begin, end = groups_of(span, block)
        scale = arrays["scale"]
        if "nested" in facts:
            nested = int(facts["nested"])
            outer = np.take(arrays["nested_scale"].astype("<f4"), np.arange(begin, end) // nested - begin // nested)
            scale = arrays["nested_values"].astype("<f4")[scale] * outer + np.float32(facts["offset"])
        table = arrays["values"].astype("<f4")
        pairs = np.stack([table[arrays["codes"] >> 4], table[arrays["codes"] & 15]], -1).reshape(-1)
        values = pairs[span[0] % 2 :][: span[1] - span[0]]
        values = values * np.take(scale.astype("<f4"), np.arange(*span) // block - begin)
        return _cut(values, _shape(facts), box)


def _sizes(state: Mapping[str, Any]) -> tuple[list[int], int]:
    """Return the shape and the block size in a ``quant_state``; raises UndecodableError if they are not valid."""
    if not state:
        raise UndecodableError("the quant_state is not a JSON object with the shape and block size")
    shape, block = state.get("shape"), state.get("blocksize")
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_DIMENSIONS
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        raise UndecodableError(
            f"the shape in the quant_state is {brief_repr(shape)}, not a list of at most {MOST_DIMENSIONS} positive "
            "whole numbers"
        )
    if prod(shape) > MOST_VALUES:  # each size is at least 1
        raise UndecodableError(f"the shape in the quant_state is {brief_repr(shape)}, which is too many values")
    if type(block) is not int or not 1 <= block <= MOST_VALUES:
        raise UndecodableError(
            f"the blocksize in the quant_state is {brief_repr(block)}, not a whole number from 1 to {MOST_VALUES}"
        )
    return shape, block


def _needed(parts: Mapping[str, TensorInfo], end: str) -> TensorInfo:
    """Return the stored tensor whose key has the ending ``end``; raises UndecodableError if it is missing."""
    if end not in parts:
        raise UndecodableError(f"the {end[1:]} is missing")
    return parts[end]


def _table(parts: Mapping[str, TensorInfo], end: str, number: int) -> TensorInfo:
    """Return the stored table with the values of all ``number`` codes; raises UndecodableError if there is none."""
    found = _needed(parts, end)
    if found.shape != (number,):
        raise UndecodableError(
            f"the {end[1:]} has the shape {list(found.shape)}, not [{number}], one value for each code"
        )
    return found


def _of_nested(state: Mapping[str, Any], scales: TensorInfo, outer: TensorInfo) -> tuple[int, float]:
    """Return how many quantised scales share a second-level scale, and the offset to be added to the scales.

    ``scales`` are the quantised scales, ``outer`` the second-level scales. Raises UndecodableError if they do not fit
    the ``quant_state``, which is ``state``.
    """
    nested, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(nested) is not int or not 1 <= nested <= MOST_VALUES:
        raise UndecodableError(
            f"the scales are quantised, but the nested_blocksize in the quant_state is {brief_repr(nested)}, not a "
            f"whole number from 1 to {MOST_VALUES}"
        )
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not -LARGEST <= offset <= LARGEST:
        raise UndecodableError(
            f"the scales are quantised, but the nested_offset in the quant_state is {brief_repr(offset)}, not a finite "
            "float32 value"
        )
    if scales.dtype != "uint8":
        raise UndecodableError(f"the scales are quantised, but the absmax is {scales.dtype}, not uint8")
    if outer.numel != -(-scales.numel // nested):
        raise UndecodableError(
            f"the nested_absmax has {outer.numel:,} scales, not {-(-scales.numel // nested):,}, one for {nested} of "
            f"the {scales.numel:,} scales in the absmax"
        )
    return nested, float(offset)


def _shape(facts: Mapping[str, float]) -> tuple[int, ...]:
    return tuple(int(size) for name, size in facts.items() if name.startswith("size"))


def _span(shape: Sequence[int], box: Box) -> tuple[int, int]:
    """Return the range of flat indices (row-major) from the first to the last element of a box."""
    steps = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
    first = sum(begin * step for (begin, _), step in zip(box, steps, strict=True))
    last = sum((end - 1) * step for (_, end), step in zip(box, steps, strict=True))
    return first, last + 1


def _cut(values: Array, shape: Sequence[int], box: Box) -> Array:
    """Return the elements of a box; ``values`` are all elements in the range that ``_span`` returns for the box."""
    steps = [prod(shape[dim + 1 :]) * values.itemsize for dim in range(len(shape))]
    sizes = [end - begin for begin, end in box]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(np.ascontiguousarray(values), sizes, steps))


def _bytes(codes: TensorInfo) -> TensorInfo:
    """Return the codes as a vector of bytes; bitsandbytes may store them in another dtype (``quant_storage``)."""
    return replace(reshape(codes, (codes.numel,)), dtype="uint8", shape=(codes.nbytes,))


def _state(data: bytes) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


DECODER = _Blocks()
