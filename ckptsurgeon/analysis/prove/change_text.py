"""Texts on how a weight differs: it equals another weight of the first network, or its rows or experts were moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...util.text import count, escape, percent_number, shape_text
from .figures import Distance
from .proof import ChangedTensor, MovedExpert

__all__ = ["NOT_FINITE", "change_text", "error_text", "experts_text", "share_text"]

NOT_FINITE = "NaN or infinite in only one"

SHOWN = 8


def change_text(one: ChangedTensor) -> str:
    """Return a text on how much a weight differs and, if known, how it has changed."""
    if one.shapes:
        return f"has another shape: {' and '.join(map(shape_text, one.shapes))}"
    if math.isnan(one.error):
        return f"has values that are {NOT_FINITE} of the two{_origin(one)}"
    return f"differs by {share_text(one.error)}{_origin(one)}"


def error_text(found: Distance) -> str:
    """Return the relative error of two outputs as a percentage; if it cannot be computed, why."""
    return share_text(found.error) if found.is_finite else NOT_FINITE


def share_text(value: float) -> str:
    """Return a share as a percentage with two significant digits; ``∞ %`` if it is infinite.

    The share of a change is infinite if all values were zero before the change.
    """
    return f"{percent_number(value)} %" if math.isfinite(value) else "∞ %"


def _origin(one: ChangedTensor) -> str:
    """Return a text on the weight, rows or experts of network A that a changed weight consists of; '' if unknown."""
    if one.equals:
        return f": it is {escape(one.equals)} of A"
    if one.experts:
        return f": {experts_text(one.experts)}"
    if one.order == "transposed":
        return ": it is transposed"
    return f": its {one.order} are those of A in another order" if one.order else ""


def experts_text(moved: Sequence[MovedExpert]) -> str:
    """Return a text on the experts that differ, such as "experts 0 and 2 are exchanged"."""
    if len(moved) == 2 and [one.equals for one in moved] == [one.index for one in reversed(moved)]:
        return f"experts {moved[0].index} and {moved[1].index} are exchanged"
    told = [
        f"expert {one.index} is {'no expert' if one.equals is None else f'expert {one.equals}'} of A"
        for one in moved[:SHOWN]
    ]
    more = f" and {count(len(moved) - SHOWN, 'more expert')}" if len(moved) > SHOWN else ""
    return ", ".join(told) + more
