"""The inputs of a plan, open, and what a plan says of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import SourceError
from ...planning.plan.plan import FilePrint, Plan, PlanCompanion, PlanSource, PlanTarget
from ...planning.target import Companion, TargetSpec
from ...storage.read.base import File
from ...storage.read.uri import open_source, shown
from ...util.brief import Brief
from ...util.text import escape, listing
from ..model_folder.quantised import parts_elsewhere

if TYPE_CHECKING:
    from ...engine.run.run import Inputs
    from ...methods.merge._method import Method
    from ...planning.transplant.select import Planning, SourceView

__all__ = [
    "OpenInputs",
    "close_inputs",
    "close_plan",
    "file_print",
    "memory_print",
    "names_of",
    "plan_source",
    "plan_target",
    "said_of",
    "unwrap_notes",
    "view_of",
]


BLOCK = 1 << 20


@dataclass(frozen=True, repr=False)
class OpenInputs(Brief):
    """The files a plan was made from, still open; ``others`` are read already, and must not be written.

    ``planning`` is what a transplant was planned from, for questions about the plan. ``plugins`` are merge methods of
    the user's own, ``memory`` the bytes that a merge may take (0: not said).
    """

    sources: tuple[Checkpoint, ...]
    target: TargetSpec | None
    others: tuple[str, ...] = ()
    planning: Planning | None = None
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


def close_inputs(inputs: Inputs | OpenInputs) -> None:
    """Close the files of a plan's sources. Tensors in memory stay with the plan: it cannot open them again."""
    for source in inputs.sources:
        if not source.in_memory:
            source.close()


def close_plan(plan: Plan) -> None:
    """Close the files that a plan, made just now, holds open for whoever applies it."""
    if isinstance(plan.inputs, OpenInputs):
        close_inputs(plan.inputs)
