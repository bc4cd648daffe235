"""Checks that the quantisation settings describe the tensors, and that no part of a quantised tensor is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ....checkpoint.quantised_values import ORDERS, OUTSIDE, UNSET
from ....util.note_kind import NoteKind
from ....util.text import count, listing
from ..check import SHOWN, Check, of_keys
from ..note_findings import noted
from ..report import Found, Status
from ..subject import Subject
from ._inspect_notes import damaged, unless_noted

__all__ = ["CHECK"]

ID = "quantisation"


def _run(subject: Subject) -> Iterator[Found]:
    yield from noted(subject, ID)
    if not any(note.kind is NoteKind.GROUP_INDEX for note in subject.notes) and (keys := [*_orders_outside(subject)]):
        has = "has" if len(keys) == 1 else "have"
        yield of_keys(Status.FAIL, keys, f"{has} {OUTSIDE}", NoteKind.BROKEN_CODES.todo)


def _orders_outside(subject: Subject) -> Iterator[str]:
    """Yield the keys of column orders (``g_idx`` of GPTQ) that contain the index of a group without scales.

    A ``weight_g_idx`` in which all indices are -1 is not used.
    """
    for parts in subject.by_weight.values():
        for end, scales, place in ORDERS.values():
            key, shape = parts.get(end, ""), subject.tensors[parts[scales]].shape if scales in parts else ()
            figures = subject.measured[key].figures if key in subject.measured and len(shape) == 2 else None
            is_unset = figures is not None and place == 1 and figures.low == figures.high == UNSET
            if figures is not None and not is_unset and (figures.low < 0 or figures.high >= shape[place]):
                yield key


def _looks_at(subject: Subject) -> str:
    """Return the number of quantised tensors of each encoding, such as "14 tensors fp8 with one scale"."""
    found = Counter(subject.methods[key] for key in subject.codes if key in subject.methods)
    return listing([f"{count(number, 'tensor')} {method}" for method, number in found.most_common()], SHOWN)


CHECK = Check(ID, "quantised tensors are complete and as described", _run, unless_noted(ID, damaged), _looks_at)
