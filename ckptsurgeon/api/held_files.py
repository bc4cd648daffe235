"""The files beside the sources that a plan was made from: they must be what they were when it is carried out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, PlanError, SourceError
from ..plan import FilePrint, Note, Plan, PlanSource
from ..sources import leads_out
from ..text import escape
from .inputs import file_print
from .model_folders import ADAPTER, CONFIG, ModelFolder

__all__ = ["changed_beside", "check_beside", "with_beside_held", "with_lists_held", "with_settings_held"]

LARGEST = 256 << 20


def with_beside_held(plan: Plan, folders: Sequence[ModelFolder]) -> Plan:
    """Return a plan whose sources have the fingerprints of what was read beside them, settings in any case."""
    held = []
    for source, folder in zip(plan.sources, folders, strict=False):
        with suppress(CheckpointError):  # too large, which was said where it was wanted
            folder.fingerprint(CONFIG, ADAPTER)
        held.append(replace(source, beside=folder.prints))
    return replace(plan, sources=(*held, *plan.sources[len(held) :]))


def with_settings_held(plan: Plan, folder: ModelFolder) -> Plan:
    """Return the plan of an edit with the fingerprints of what is written otherwise than its source has it.

    What is copied as it is, is held where it is copied: a single file goes without it.
    """
    changed = {one.name for one in plan.target.companions if one.text}
    beside = tuple(one for one in folder.prints if one.name in changed)
    first, *rest = plan.sources
    return replace(plan, sources=(replace(first, beside=beside), *rest)) if beside else plan


def with_lists_held(plan: Plan, paths: Iterable[str], folders: Sequence[ModelFolder]) -> Plan:
    """Return a plan with the fingerprints of token lists that are not held as files beside its sources."""
    beside = {os.path.join(folder.path, one.name) for folder in folders for one in folder.prints}
    copied = {one.path for one in plan.target.companions}
    known = beside | copied | {file.name for file in plan.target.files}
    lists = [path for path in dict.fromkeys(paths) if path and path not in known]
    files = (*plan.target.files, *map(file_print, lists))
    return replace(plan, target=replace(plan.target, files=files)) if lists else plan


def check_beside(source: PlanSource, checkpoint: Checkpoint) -> None:
    """Raise PlanError for a file beside a source that is not what was planned with."""
    for name in _changed(source, checkpoint):
        path = os.path.join(checkpoint.around.uri if checkpoint.around is not None else source.path, name)
        raise PlanError(f"{escape(path)} has changed since the plan.", hint="Plan again.")


def changed_beside(sources: Sequence[PlanSource], found: Mapping[int, Checkpoint]) -> Iterator[Note]:
    """Yield the files beside the sources that are there which are not what the output was made with."""
    for index, checkpoint in found.items():
        for name in _changed(sources[index], checkpoint):
            yield Note(name, f"beside {escape(sources[index].name)}, and not what the output was made with")


def _changed(source: PlanSource, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the names of files beside a source that are others now, or gone."""
    for file in source.beside:
        if _digest(checkpoint, file) != file.sha256:
            yield file.name


def _digest(checkpoint: Checkpoint, file: FilePrint) -> str:
    """Return the SHA-256 of a file beside a checkpoint, '' for one that is gone or has another size."""
    folder = checkpoint.around
    if folder is None or leads_out(os.path.join(folder.uri, file.name)):
        return ""
    try:
        with closing(folder.file(file.name)) as beside:
            if beside.size != file.size or file.size > LARGEST:
                return ""
            return hashlib.sha256(beside.read(0, beside.size)).hexdigest()
    except SourceError:
        return ""
