"""No B factor of an adapter is zero. Before the first training step all are zero: the adapter has no effect."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check, of_keys
from ..report import Found, Status
from ..subject import Subject
from ._against import no_adapter

__all__ = ["CHECK"]

ADVICE = "The adapter changes nothing: was it saved before training, or before sharded weights were gathered?"
SOME = "These modules were not trained: check whether they got gradients."


def _run(subject: Subject) -> Iterator[Found]:
    factors = subject.adapter.factors if subject.adapter is not None else ()
    known = {
        one.b: figures for one in factors if one.b in subject.measured and (figures := subject.measured[one.b].figures)
    }
    zero = [key for key, figures in known.items() if figures.low == figures.high == 0]
    are = "is zero" if len(zero) == 1 else "are zero"
    if zero and len(zero) == len(known):
        yield of_keys(Status.WARN, zero, f"(all B factors) {are}", ADVICE)
    elif zero:
        yield of_keys(Status.WARN, zero, f"(of {len(known):,} B factors) {are}", SOME)


CHECK = Check("adapter-zero", "B factors are not zero", _run, no_adapter)
