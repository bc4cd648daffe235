"""Finds the items of an Orbax checkpoint: the folders with arrays, in a step, or in the only step of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import FormatError
from ...storage.read.base import Folder
from ...storage.read.local import LocalFolder
from ...util.text import escape, listing, natural_key
from ..base.format_table import is_exported, is_weights
from .files import MANIFEST
from .tree import METADATA

__all__ = ["Place", "find_items", "is_checkpoint"]

_STEP_METADATA = "_CHECKPOINT_METADATA"
_MARKS = {METADATA, _STEP_METADATA, MANIFEST}
_OLD = "checkpoint"
"""A file that Orbax before 0.5 and T5X wrote next to the folders of arrays; other toolkits use the same name.

It is a msgpack file of Flax with the tree of values. For an array that is stored as zarr, it has the name of the array
or a description for tensorstore (https://github.com/google-research/t5x/blob/main/t5x/checkpoints.py).
"""
_STEP = re.compile(r"(?:(?:checkpoint|ckpt|step)[_-]?)?\d+")
"""Matches the name of the folder of a step."""
_PROCESS = "ocdbt.process_"
"""The names of the databases of single processes begin with this."""
_UNFINISHED = ".orbax-checkpoint-tmp"
_LOOKED_INTO = 64
"""The most subfolders that are searched."""


@dataclass(frozen=True)
class Place:
    """The folder of a checkpoint, and the names of the subfolders that are its items; '' is the folder itself.

    ``notes`` are notes for the user.
    """

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
    if any(_items(folder)) or _steps(folder, inside):
        return True
    return _OLD in names and any(map(_is_array, inside.values()))


def find_items(folder: LocalFolder) -> Place:
    """Return the folder that has the arrays of a checkpoint, with its items and notes.

    Raises FormatError if there are no arrays, if they are of several steps, if they were not saved to the end, or if
    the folder has too many subfolders to search them.
    """
    if _UNFINISHED in folder.name:
        raise FormatError(
            f"the save of {escape(folder.uri)} was not finished.", hint="Pass another step.", rule="orbax unfinished"
        )
    place = _place(folder)
    if place.items:
        return place
    steps = sorted(_steps(folder, _searched(folder)), key=natural_key)
    if len(steps) > 1:
        raise FormatError(
            f"{escape(folder.uri)} has several steps: {listing(steps)}.",
            hint=f"Pass the folder of one step, for example {escape(os.path.join(folder.uri, steps[-1]))}.",
            details=steps,
            rule="several checkpoints",
        )
    if not steps:
        raise FormatError(f"{escape(folder.uri)} is a checkpoint of Orbax without arrays.", rule="no checkpoint")
    found = _place(folder.inside(steps[0]))
    return replace(found, notes=(f"read the only step: {escape(steps[0])}", *place.notes, *found.notes))


def _place(folder: LocalFolder) -> Place:
    """Return the items of a folder (possibly none), and notes on subfolders and files that are not read.

    Raises FormatError if it has too many subfolders to search them.
    """
    items = _items(folder)
    if items != [""]:
        _check_number(folder)
    skipped = _skipped(folder, items)
    notes = [f"folders that are not read: {listing(skipped, where='')}"] if skipped else []
    old = [os.path.join(name, _OLD) for name in items if _has_old_file(folder.inside(name) if name else folder)]
    return Place(folder, items, [*notes, *(f"the values in the file {escape(name)} are not read" for name in old)])


def _skipped(folder: LocalFolder, items: Sequence[str]) -> list[str]:
    """Return the names of the subfolders that a note reports as not read."""
    inside = _searched(folder)
    if items == [""]:  # other subfolders are its arrays and its databases
        return [name for name, content in inside.items() if _is_item(content) and not name.startswith(_PROCESS)]
    steps = () if items else _steps(folder, inside)
    return [name for name in inside if name not in items and name not in steps]


def _check_number(folder: LocalFolder) -> None:
    names = folder.folders()
    if len(names) > _LOOKED_INTO:
        example = max([name for name in names if _STEP.fullmatch(name)] or names, key=natural_key)
        raise FormatError(
            f"{escape(folder.uri)} has {len(names):,} folders, more than the {_LOOKED_INTO} that are searched.",
            hint=f"Pass the folder of one step or item, for example {escape(os.path.join(folder.uri, example))}.",
            rule="orbax folders",
        )


def _items(folder: LocalFolder) -> list[str]:
    """Return the names of the subfolders that are items; [''] if the folder itself is an item.

    Only the first subfolders are searched.
    """
    names, inside = set(folder.names()), _searched(folder)
    is_step = _STEP_METADATA in names
    if names & {METADATA, MANIFEST} or (not is_step and any(map(_is_array, inside.values()))):
        return [""]
    named = {name: content for name, content in inside.items() if is_step or not _STEP.fullmatch(name)}
    return [
        name
        for name, content in named.items()
        if _is_item(content) or ((is_step or _OLD in content) and _has_arrays(folder.inside(name)))
    ]


def _has_arrays(folder: LocalFolder) -> bool:
    return any(map(_is_array, _searched(folder).values()))


def _has_old_file(folder: LocalFolder) -> bool:
    """Return whether an item has a file with values in the layout of Orbax before 0.5 and of T5X."""
    names = folder.names()
    return _OLD in names and METADATA not in names


def _searched(folder: LocalFolder) -> Mapping[str, Sequence[str]]:
    """Return {name of a subfolder: names of its files and folders}, of the first subfolders only."""
    return {name: list(_content(folder.inside(name))) for name in folder.folders()[:_LOOKED_INTO]}


def _content(folder: LocalFolder) -> Iterator[str]:
    yield from folder.names()
    yield from folder.folders()


def _is_item(names: Sequence[str]) -> bool:
    return METADATA in names or MANIFEST in names or any(name.startswith(_PROCESS) for name in names)


def _is_array(names: Sequence[str]) -> bool:
    return ".zarray" in names or "zarr.json" in names


def _steps(folder: LocalFolder, inside: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of the subfolders that are checkpoints of steps; ``inside`` has each subfolder's content."""
    named = {name: content for name, content in inside.items() if _STEP.fullmatch(name)}
    return [name for name, content in named.items() if _MARKS & set(content) or _items(folder.inside(name))]
