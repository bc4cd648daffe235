"""Finds the items of an Orbax checkpoint: the folders with arrays, in a step, or in the only step of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import FormatError
from ...storage.read.base import Folder
from ...storage.read.local import LocalFolder
from ...util.text import escape, listing, natural_key
from .._choosing import is_exported, is_weights
from .files import MANIFEST
from .tree import METADATA

__all__ = ["Place", "find_items", "is_checkpoint"]

_STEP_METADATA = "_CHECKPOINT_METADATA"
_MARKS = {METADATA, _STEP_METADATA, MANIFEST}
_OLD = "checkpoint"
"""A file that Orbax before 0.5 and T5X wrote next to the folders of arrays; other toolkits have such a file, too."""
_STEP = re.compile(r"(?:(?:checkpoint|ckpt|step)[_-]?)?\d+")
"""Matches the name of the folder of a step."""
_UNFINISHED = ".orbax-checkpoint-tmp"
_LOOKED_INTO = 64
"""The most subfolders that are searched."""


@dataclass(frozen=True)
class Place:
    """The folder of a checkpoint, and the names of its items; '' is the folder itself. ``notes`` are for the user."""

    folder: LocalFolder
    items: Sequence[str]
    notes: Sequence[str] = ()


def is_checkpoint(folder: Folder) -> bool:
    """Return whether a folder is a checkpoint of Orbax, an item of one, or has the checkpoints of a run."""
    names = folder.names()
    if _MARKS & set(names):
        return True
    if not isinstance(folder, LocalFolder) or any(is_weights(name) or is_exported(name) for name in names):
        return False
    inside = _searched(folder)
    if any(_is_item(content) for content in inside.values()) or _steps(folder, inside):
        return True
    return _OLD in names and any(map(_is_array, inside.values()))


def find_items(folder: LocalFolder) -> Place:
    """Return where the arrays of a checkpoint are.

    Raises FormatError if there are none, if they are of several steps, or if they were not saved to the end.
    """
    if _UNFINISHED in folder.name:
        raise FormatError(
            f"{escape(folder.uri)} was not saved to the end.", hint="Pass another step.", rule="orbax unfinished"
        )
    found = _items(folder)
    if found:
        return Place(folder, found)
    steps = sorted(_steps(folder, _searched(folder)), key=natural_key)
    if len(steps) > 1:
        raise FormatError(
            f"{escape(folder.uri)} has several steps: {listing(steps)}.",
            hint=f"Pass one of them, for example {escape(os.path.join(folder.uri, steps[-1]))}.",
            details=steps,
            rule="several checkpoints",
        )
    if not steps:
        raise FormatError(f"{escape(folder.uri)} is a checkpoint of Orbax without arrays.", rule="no checkpoint")
    step = folder.inside(steps[0])
    return Place(step, _items(step), (f"read the only step: {escape(steps[0])}",))


def _items(folder: LocalFolder) -> list[str]:
    names = set(folder.names())
    inside = _searched(folder)
    if names & {METADATA, MANIFEST} or (_STEP_METADATA not in names and any(map(_is_array, inside.values()))):
        return [""]
    return [name for name, content in inside.items() if not _STEP.fullmatch(name) and _is_item(content)]


def _searched(folder: LocalFolder) -> Mapping[str, Sequence[str]]:
    """Return {name of a subfolder: names of its files and folders}, of the first subfolders only."""
    return {name: list(_content(folder.inside(name))) for name in folder.folders()[:_LOOKED_INTO]}


def _content(folder: LocalFolder) -> Iterator[str]:
    yield from folder.names()
    yield from folder.folders()


def _is_item(names: Sequence[str]) -> bool:
    return METADATA in names or MANIFEST in names or any(name.startswith("ocdbt.process_") for name in names)


def _is_array(names: Sequence[str]) -> bool:
    return ".zarray" in names or "zarr.json" in names


def _steps(folder: LocalFolder, inside: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of those subfolders that are checkpoints of steps; ``inside`` has the content of each."""
    named = {name: content for name, content in inside.items() if _STEP.fullmatch(name)}
    return [name for name, content in named.items() if _MARKS & set(content) or _items(folder.inside(name))]
