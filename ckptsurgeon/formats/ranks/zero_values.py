"""Compares the float32 weights of DeepSpeed ZeRO with the 16-bit weights in the model states.

DeepSpeed rounds the float32 weights of stages 1 and 2 to those in the model states after each step
(``deepspeed/runtime/zero/stage_1_and_2.py``, 0.19). So model states of another step, or the vector of another rank,
are found by comparing a few values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, listing
from ..torch.zero import Flat, StateFile
from .zero_ranks import named_ranks

__all__ = ["is_like", "unlike_notes"]

PLACES, VALUES = 4, 64
"""How many places of each vector are compared, and how many values at each place."""


def unlike_notes(
    groups: Sequence[Mapping[str, tuple[int, ...]]],
    ranks: Sequence[Flat],
    paddings: Any,
    *,
    model: StateFile,
    handles: Mapping[str, File],
) -> Iterator[str]:
    """Yield a note if values of the flat vectors of stage 1 or 2, when rounded, differ from the model states.

    ``groups`` has the shapes of the parameters of each group, ``ranks`` the vectors of each rank, ``paddings`` the
    unused elements after each parameter. ``handles`` are the open files by ``Storage.file``.
    """
    module = model.tree.get("module")
    if not isinstance(module, Mapping):
        return
    unlike: dict[int, list[str]] = {}
    for number, shapes in enumerate(groups):
        free = paddings[number] if isinstance(paddings, (list, tuple)) else [0] * len(shapes)
        begins: dict[str, int] = {}
        at = 0
        for (key, shape), padding in zip(shapes.items(), free, strict=True):
            if math.prod(shape) == _numel(module.get(key)) > 0:
                begins[key] = at
            at += math.prod(shape) + padding
        for rank, key in _compared([flats[number] for flats in ranks], begins, module, handles):
            unlike.setdefault(rank, []).append(key)
    if unlike:
        keys = [key for found in unlike.values() for key in found]
        text = (
            f"the weights of {named_ranks(list(map(str, unlike)))} in the optimizer states, rounded, differ from "
            f"{escape(model.file.name)}: the files are of different steps, or of different ranks: "
            f"{listing([*dict.fromkeys(keys)], where='')}"
        )
        yield Note(NoteKind.SPLIT_TENSORS, text)


def _compared(
    flats: Sequence[TensorInfo],
    begins: Mapping[str, int],
    module: Mapping[Any, Any],
    handles: Mapping[str, File],
) -> Iterator[tuple[int, str]]:
    """Yield (rank, key) for each compared sample whose values in the rank's vector differ from those in ``module``.

    ``flats`` are the vectors of the ranks, one after the other; ``begins`` is where each parameter that can be compared
    begins in them.
    """
    start = 0
    for rank, flat in enumerate(flats):
        end = start + flat.numel
        inside = [(key, at) for key, at in begins.items() if at < end and at + module[key].numel > start]
        for key, at in inside[:: len(inside) // PLACES + 1]:
            info = module[key]
            begin, stop = max(at, start), min(at + info.numel, end)
            middle = begin + max(0, (stop - begin - VALUES) // 2)
            number = min(VALUES, stop - middle)
            ours = _raw(flat, middle - start, number, handles)
            theirs = _raw(info, middle - at, number, handles)
            if ours and theirs and flat.dtype == "float32" and not _is_rounded(ours, theirs, info.dtype):
                yield rank, key
        start = end


def is_like(weight: TensorInfo, stored: Any, handles: Mapping[str, File]) -> bool:
    """Return whether some values of a float32 weight, rounded, equal those in ``stored``; True if not comparable."""
    if weight.dtype != "float32" or _numel(stored) != weight.numel or not weight.numel:
        return True
    number = min(VALUES, weight.numel)
    at = (weight.numel - number) // 2
    ours, theirs = _raw(weight, at, number, handles), _raw(stored, at, number, handles)
    return not (ours and theirs) or _is_rounded(ours, theirs, stored.dtype)


def _numel(info: Any) -> int:
    """Return the number of values of a tensor that can be compared; 0 for anything else."""
    known = isinstance(info, TensorInfo) and info.is_plain and info.dtype in ("float16", "bfloat16", "float32")
    return info.numel if known else 0


def _raw(info: TensorInfo, at: int, number: int, handles: Mapping[str, File]) -> bytes:
    """Return the bytes of ``number`` values of a tensor from the index ``at`` on.

    Returns b"" if they cannot be read, or cannot be read quickly.
    """
    file = handles.get(info.storage.file) if info.storage is not None and info.is_plain else None
    if file is None or info.storage is None or not is_local(file):
        return b""
    return file.read(info.storage.offset + info.offset + at * info.itemsize, number * info.itemsize)


def _is_rounded(values: bytes, rounded: bytes, dtype: str) -> bool:
    """Return whether ``values`` (float32), rounded to ``dtype``, equal ``rounded``; a NaN in ``values`` equals all."""
    number = len(values) // 4
    if dtype == "bfloat16":
        bits, wanted = struct.unpack(f"<{number}I", values), struct.unpack(f"<{number}H", rounded)
        return all(
            (one + 0x7FFF + (one >> 16 & 1)) >> 16 == other or one & 0x7FFFFFFF > 0x7F800000
            for one, other in zip(bits, wanted, strict=True)
        )
    code = "f" if dtype == "float32" else "e"
    ours, theirs = struct.unpack(f"<{number}f", values), struct.unpack(f"<{number}{code}", rounded)
    return all(_half(one, code) == other or math.isnan(one) for one, other in zip(ours, theirs, strict=True))


def _half(value: float, code: str) -> float:
    try:
        return float(struct.unpack(f"<{code}", struct.pack(f"<{code}", value))[0])
    except OverflowError:  # struct refuses what rounds to infinity
        return math.copysign(math.inf, value)
