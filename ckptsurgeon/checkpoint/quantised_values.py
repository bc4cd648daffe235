"""Makes notes on parts of quantised tensors whose values contradict each other, or contradict the settings.

The parts are the order of GPTQ's columns (``g_idx``), and the ``quant_state`` and ``quant_map`` of bitsandbytes.
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
"""A function that returns the bytes of a small tensor; b"" if the tensor is remote or cannot be read."""
MOST = 8 << 20
"""The most bytes of ``g_idx`` that are read in all; usually, all tensors of a model have the same kind of order."""
NEAR = 0.02
"""How far a value of a ``quant_map`` may be from the exact value.

This is more than the error of rounding to bfloat16, and less than the distance between two values.
"""
SHOWN = 3


def notes_on_values(
    path: str, codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any], read: Read
) -> Iterator[str]:
    """Yield a note for each kind of contradiction, with the names of the quantised tensors."""
    found: dict[str, list[str]] = {}
    if settings.get("desc_act") is False:
        said = "a g_idx that is not in the order of the groups, although its quantization_config says desc_act false"
        for name in _reordered(codes, tensors, settings.get("group_size"), read):
            found.setdefault(f"{said}, so runtimes may ignore g_idx, and compute wrong weights", []).append(name)
    for one in codes.tensors:
        for said in _of_bitsandbytes(one, tensors, read) if family(one.method) == "bitsandbytes" else ():
            found.setdefault(said, []).append(one.name)
    for said, names in found.items():
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
        yield f"{escape(path)}: {has} {said}: {listing([escape(name) for name in names], SHOWN)}"


def _reordered(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], stated: object, read: Read) -> Iterator[str]:
    """Yield the names of the GPTQ tensors whose columns are not in the order of their groups.

    ``stated`` is the group size in the settings.
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
    """Return the group size: ``stated`` if it makes ``groups`` groups (the last may be smaller), else computed."""
    if type(stated) is int and stated > 0 and -(-columns // stated) == groups:
        return stated
    return -(-columns // groups)


@cache
def _usual_order(columns: int, size: int) -> bytes:
    """Return the bytes of ``g_idx``, each column's group number, if a group is ``size`` neighbouring columns."""
    return struct.pack(f"<{columns}i", *(column // size for column in range(columns)))


def _of_bitsandbytes(one: QuantisedTensor, tensors: Mapping[str, TensorInfo], read: Read) -> Iterator[str]:
    """Yield how a 4-bit tensor's ``quant_state`` contradicts its key or ``quant_map``; nothing if it is unreadable."""
    end = next((end for end in one.parts if end.startswith(STATE)), "")
    state = _parsed(read(tensors[one.parts[end]])) if end else {}
    kind, stated = end.removeprefix(STATE), state.get("quant_type")
    if not state:
        return
    if isinstance(stated, str) and stated != kind:
        yield f"a quant_state that says {escape(stated)} under a key that says {escape(kind)}"
    elif ".quant_map" in one.parts and not _is_map(tensors[one.parts[".quant_map"]], VALUES[kind], read):
        yield f"a quant_map with other values than {escape(kind)} has, the quant_type of its quant_state"


def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_map(info: TensorInfo, values: Sequence[float], read: Read) -> bool:
    """Return whether a ``quant_map`` has these values; True if it cannot be read."""
    data, letter = read(info), {"float32": "f", "float16": "e", "float64": "d"}.get(info.dtype)
    if not data or letter is None:
        return True
    found = struct.unpack(f"<{info.numel}{letter}", data)
    return len(found) == len(values) and all(abs(a - b) < NEAR for a, b in zip(found, values, strict=True))
