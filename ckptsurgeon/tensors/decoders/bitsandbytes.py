"""Decodes bitsandbytes: its 4-bit codes, nf4 and fp4, and its int8 weights.

Two 4-bit codes are in a byte, the upper half first. The weight is flattened and divided into blocks, each with a scale.
The 16 values of nf4 (https://arxiv.org/abs/2305.14314) or fp4 are stored in the file too. With double quantisation,
the scales are codes too: the file stores the 256 values of these codes, and the ``quant_state`` contains an offset that
is added to the scales.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..composition import decoded, reshape
from ..encodings._facts import STORAGE, cast_from
from ..encodings.bitsandbytes import STATE
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ._decoder import Request, UndecodableError, groups_of, whole

__all__ = ["DECODER"]

MOST_DIMENSIONS = 8
"""The most dimensions of a shape that is read from a ``quant_state``."""
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
                raise UndecodableError("its codes are stored in the order of a GPU kernel (weight_format)")
            if scale.shape != codes.shape[:1]:
                raise UndecodableError("its SCB does not have one scale for each row")
            scale = reshape(scale, (*scale.shape, *(1,) * (len(codes.shape) - 1)))
            steps = [(f"step{dim}", size if dim else 1) for dim, size in enumerate(codes.shape)]
            made = Decoded((("codes", codes), ("scale", scale)), "scaled", (*steps, ("times", PART_OF_127)))
            return decoded(codes.shape, made)
        if cast := cast_from(asked.parts, asked.settings.fields.get(STORAGE)):
            raise UndecodableError(
                f"its codes were stored as {cast} ({STORAGE}) and then cast to {codes.dtype}, which changed their bytes"
            )
        state = _state(next((asked.stored(end) for end in asked.parts if end.startswith(STATE)), b""))
        shape, block = state.get("shape"), state.get("blocksize")
        if (
            not isinstance(shape, list)
            or len(shape) > MOST_DIMENSIONS
            or not all(type(size) is int and size > 0 for size in shape)
            or type(block) is not int
        ):
            raise UndecodableError("its quant_state cannot be read")
        number = prod(shape)
        codes = _bytes(codes)
        table, scales = asked.parts.get(".quant_map"), asked.parts.get(".absmax")
        if table is None or scales is None or table.shape != (16,):
            raise UndecodableError("its quant_map or its absmax is missing, or its quant_map does not have 16 values")
        if block < 1 or codes.numel != -(-number // 2) or scales.numel != -(-number // block):
            raise UndecodableError(f"its quant_state has the shape {shape}, which does not fit its codes or its absmax")
        found = [("codes", codes), ("scale", reshape(scales, (scales.numel,))), ("values", table)]
        sizes = [(f"size{dim}", size) for dim, size in enumerate(shape)]
        facts: list[tuple[str, float]] = [*sizes, ("block", block)]
        nested, outer = state.get("nested_blocksize"), asked.parts.get(".nested_absmax")
        if nested is not None or outer is not None:
            values, offset = asked.parts.get(".nested_quant_map"), state.get("nested_offset")
            if outer is None or values is None or values.shape != (256,) or type(nested) is not int or nested < 1:
                raise UndecodableError("its scales are quantised, but tensors or settings to decode them are missing")
            if (
                not isinstance(offset, (int, float))
                or outer.numel != -(-scales.numel // nested)
                or scales.dtype != "uint8"
            ):
                raise UndecodableError("its quantised scales do not fit their own scales (nested_absmax)")
            found += [("nested_scale", reshape(outer, (outer.numel,))), ("nested_values", values)]
            facts += [("nested", nested), ("offset", float(offset))]
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
