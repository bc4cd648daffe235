"""Compares the steps in the optimizer states of all ranks of DeepSpeed ZeRO, and makes a note if they differ."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import SourceError
from ...storage.read.base import File, Folder
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape
from .._open import read_header
from ..torch.zero import StateFile

__all__ = ["optimizer_step_notes", "parameter_step_notes"]

COMPARED = 1024
"""The steps of at most this many parameters of a universal checkpoint are compared."""
_STATES = ("optimizer_state_dict", "base_optimizer_state")
_CODES = {"float32": "<f", "float64": "<d", "int64": "<q", "int32": "<i"}


def optimizer_step_notes(
    optimizers: Sequence[StateFile], states: Sequence[Mapping[Any, Any]], handles: Mapping[str, File]
) -> Iterator[str]:
    """Yield a note if the optimizer states of the ranks, ``states``, were saved at different steps."""
    found: dict[float, str] = {}
    for one, state in zip(optimizers, states, strict=True):
        step = next(_steps(state, handles), None)
        if step is not None:
            found.setdefault(step, one.file.name)
    if len(found) > 1:
        shown = ", ".join(f"{step:g} in {escape(name)}" for step, name in list(found.items())[:3])
        text = f"the optimizer states of the ranks are of different steps ({shown}): they are not of one checkpoint"
        yield Note(NoteKind.SPLIT_TENSORS, text)


def parameter_step_notes(folder: Folder, zero: str, parameters: Sequence[str], done: Any) -> Iterator[str]:
    """Yield a note if the files ``step.pt`` of a universal checkpoint contradict each other, or the model states.

    ``zero`` is the path of the folder with a subfolder for each of ``parameters``; ``done`` is the number of steps in
    the model states. The optimizer may have taken fewer steps than the model, if it was created later, but not more.
    """
    found: dict[float, str] = {}
    for key in parameters[:: len(parameters) // COMPARED + 1]:
        step = _step_in(folder, f"{zero}/{key}/step.pt")
        if step is not None:
            found.setdefault(step, key)
    shown = ", ".join(f"{step:g} of {escape(key)}" for step, key in list(found.items())[:3])
    if len(found) > 1:
        text = f"the files step.pt have different steps ({shown}): the weights are perhaps not of one checkpoint"
        yield Note(NoteKind.SPLIT_TENSORS, text)
    elif found and type(done) is int and max(found) > done:
        text = f"step.pt has more steps ({shown}) than the model states ({done}): they are not of one checkpoint"
        yield Note(NoteKind.SPLIT_TENSORS, text)


def _step_in(folder: Folder, name: str) -> float | None:
    """Return the number in the file ``name``; None if it cannot be opened, or has no number as ``_number`` reads it."""
    try:
        file = folder.file(name)
    except SourceError:
        return None
    try:
        header = read_header(file, name)
        return _number(header.tree, header.handles)
    finally:
        file.close()


def _steps(state: Mapping[Any, Any], handles: Mapping[str, File]) -> Iterator[float]:
    """Yield the numbers of steps in an optimizer's state: those of parameters, then those of parameter groups."""
    for name in _STATES:
        inner = state.get(name)
        holders: list[Any] = list(inner) if isinstance(inner, (list, tuple)) else []
        if isinstance(inner, Mapping):
            of_parameters, groups = inner.get("state"), inner.get("param_groups")
            holders += of_parameters.values() if isinstance(of_parameters, Mapping) else []
            holders += groups if isinstance(groups, (list, tuple)) else []
        for holder in holders:
            step = _number(holder.get("step"), handles) if isinstance(holder, Mapping) else None
            if step is not None:
                yield step


def _number(value: Any, handles: Mapping[str, File]) -> float | None:
    """Return a number, also if it is a tensor with one element; None for anything else.

    Also returns None for numbers from 1e15 on, and for tensors in files that are not local.
    """
    if type(value) in (int, float):
        return float(value) if abs(value) < 1e15 else None
    storage = value.storage if isinstance(value, TensorInfo) and value.is_plain and value.numel == 1 else None
    if storage is None or storage.file not in handles or value.dtype not in _CODES:
        return None
    code = _CODES[value.dtype]
    if not is_local(handles[storage.file]):
        return None
    raw = handles[storage.file].read(storage.offset + value.offset, struct.calcsize(code))
    return float(struct.unpack(code, raw)[0])
