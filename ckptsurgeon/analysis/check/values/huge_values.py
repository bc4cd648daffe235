"""Checks that no weight has a finite value so large that a flipped bit or a wrong cast must be the cause."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK", "HUGE"]

HUGE = 1e18
"""Values above this are reported: their squares are close to the largest float32, or beyond it.

Trained weights are below 1e4; a flipped high bit of an exponent gives values of about 1e36.
"""


def _run(subject: Subject) -> Iterator[Found]:
    found = {key: figures.largest for key, _, figures in subject.weights if figures.largest > HUGE}
    if found:
        largest = max(found.values())
        said = f"{'has' if len(found) == 1 else 'have'} values up to {largest:.2g}"
        todo = "Compare with another copy (ckpt diff --values): a bit may have flipped on disk or in memory."
        yield of_keys(Status.FAIL, list(found), said, todo, largest=largest)


CHECK = Check("huge-values", "no value is so large that its exponent must be damaged", _run, without_values)
