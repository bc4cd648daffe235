"""Copies the terms of use of the weights (LICENSE, NOTICE, USE_POLICY.md) to output folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from ...errors import CheckpointError
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...storage.read.uri import read_small
from ...util.text import escape, listing
from ..inputs.inputs import plan_companion
from .folder import LARGEST, ModelFolder

__all__ = ["with_licences"]


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
    notes = tuple(note for one in others for note in _other_terms(first, one))
    target = plan.target
    target = replace(target, companions=(*target.companions, *added), notes=(*target.notes, *notes))
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
    """Return a digest of the words of a file; line breaks and indentation do not count."""
    with suppress(CheckpointError):
        return hashlib.sha256(b" ".join(read_small(file.path, LARGEST).split())).hexdigest()
    return file.path  # an unreadable file is reported when it is copied
