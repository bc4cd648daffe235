"""Makes notes on universal checkpoints of DeepSpeed whose weights do not fit the model states in the same folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape, listing
from ..torch.zero import StateFile
from .zero_values import is_like

__all__ = ["listed", "odd_notes", "unlike_notes"]

COMPARED = 64
"""The most weights that are compared with the model states."""
LISTS = ("param_shapes", "frozen_param_shapes", "buffer_names", "shared_params")
"""Entries of the model states that list parameters and buffers."""


def odd_notes(weights: Mapping[str, TensorInfo], states: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    """Yield notes on weights that are not float32 or that no model states list, and on missing model states.

    ``states`` has the names of the files with model states, and ``known`` the parameters that these files list; it is
    empty if they list none.
    """
    others = [f"{escape(key)} ({info.dtype})" for key, info in weights.items() if info.dtype != "float32"]
    if others:
        text = f"{count(len(others), 'weight')} not in float32, which DeepSpeed writes: {listing(others, where='')}"
        yield Note(NoteKind.SPLIT_TENSORS, text)
    listed = set(known)
    unlisted = [key for key in weights if key not in listed] if listed else []
    if unlisted:
        text = (
            f"the model states do not list {count(len(unlisted), 'parameter')} of zero/: {listing(unlisted, where='')}"
        )
        yield Note(NoteKind.SPLIT_TENSORS, text)
    if not states:
        text = (
            "there are no model states, so a parameter without a folder is not noticed, and buffers, frozen parameters "
            "and the further names of tied parameters are missing"
        )
        yield Note(NoteKind.SPLIT_TENSORS, text)


def unlike_notes(weights: Mapping[str, TensorInfo], model: StateFile, opened: Sequence[StateFile]) -> Iterator[str]:
    """Yield a note if some values of sampled weights, rounded, differ from those in the model states ``model``.

    ``weights`` are the weights in the files ``fp32.pt``; ``opened`` are all open files.
    """
    module = model.tree.get("module")
    if not isinstance(module, Mapping):
        return
    handles = {name: file for one in opened for name, file in one.header.handles.items()}
    some = list(weights)[:: len(weights) // COMPARED + 1]
    unlike = [key for key in some if not is_like(weights[key], module.get(key), handles)]
    if unlike:
        text = (
            f"of {count(len(some), 'sampled weight')}, {len(unlike)}, when rounded, differ from those in "
            f"{escape(model.file.name)}: the files are of different steps: {listing(unlike, where='')}"
        )
        yield Note(NoteKind.SPLIT_TENSORS, text)


def listed(trees: Sequence[Any], names: Sequence[str] = LISTS) -> Iterator[str]:
    """Yield the parameter names that the model states ``trees`` list in their entries ``names``.

    Such an entry may be a dict by name, a name, or a list of these.
    """
    for tree in trees:
        for name in names if isinstance(tree, Mapping) else ():
            found = tree.get(name)
            for one in found if isinstance(found, (list, tuple)) else [found]:
                yield from (key for key in (one if isinstance(one, Mapping) else [one]) if isinstance(key, str))
