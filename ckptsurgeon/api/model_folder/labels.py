"""Labels of classifiers: rows that stand for one label in one model and for another in another, a note on those."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...planning.plan.plan import Plan
from ...planning.transplant.by_place import is_of_labels
from ...util.text import count, escape

__all__ = ["label_notes"]

_NUMBERED = re.compile(r"LABEL_\d+")
"""What transformers calls labels that nobody named."""
LONGEST = 10
"""Digits of a number that is a row's."""


def label_notes(
    plan: Plan, source: int, theirs: Mapping[str, Any], name: str, ours: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a note on the first classifier whose rows a source of a plan gives by place, though labels are elsewhere.

    ``theirs`` is the source's configuration, ``ours`` that of the output, ``name`` whose it is.
    """
    there, here = _labels(theirs), _labels(ours)
    rows = [row for row in sorted(there.keys() & here.keys()) if there[row].casefold() != here[row].casefold()]
    keys = [
        step.key
        for step in plan.steps
        for one in step.inputs
        if one.source == source and is_of_labels(step.key) and one.shape[:1] == (len(there),)
    ]
    keys.sort(key=lambda key: not key.endswith("weight"))
    if rows and keys:
        row, more = rows[0], len(rows) - 1
        also = f"; {count(more, 'other row')} too" if more else ""
        said = f"{escape(there[row])} in {escape(plan.sources[source].name)}"
        yield f"row {row} of {escape(keys[0])} is {said} and {escape(here[row])} in {escape(name)} (id2label){also}"


def _labels(config: Mapping[str, Any]) -> dict[int, str]:
    """Return the label of each row, none if nobody named them."""
    said = config.get("id2label")
    labels = said.items() if isinstance(said, dict) else ()
    rows = {row: label for row, label in labels if row.isdecimal() and len(row) < LONGEST and isinstance(label, str)}
    found = {int(row): label for row, label in rows.items()}
    return {} if all(map(_NUMBERED.fullmatch, found.values())) else found
