"""Makes notes on small tensors of quantised weights whose values contradict each other, or the settings.

These are the order of GPTQ's columns (``g_idx``), and the ``quant_state`` and ``quant_map`` of bitsandbytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from ..tensors.encodings._encoding import QuantisedTensor, QuantisedTensors
from ..tensors.encodings._methods import family
from ..tensors.encodings.bitsandbytes import STATE, VALUES
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing

__all__ = ["notes_on_values"]

Read = Callable[[TensorInfo], bytes]
"""A function that returns the bytes of a small tensor; b"" if they cannot be read, or are at an address."""
MOST = 8 << 20
"""The most bytes that are read of the orders of all columns, which are all alike."""
NEAR = 0.02
"""How far a value of a ``quant_map`` may be from that of its type: a cast to bfloat16 rounds, and gaps are wider."""
SHOWN = 3


def notes_on_values(
    path: str, codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: Read
) -> Iterator[str]:
    """Yield a note for each contradiction, with the quantised tensors that have it."""
    found: dict[str, list[str]] = {}
    if settings.get("desc_act") is False:
        said = "a g_idx that is not in the order of the groups: runtimes that ignore it read other weights"
        for name in _reordered(codes, tensors, settings.get("group_size"), read):
            found.setdefault(f"{said}, since its quantization_config says desc_act false", []).append(name)
    for one in codes.tensors:
        for said in _of_bitsandbytes(one, tensors, read) if family(one.method) == "bitsandbytes" else ():
            found.setdefault(said, []).append(one.name)
    for said, names in found.items():
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
        yield f"{escape(path)}: {has} {said}: {listing([escape(name) for name in names], SHOWN)}"


def _reordered(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], stated: object, read: Read) -> Iterator[str]:
    """Yield the names of the tensors of GPTQ whose columns are not in the order of their groups.

    ``stated`` is the size of a group that the settings give.
    """
    left = MOST
    for one in codes.tensors:
        if family(one.method) != "GPTQ" or not {".g_idx", ".scales"} <= one.parts.keys():
            continue
        order, groups = tensors[one.parts[".g_idx"]], tensors[one.parts[".scales"]].shape[0]
        left -= order.nbytes
        if order.dtype != "int32" or not groups or left < 0:
            continue
        data = read(order)
        if data and data != _usual_order(order.numel, _group_size(order.numel, groups, stated)):
            yield one.name


def _group_size(columns: int, groups: int, stated: object) -> int:
    """Return the size of a group: the stated one if it makes as many groups. The last group may be smaller."""
    if type(stated) is int and stated > 0 and -(-columns // stated) == groups:
        return stated
    return -(-columns // groups)


@cache
def _usual_order(columns: int, size: int) -> bytes:
    """Return the bytes of the number of the group of each column, if a group has ``size`` neighbouring columns."""
    return struct.pack(f"<{columns}i", *(column // size for column in range(columns)))


def _of_bitsandbytes(one: QuantisedTensor, tensors: Mapping[str, TensorInfo], read: Read) -> Iterator[str]:
    """Yield what contradicts the ``quant_state`` of a tensor of 4 bits; nothing if the state cannot be read."""
    end = next((end for end in one.parts if end.startswith(STATE)), "")
    state = _parsed(read(tensors[one.parts[end]])) if end else {}
    kind, stated = end.removeprefix(STATE), state.get("quant_type")
    if not state:
        return
    if isinstance(stated, str) and stated != kind:
        yield f"a quant_state of {escape(stated)} that is named {escape(kind)}"
    elif ".quant_map" in one.parts and not _is_map(tensors[one.parts[".quant_map"]], VALUES[kind], read):
        yield f"a quant_map that is not that of {escape(kind)}, the quant_type of its quant_state"


def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_map(info: TensorInfo, values: Sequence[float], read: Read) -> bool:
    """Return whether a ``quant_map`` has these values, as far as it can be read."""
    data, letter = read(info), {"float32": "f", "float16": "e", "float64": "d"}.get(info.dtype)
    if not data or letter is None:
        return True
    found = struct.unpack(f"<{info.numel}{letter}", data)
    return len(found) == len(values) and all(abs(a - b) < NEAR for a, b in zip(found, values, strict=True))
