"""Checks that no factor A or B of an adapter, and no magnitude of DoRA, is all zeros.

Before the first training step all B factors are zero (of embeddings, all A factors): the adapter has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..check import Check, of_keys
from ..report import Found, Status
from ..subject import Subject
from ._against import no_adapter

__all__ = ["CHECK"]

ADVICE = (
    "The adapter changes nothing. Check whether it was saved before training, or before sharded weights were gathered."
)
SOME = "These modules were not trained: check whether they got gradients."
MAGNITUDES = (
    "Save the adapter again with the magnitudes from its training: if a magnitude is zero, the merged row would be "
    "zero."
)


def _run(subject: Subject) -> Iterator[Found]:
    factors = subject.adapter.factors if subject.adapter is not None else ()
    yield from _zeros(subject, "B", [one.b for one in factors])
    yield from _zeros(subject, "A", [one.a for one in factors])
    magnitudes = subject.adapter.magnitudes if subject.adapter is not None else ()
    none = [key for key in magnitudes if (one := subject.measured.get(key)) and one.figures and one.figures.zeros]
    if none:
        yield of_keys(
            Status.WARN, none, "of magnitudes (DoRA) that contain zeros, so merged rows would be all zeros", MAGNITUDES
        )


def _zeros(subject: Subject, side: str, keys: Sequence[str]) -> Iterator[Found]:
    """Yield a finding if some of an adapter's factors are zero; ``keys`` are all factors of one side, A or B."""
    known = {key: one.figures for key in keys if (one := subject.measured.get(key)) and one.figures}
    zero = [key for key, figures in known.items() if figures.low == figures.high == 0]
    are = "is zero" if len(zero) == 1 else "are zero"
    if zero and len(zero) == len(known):
        yield of_keys(Status.WARN, zero, f"(all {side} factors) {are}", ADVICE)
    elif zero:
        yield of_keys(Status.WARN, zero, f"(of {len(known):,} {side} factors) {are}", SOME)


CHECK = Check("adapter-zero", "factors are not zero", _run, no_adapter)
