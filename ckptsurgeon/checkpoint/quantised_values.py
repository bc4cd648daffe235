"""Makes notes on parts of quantised tensors whose values contradict each other, or contradict the settings.

These parts are GPTQ's ``g_idx`` (the group of each column) and zero points, and the ``quant_state`` and ``quant_map``
of bitsandbytes.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from ..storage.read.base import File
from ..tensors.bitsandbytes_values import STATE, VALUES
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ..tensors.quantised.methods import family
from ..tensors.quantised.settings import values_called
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing
from .values.copied_parts import copied_parts
from .values.lost_scales import whole_floats
from .values.samples import Read
from .values.scales import odd_nested_scales, odd_power_scales
from .values.sibling_parts import odd_sibling_parts
from .values.zero_points import ROUNDED, odd_zero_points, rounded_zero_points

__all__ = ["ORDERS", "OUTSIDE", "UNSET", "notes_on_values", "quant_states", "read_small_tensor"]

MOST = 8 << 20
"""At most this many bytes are read of all ``g_idx`` tensors together; the rest is not checked."""
NEAR = 0.02
"""The largest allowed difference between a value of a ``quant_map`` and the exact value.

It is larger than the error of rounding to bfloat16, and smaller than the difference between two exact values.
"""
SHOWN = 3
ORDERS = {"GPTQ": (".g_idx", ".scales", 0), "packed": (".weight_g_idx", ".weight_scale", 1)}
"""{family: (key ending of ``g_idx``, key ending of the scales, dimension of the scales that counts the groups)}."""
UNSET = -1
"""compressed-tensors ignores a ``weight_g_idx`` whose entries all have this value: it was never set."""
OUTSIDE = Note(
    NoteKind.GROUP_INDEX, "a g_idx with the index of a group that does not exist, so that the weight cannot be decoded"
)
REORDERED = (
    "a g_idx that is not in the order of the groups, although its quantization_config says desc_act false, so runtimes "
    "may ignore g_idx, and compute wrong weights"
)
IN_ORDER = (
    "a g_idx in the order of the groups, although its quantization_config says desc_act true, so perhaps its order was "
    "lost, and columns get the scales of other groups"
)
UNUSED = "a g_idx without columns of some groups, so that the scales of these groups are not used"
UNEVEN = (
    "a g_idx in which some groups have more columns than group_size, and others fewer, so that some columns get the "
    "scales of other groups"
)
SCALE_NAMES = (".weight_scale", ".weight_scale_inv")
"""The names of the same scale in compressed-tensors and in DeepSeek's models."""
TWO_SCALES = Note(NoteKind.BROKEN_CODES, "two scales (weight_scale and weight_scale_inv), which differ")
SMALL = 1 << 20
"""The largest size, in bytes, of a tensor whose values are read to make notes."""

States = Mapping[str, Mapping[str, Any]]
"""The ``quant_state`` of each 4-bit weight of bitsandbytes, by the name of the weight."""


def read_small_tensor(handles: Mapping[str, File], info: TensorInfo) -> bytes:
    """Return the bytes of a small tensor; b"" if the tensor is too large, is remote, or cannot be read.

    ``handles`` are the open files of the checkpoint, by name.
    """
    file = handles.get(info.storage.file) if info.storage is not None else None
    if file is None or info.storage is None or file.remote or file.closed or not info.is_plain or info.nbytes > SMALL:
        return b""
    return bytes(file.read(info.storage.offset + info.offset, info.nbytes))


def quant_states(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read) -> States:
    """Return {name of a weight: its ``quant_state``, which contains the shape, the block size and so on}.

    ``read`` returns the bytes of a small tensor, b"" if they cannot be read. A ``quant_state`` that cannot be read is
    left out.
    """
    found = {}
    for one in codes.tensors:
        state = _parsed(read(tensors[one.parts[end]])) if (end := _state_of(one)) else {}
        if state:
            found[one.name] = state
    return found


def _state_of(one: QuantisedTensor) -> str:
    """Return the ending of the key of a tensor's ``quant_state``; '' if it has none."""
    return next((end for end in one.parts if end.startswith(STATE)), "")


def notes_on_values(
    path: str,
    codes: QuantisedTensors,
    tensors: Mapping[str, TensorInfo],
    settings: Mapping[str, Any],
    read: Read,
    states: States,
) -> Iterator[Note]:
    """Yield a note for each kind of contradiction, with the names of the quantised tensors that have it.

    ``read`` returns the bytes of a small tensor, b"" if they cannot be read; ``states`` is the result of
    ``quant_states``.
    """
    found: dict[str, list[str]] = {}
    for name, data, groups, may_be_unset in _orders(codes, tensors, read):
        if said := _of_order(data, groups, settings, may_be_unset=may_be_unset):
            found.setdefault(said, []).append(name)
    zeros = dict(odd_zero_points(codes, tensors, settings, read))
    rounded = {name: said for name, said in rounded_zero_points(codes, tensors, read) if zeros.get(name) != ROUNDED}
    for name, said in (
        *{**zeros, **rounded}.items(),
        *_two_scales(codes, tensors, read),
        *odd_nested_scales(codes, tensors, read),
        *odd_power_scales(codes, tensors, settings, read),
        *whole_floats(codes, tensors, read),
    ):
        found.setdefault(said, []).append(name)
    known = {name for names in found.values() for name in names}
    for name, said in (*odd_sibling_parts(codes, tensors, read), *copied_parts(codes, tensors, read)):
        if name not in known:
            found.setdefault(said, []).append(name)
    for one in codes.tensors:
        for said in _of_bitsandbytes(one, tensors, read, states[one.name]) if one.name in states else ():
            found.setdefault(said, []).append(one.name)
    for said, names in found.items():
        has = f"{count(len(names), 'quantised tensor')} {'has' if len(names) == 1 else 'have'}"
        kind = said.kind if isinstance(said, Note) else NoteKind.QUANTISATION
        yield Note(kind, f"{escape(path)}: {has} {said}: {listing([escape(name) for name in names], SHOWN)}")


def _two_scales(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read) -> Iterator[tuple[str, Note]]:
    """Yield (name of the weight, note) for each weight whose scale is stored under two names, with different values."""
    for one in codes.tensors:
        if one.codes and {*SCALE_NAMES} <= one.parts.keys():
            first, second = (tensors[one.parts[end]] for end in SCALE_NAMES)
            is_alike = (first.dtype, first.shape) == (second.dtype, second.shape)
            if not is_alike or read(first) != read(second):
                yield one.name, TWO_SCALES


def _orders(
    codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], read: Read
) -> Iterator[tuple[str, bytes, int, bool]]:
    """Yield (name, bytes of ``g_idx``, number of groups, whether it may be unset) for each tensor with a ``g_idx``.

    ``g_idx`` has the group of each column. compressed-tensors may store a ``g_idx`` that was never set: all its entries
    are -1.
    """
    left = MOST
    for one in codes.tensors:
        end, scales, place = ORDERS.get(family(one.method), ("", "", 0))
        if not end or not {end, scales} <= one.parts.keys():
            continue
        order, scale = tensors[one.parts[end]], tensors[one.parts[scales]].shape
        left -= order.nbytes
        if order.dtype == "int32" and len(scale) == 2 and scale[place] and left >= 0 and (data := read(order)):
            yield one.name, data, scale[place], end == ".weight_g_idx"


def _of_order(data: bytes, groups: int, settings: Mapping[str, Any], *, may_be_unset: bool) -> str:
    """Return the fault of ``data``, the bytes of a ``g_idx``; '' if it is valid.

    ``groups`` is the number of groups. If ``may_be_unset`` is true, all entries may be -1.
    """
    columns = len(data) // 4
    if data == _usual_order(columns, _group_size(columns, groups, settings.get("group_size"))):
        is_odd = groups > 1 and settings.get("desc_act") is True and settings.get("static_groups") is not True
        return IN_ORDER if is_odd else ""
    used = set(struct.unpack(f"<{columns}i", data))
    if used == {UNSET}:
        return "" if may_be_unset else OUTSIDE
    if min(used) < 0 or max(used) >= groups:
        return OUTSIDE
    if settings.get("desc_act") is False:
        return REORDERED
    if len(used) < groups:
        return UNUSED
    return UNEVEN if _is_uneven(data, groups, settings) else ""


def _is_uneven(data: bytes, groups: int, settings: Mapping[str, Any]) -> bool:
    """Return whether some group in a ``g_idx`` has more columns than the ``group_size`` in the settings.

    GPTQ sorts the columns and then cuts them into groups of this size; only the last group may have fewer columns.
    Returns False if no group size in the settings gives ``groups`` groups.
    """
    columns = len(data) // 4
    stated = [one for one in values_called(settings, "group_size") if type(one) is int and one > 0]
    sizes = [one for one in stated if -(-columns // one) == groups]
    return bool(sizes) and max(Counter(struct.unpack(f"<{columns}i", data)).values()) > max(sizes)


def _group_size(columns: int, groups: int, stated: object) -> int:
    """Return ``stated``, the group size in the settings, if it gives ``groups`` groups; else ``columns`` / ``groups``.

    The quotient is rounded up: the last group may be smaller than the others.
    """
    if type(stated) is int and stated > 0 and -(-columns // stated) == groups:
        return stated
    return -(-columns // groups)


@cache
def _usual_order(columns: int, size: int) -> bytes:
    """Return the bytes of a ``g_idx`` (the group of each column) in which each group has ``size`` adjacent columns."""
    return struct.pack(f"<{columns}i", *(column // size for column in range(columns)))


@notes_of(NoteKind.BROKEN_CODES)
def _of_bitsandbytes(
    one: QuantisedTensor, tensors: Mapping[str, TensorInfo], read: Read, state: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a text for each contradiction between a 4-bit tensor's ``quant_state`` and its key or its ``quant_map``.

    bitsandbytes has the values of each type in its kernels, so it would compute other weights than the map says.
    """
    kind, stated = _state_of(one).removeprefix(STATE), state.get("quant_type")
    if isinstance(stated, str) and stated != kind:
        yield f"a quant_state that says {escape(stated)} under a key that says {escape(kind)}"
    elif ".quant_map" in one.parts and not _is_map(tensors[one.parts[".quant_map"]], VALUES[kind], read):
        yield f"a quant_map whose values are not those of {escape(kind)}, the quant_type of its quant_state"


def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_map(info: TensorInfo, values: Sequence[float], read: Read) -> bool:
    """Return whether a ``quant_map`` has the values ``values``, except for rounding; True if it cannot be read."""
    data, letter = read(info), {"float32": "f", "float16": "e", "float64": "d"}.get(info.dtype)
    if not data or letter is None:
        return True
    found = struct.unpack(f"<{info.numel}{letter}", data)
    return len(found) == len(values) and all(abs(a - b) < NEAR for a, b in zip(found, values, strict=True))
