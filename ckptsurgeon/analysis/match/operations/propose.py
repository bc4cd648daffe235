"""Proposes rules and operations that turn a source's tensors into a destination's, from headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..proposal import Proposal, Tensors
from ..transposed import transposed_note
from .assemble import Answer, assembled
from .from_headers import header_changes, reordered

__all__ = ["with_operations", "without_transposed_note"]


def with_operations(
    found: Proposal, source: Tensors, destination: Tensors, orders: Mapping[str, tuple[str, int]] | None = None
) -> Proposal:
    """Return the proposal ``found``, which has rules only, with operations for tensors that rules cannot convert.

    ``orders`` maps the source keys of query and key projections to (verb of the operation that reorders their rows,
    number of heads).
    """
    more = header_changes(found, source, destination)
    changes = [*more.changes, *reordered(found.names, orders or {})]
    found = replace(found, notes=(*found.notes, *more.notes))
    if not changes and not more.undecided:
        return found
    used = {key for change in changes for key in change.sources}
    names = {old: new for old, new in found.names.items() if old not in used}
    plain = without_transposed_note(found, source)
    return assembled(plain, Answer(names, found.evidence, changes, more.undecided), source, destination)


def without_transposed_note(found: Proposal, source: Tensors) -> Proposal:
    """Return a proposal without the note that no rule is proposed for transposed matrices."""
    if not found.turned:
        return found
    note = transposed_note(found.turned, found.names, source)
    return replace(found, notes=tuple(one for one in found.notes if one != note))
