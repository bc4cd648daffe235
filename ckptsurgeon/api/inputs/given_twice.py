"""Inputs that are one and the same, or merged already, which then count as often as that: a note."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...storage.json_text import read_json
from ...storage.read.base import File
from ...util.text import escape

__all__ = ["merged_notes", "twice_notes"]

LARGEST = 256 << 20
"""Bytes of the largest file that is compared with another one."""
SAMPLE = 1 << 16
BLOCK = 1 << 20


def twice_notes(opened: Sequence[Checkpoint]) -> list[str]:
    """Say which inputs are the same file, or a copy of it: few bytes tell, as a rule, that two are not."""
    first: dict[Hashable, Checkpoint] = {}
    notes = []
    for one in opened:
        if one.in_memory:
            continue
        found = first.setdefault(_outline(one), one)
        name = escape(one.path)
        if found is not one and found.path == one.path:
            notes.append(f"{name} is given twice, and counts twice")
        elif found is not one and _is_copy(found, one):
            notes.append(f"{name} is a copy of {escape(found.path)}, and both count")
    return notes


def merged_notes(base: Checkpoint, adapters: Sequence[Checkpoint]) -> list[str]:
    """Say which adapters the recipe of a base names as merged into it: the same files, as far as headers tell."""
    try:
        made = read_json(base.recipe or "{}")
        rows = made["sources"][1:] if made.get("verb") == "lora merge" else ()
        folder = os.path.dirname(os.path.abspath(base.path))
        merged = {_print(os.path.join(folder, row["path"]), row["files"]) for row in rows if row["path"]}
    except (ValueError, KeyError, TypeError, AttributeError):  # which verify says
        return []
    return [
        f"{escape(one.path)} is merged into {escape(base.path)} already, as its recipe says: it counts again"
        for one in adapters
        if not one.in_memory and _print(one.path, [vars(each) for each in one.files]) in merged
    ]


def _print(path: str, files: Sequence[Mapping[str, Any]]) -> Hashable:
    place = path if "://" in path else os.path.abspath(path)
    return place, tuple((each["size"], each["sha256"]) for each in files)


def _outline(one: Checkpoint) -> Hashable:
    """Return what copies of a checkpoint have in common; its address, where it is too large or not on this machine."""
    files = one.open_files()
    if "://" in one.path or any(each.size > LARGEST or each.name not in files for each in one.files):
        return one.path, one.root
    ends = [files[each.name].read(max(0, each.size - SAMPLE), min(SAMPLE, each.size)) for each in one.files]
    return one.root, tuple((each.size, each.sha256) for each in one.files), tuple(map(bytes, ends))


def _is_copy(one: Checkpoint, other: Checkpoint) -> bool:
    ours, theirs = one.open_files(), other.open_files()
    return all(_holds(ours[a.name], theirs[b.name]) for a, b in zip(one.files, other.files, strict=True))


def _holds(one: File, other: File) -> bool:
    """Whether two files of one size hold the same bytes."""
    places = range(0, one.size, BLOCK)
    return all(one.read(at, min(BLOCK, one.size - at)) == other.read(at, min(BLOCK, one.size - at)) for at in places)
