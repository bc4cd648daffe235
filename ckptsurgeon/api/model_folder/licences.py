"""Copies the terms of use of the weights (LICENSE, NOTICE) to output folders, and lists files that are not copied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from ...destinations.hf.files import ADAPTER, CONFIG
from ...errors import CheckpointError
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...storage.read.uri import read_small
from ...util.text import escape, listing
from ..inputs.inputs import plan_companion
from .folder import LARGEST, ModelFolder

__all__ = ["with_left_files_said", "with_licences"]


def with_licences(plan: Plan, folders: Sequence[ModelFolder]) -> Plan:
    """Return a plan whose output, if it is a folder, gets the terms of use of the first folder that has any.

    ``folders`` are the folders of all models from which the output is made, the base first. A note names the models
    with different terms, whose files are not copied.
    """
    having = [one for one in folders if one.licences]
    if not having:
        return plan
    first, *others = having
    there = {one.name for one in plan.target.companions}
    added = tuple(plan_companion(one) for one in first.licences if one.name not in there)
    plan = replace(plan, target=replace(plan.target, companions=(*plan.target.companions, *added)))
    return _with_notes(plan, [note for one in others for note in _other_terms(first, one)])


def with_left_files_said(plan: Plan, folder: ModelFolder) -> Plan:
    """Return a plan with a note on the files of ``folder`` that its output, if it is a folder, does not get.

    The configuration gets no note, because the plan writes a new one.
    """
    copied = {one.name for one in plan.target.companions}
    small = (one.name for one in (*folder.files, *folder.licences) if one.name not in (CONFIG, ADAPTER, *copied))
    return _with_notes(plan, replace(folder, left=(*small, *folder.left)).left_notes)


def _with_notes(plan: Plan, notes: Sequence[str]) -> Plan:
    """Return a plan with further notes, which are printed only if the output is a folder."""
    target = replace(plan.target, notes=(*plan.target.notes, *notes))
    return replace(plan, target=target, notes=tuple(dict.fromkeys((*plan.notes, *notes))))


def _other_terms(first: ModelFolder, other: ModelFolder) -> Iterator[str]:
    """Yield a note if the terms of use in ``other`` differ from those in ``first``."""
    ours = set(map(_digest, first.licences))
    theirs = [one.name for one in other.licences if _digest(one) not in ours]
    if theirs:
        gets = f"whose {listing([one.name for one in first.licences], 6, where='')} the output gets"
        yield (
            f"{escape(other.path)} has different terms of use ({listing(theirs, 6, where='')}) than "
            f"{escape(first.path)}, "
            f"{gets}: read the terms of both"
        )


def _digest(file: Companion) -> str:
    """Return a digest of the words of a file; a change of line breaks or indentation only does not change it."""
    with suppress(CheckpointError):
        return hashlib.sha256(b" ".join(read_small(file.path, LARGEST).split())).hexdigest()
    return file.path  # an unreadable file is reported when it is copied
