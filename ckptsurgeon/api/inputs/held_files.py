"""The files beside the sources that a plan was made from: they must be what they were when it is carried out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import CheckpointError, PlanError, SourceError
from ...planning.plan.plan import FilePrint, Plan, PlanSource
from ...planning.plan.receipt import Note
from ...storage.read._links import leads_out
from ...storage.read.uri import scheme_of
from ...util.text import escape
from ..model_folder.added_tokens import ADDED
from ..model_folder.file_names import VOCABULARIES
from ..model_folder.folder import ModelFolder

__all__ = ["changed_beside", "check_beside", "with_beside_held", "with_settings_held"]

LARGEST = 256 << 20


def with_beside_held(plan: Plan, folders: Sequence[ModelFolder]) -> Plan:
    """Return a plan whose sources have the fingerprints of what was read beside them, settings in any case."""
    held, is_compared = [], any(folder.vocabulary for folder in folders)
    for source, folder in zip(plan.sources, folders, strict=False):
        with suppress(CheckpointError):  # too large, which was said where it was wanted
            folder.fingerprint(CONFIG, ADAPTER)
        read = {one.name: one for one in (*source.beside, *folder.prints)}
        held.append(replace(source, beside=(*read.values(), *(_lacking(folder) if is_compared else ()))))
    return replace(plan, sources=(*held, *plan.sources[len(held) :]))


def _lacking(folder: ModelFolder) -> Iterator[FilePrint]:
    """Yield files that would count and are not there, without a digest: a vocabulary before the one that counts."""
    if not folder.files or scheme_of(folder.path):
        return
    rank = VOCABULARIES.index(folder.vocabulary) if folder.vocabulary else len(VOCABULARIES)
    there = {one.name for one in folder.files}
    names = (*VOCABULARIES[:rank], *((ADDED,) if folder.vocabulary and not folder.has_all_tokens else ()))
    yield from (FilePrint(name, 0, "") for name in names if name not in there)


def with_settings_held(plan: Plan, folder: ModelFolder) -> Plan:
    """Return the plan of an edit with the fingerprints of what is written otherwise than its source has it.

    What is copied as it is, is held where it is copied: a single file goes without it.
    """
    changed = {one.name for one in plan.target.companions if one.text}
    beside = tuple(one for one in folder.prints if one.name in changed)
    first, *rest = plan.sources
    return replace(plan, sources=(replace(first, beside=beside), *rest)) if beside else plan


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
    """Return the SHA-256 of a file beside a checkpoint, '' for one that is not there, "another" for another size."""
    folder = checkpoint.around
    if folder is None or leads_out(os.path.join(folder.uri, file.name)):
        return ""
    try:
        with closing(folder.file(file.name)) as beside:
            if beside.size != file.size or file.size > LARGEST or not file.sha256:
                return "another"
            return hashlib.sha256(beside.read(0, beside.size)).hexdigest()
    except SourceError:
        return ""
