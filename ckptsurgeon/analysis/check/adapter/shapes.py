"""Checks that the factors A and B of each module of an adapter fit each other and the weight in the base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ....util.text import count, escape, listing, shape_text
from ..check import SHOWN, Check
from ..report import Found, Status
from ..subject import Factors, Subject
from ._against import no_adapter, no_base

__all__ = ["CHECK"]

SAVE_AGAIN = "Save the adapter again: its factors contradict each other."
ADVICE = "With --base, give the base that this adapter was trained on, or train the adapter again on the given base."


def _run(subject: Subject) -> Iterator[Found]:
    factors = subject.adapter.factors if subject.adapter is not None else ()
    lone = [f"{escape(one.module)} lacks {'B' if one.a else 'A'}" for one in factors if not (one.a and one.b)]
    if lone:
        said = f"{count(len(lone), 'module')} with only one of the factors A and B: {listing(lone, SHOWN)}"
        yield Found(Status.FAIL, said, "Save the adapter again, with both factors.", figures={"modules": len(lone)})
    contradict = {one: why for one in factors if (why := _contradiction(one))}
    unfit = {one: why for one in factors if one not in contradict and not no_base(subject) and (why := _misfit(one))}
    for found, advice in ((contradict, SAVE_AGAIN), (unfit, ADVICE)):
        if found:
            named = [f"{escape(one.module)} {why}" for one, why in found.items()]
            do = "does" if len(found) == 1 else "do"
            said = f"{count(len(found), 'module')} {do} not fit: {listing(named, SHOWN)}"
            keys = tuple(key for one in found for key in (one.a, one.b))
            yield Found(Status.FAIL, said, advice, keys, figures={"modules": len(found)})


def _contradiction(one: Factors) -> str:
    """Return why the factors A and B of a module do not fit each other; '' if they do."""
    if not (one.a and one.b):
        return ""
    a, b = (one.a_shape[::-1], one.b_shape[::-1]) if one.is_embedding else (one.a_shape, one.b_shape)
    if len(a) < 2 or len(b) < 2:
        return "has factors that are not matrices"
    rank_a, rank_b = (a[-1], b[0]) if one.is_embedding else (a[0], b[1])
    if rank_a != rank_b:
        return f"has an A of rank {rank_a}, but a B of rank {rank_b}"
    return ""


def _misfit(one: Factors) -> str:
    """Return why the factors of a module do not fit its weight in the base; '' if they do."""
    if not (one.a and one.b and one.base):
        return ""
    if len(one.base) == 1 and len(one.a_shape) == 2:  # only the number of parameters is known
        number = one.a_shape[1] * one.b_shape[0]
        if number + number % 2 == one.base[0]:
            return ""
    product = Counter((one.a_shape[1], one.b_shape[0])) if len(one.a_shape) == 2 else Counter((one.b_shape[0],))
    product += Counter([one.experts] if one.experts else [])
    if not product <= Counter(one.base):  # in either order, because some layers store the weight transposed
        changed = shape_text((*([one.experts] if one.experts else []), one.b_shape[0], one.a_shape[1]))
        return f"changes a weight of shape {changed}, but the base's weight has shape {shape_text(one.base)}"
    return ""


CHECK = Check("adapter-shapes", "factors fit each other and the base", _run, no_adapter)
