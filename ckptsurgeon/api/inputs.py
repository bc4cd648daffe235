"""The inputs of a plan, open, and what a plan says of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint
from ..errors import SourceError
from ..plan import FilePrint, Plan, PlanCompanion, PlanSource, PlanTarget
from ..sources import shown
from ..target import TargetSpec
from ..text import escape, listing

if TYPE_CHECKING:
    from ..engine import Inputs
    from ..merges import Method
    from ..planners import Planning

__all__ = [
    "OpenInputs",
    "close_inputs",
    "close_plan",
    "file_print",
    "names_of",
    "plan_source",
    "plan_target",
    "said_of",
]


@dataclass(frozen=True)
class OpenInputs:
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


def said_of(opened: Sequence[Checkpoint]) -> list[str]:
    """Return the notes of inputs, and which of their entries, being no tensors, do not come along."""
    names = list(dict.fromkeys(extra.key for checkpoint in opened for extra in checkpoint.extras))
    notes = [note for checkpoint in opened for note in checkpoint.notes]
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
    files = tuple(
        FilePrint(file.name, file.size, file.sha256, file.mtime_ns, file.validator) for file in checkpoint.files
    )
    return PlanSource(
        name, checkpoint.path, checkpoint.root, checkpoint.stripped, files, role, tuple(map(dict, operations))
    )


def plan_target(target: TargetSpec) -> PlanTarget:
    """Return what a plan says of a destination."""
    files = target_files(target)
    prints = {file.name: file for file in files}
    companions = []
    for one in target.companions:
        data = one.text.encode()
        size, digest = len(data), hashlib.sha256(data).hexdigest()
        if one.path:
            size, digest = prints[one.path].size, prints[one.path].sha256
        companions.append(PlanCompanion(one.name, size, digest, one.path, one.text))
    implied = tuple(key for key in target.tensors if key in target.implied)
    return PlanTarget(target.kind, target.name, target.config, files, tuple(companions), implied)


def target_files(target: TargetSpec) -> tuple[FilePrint, ...]:
    """Return the fingerprints of a destination's configuration and of the files it reads."""
    paths = [path for path in (target.config, *target.files) if path]
    return tuple(file_print(path) for path in paths)


def file_print(path: str) -> FilePrint:
    """Return the fingerprint of a small file, which is read whole; raises SourceError."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found = os.fstat(file.fileno())
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error
    return FilePrint(path, found.st_size, digest, found.st_mtime_ns)


def close_inputs(inputs: Inputs) -> None:
    """Close the sources of a plan."""
    for source in inputs.sources:
        source.close()


def close_plan(plan: Plan) -> None:
    """Close the files that a plan, made just now, holds open for whoever applies it."""
    if isinstance(plan.inputs, OpenInputs):
        for source in plan.inputs.sources:
            source.close()
