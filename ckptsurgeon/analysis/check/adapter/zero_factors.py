"""An adapter's B factors are not all zero: they are before the first step of training, and it then changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check, of_keys
from ..report import Found, Status
from ..subject import Subject
from ._against import no_adapter

__all__ = ["CHECK"]

ADVICE = "The adapter changes nothing: was it saved before training, or without its gathered weights?"
SOME = "These modules were not trained: look whether gradients reached them."


def _run(subject: Subject) -> Iterator[Found]:
    factors = subject.adapter.factors if subject.adapter is not None else ()
    known = {
        one.b: figures for one in factors if one.b in subject.measured and (figures := subject.measured[one.b].figures)
    }
    zero = [key for key, figures in known.items() if figures.low == figures.high == 0]
    if zero and len(zero) == len(known):
        yield of_keys(Status.WARN, zero, "of B, which is all of them, are zero", ADVICE)
    elif zero:
        yield of_keys(Status.WARN, zero, f"of B (of {len(known):,}) are zero", SOME)


CHECK = Check("adapter-zero", "B factors are not zero", _run, no_adapter)
