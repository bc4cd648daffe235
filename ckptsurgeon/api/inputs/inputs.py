"""The inputs of a plan, open, and what a plan says of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import SourceError
from ...planning.plan.files import FilePrint, PlanCompanion, PlanSource, PlanTarget
from ...planning.plan.plan import Plan
from ...planning.target import Companion, TargetSpec
from ...storage.json_text import read_json
from ...storage.read.base import File
from ...storage.read.uri import open_source, shown
from ...util.brief import Brief
from ...util.text import escape, listing
from ..model_folder.quantised import parts_elsewhere

if TYPE_CHECKING:
    from ...engine.run import PlanInputs
    from ...methods.merge._method import Method
    from ...planning.transplant.select import PlanningInputs, SourceView

__all__ = [
    "OpenInputs",
    "close_inputs",
    "close_plan",
    "file_print",
    "memory_print",
    "merged_notes",
    "names_of",
    "plan_source",
    "plan_target",
    "said_of",
    "twice_notes",
    "unwrap_notes",
    "view_of",
]

# Inputs that are one and the same, or merged already, which then count as often as that: a note.

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


@dataclass(frozen=True, repr=False)
class OpenInputs(Brief):
    """The files a plan was made from, still open; ``others`` are read already, and must not be written.

    ``planning`` is what a transplant was planned from, for questions about the plan. ``plugins`` are merge methods of
    the user's own, ``memory`` the bytes that a merge may take (0: not said).
    """

    sources: tuple[Checkpoint, ...]
    target: TargetSpec | None
    others: tuple[str, ...] = ()
    planning: PlanningInputs | None = None
    plugins: tuple[Method, ...] = ()
    memory: int = 0


def unwrap_notes(opened: Sequence[Checkpoint], *, asked: bool) -> list[str]:
    """Say that --unwrap was asked for and no input has wrappers around its keys."""
    if not asked or any(one.stripped for one in opened):
        return []
    return [f"--unwrap changes nothing: no keys of {listing([one.path for one in opened], where='')} are wrapped"]


def said_of(opened: Sequence[Checkpoint], *, unwrap: bool) -> list[str]:
    """Return the notes of inputs, and which of their entries, being no tensors, do not come along."""
    names = list(dict.fromkeys(extra.key for checkpoint in opened for extra in checkpoint.extras))
    notes = [note for one in opened for note in (*one.notes, *parts_elsewhere(one))]
    notes += unwrap_notes(opened, asked=unwrap)
    return [*notes, f"left out: {listing(names)}"] if names else notes


def names_of(paths: Sequence[str]) -> list[str]:
    """Return what messages and recipes call each path: its last part, with as many before it as tell it apart.

    Never an absolute path: the same inputs give the same recipe wherever they lie.
    """
    names: list[str] = []
    for path in map(shown, paths):
        parts = os.path.normpath(path).strip(os.sep).split(os.sep) if "://" not in path else [path]
        tails = ["/".join(parts[-size:]) for size in range(1, min(len(parts), 3) + 1)]
        name = next((tail for tail in tails if tail not in names), "")
        number = 2
        while not name or name in names:
            name, number = f"{tails[0]} ({number})", number + 1
        names.append(name)
    return names


def plan_source(name: str, checkpoint: Checkpoint, role: str = "source", operations: Sequence[Any] = ()) -> PlanSource:
    """Return what a plan says of an open checkpoint, and of the operations that made its tensors."""
    said = (checkpoint.root, checkpoint.stripped)
    made = tuple(map(dict, operations))
    if checkpoint.in_memory:
        return PlanSource(name, "", *said, (memory_print(checkpoint),), role, made, memory=True)
    files = tuple(
        FilePrint(file.name, file.size, file.sha256, file.mtime_ns, file.validator) for file in checkpoint.files
    )
    return PlanSource(name, checkpoint.path, *said, files, role, made)


def memory_print(checkpoint: Checkpoint) -> FilePrint:
    """Return the fingerprint of tensors in memory, which a file has that holds the same: keys, dtypes and shapes."""
    rows = sorted([key, info.dtype, info.shape] for key, info in checkpoint.items())
    digest = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
    return FilePrint("", sum(info.nbytes for info in checkpoint.values()), digest)


def view_of(source: PlanSource, checkpoint: Checkpoint) -> SourceView:
    """Return an open checkpoint as planners see it."""
    from ...planning.transplant.select import SourceView

    return SourceView(source, checkpoint, codes=checkpoint.codes)


def plan_target(target: TargetSpec) -> PlanTarget:
    """Return what a plan says of a destination."""
    files, companions = target_files(target), tuple(map(_companion, target.companions))
    implied = tuple(key for key in target.tensors if key in target.implied)
    return PlanTarget(
        target.kind, target.name, target.config, files, companions, implied, lists=target.lists
    )  # fmt: skip


def _companion(one: Companion) -> PlanCompanion:
    if one.path:
        return PlanCompanion.copy_of(one.name, one.path, partial(_size_and_digest, one.path))
    data = one.text.encode()
    return PlanCompanion(one.name, len(data), hashlib.sha256(data).hexdigest(), text=one.text)


def _size_and_digest(path: str) -> tuple[int, str]:
    found = file_print(path)
    return found.size, found.sha256


def target_files(target: TargetSpec) -> tuple[FilePrint, ...]:
    """Return the fingerprints of a destination's configuration and of the files it reads, but for those it copies."""
    copied = {one.path for one in target.companions} - {target.config, *target.lists}
    paths = [path for path in (target.config, *target.files) if path and path not in copied]
    return tuple(file_print(path) for path in paths)


def file_print(path: str) -> FilePrint:
    """Read a whole file that is not a checkpoint and return its fingerprint; raises SourceError."""
    source = open_source(path)
    if not isinstance(source, File):
        raise SourceError(f"{escape(path)} is a folder.")
    digest = hashlib.sha256()
    with closing(source) as file:
        for begin in range(0, file.size, BLOCK):
            digest.update(file.read(begin, min(BLOCK, file.size - begin)))
    return FilePrint(path, source.size, digest.hexdigest(), source.mtime_ns, source.validator)


def close_inputs(inputs: PlanInputs | OpenInputs) -> None:
    """Close the files of a plan's sources. Tensors in memory stay with the plan: it cannot open them again."""
    for source in inputs.sources:
        if not source.in_memory:
            source.close()


def close_plan(plan: Plan) -> None:
    """Close the files that a plan, made just now, holds open for whoever applies it."""
    if isinstance(plan.inputs, OpenInputs):
        close_inputs(plan.inputs)
