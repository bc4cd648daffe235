"""CTC: whether the model says blanks alone, and which clips can never be learned."""

from __future__ import annotations

from collections.abc import Mapping

from ...text import count
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["blanks", "too_short"]

PLATEAU = 0.995


def blanks(figures: Mapping[str, float]) -> Check:
    """Name the plateau on which CTC models begin and may stay: every frame is blank, the loss falls no further."""
    name = "share of blanks"
    if "blanks" not in figures:
        return Check(name, NOT_RUN, "no CTC in this task")
    share = figures["blanks"]
    if share >= PLATEAU:
        return Check(name, FAIL, f"{share:.1%} of frames: the all-blank plateau; train longer, or with another lr")
    return Check(name, PASS, f"{share:.1%} of frames")


def too_short(figures: Mapping[str, float]) -> Check:
    """Count clips with fewer frames than labels and repeats: no alignment exists, their loss is infinite."""
    name = "clips long enough"
    if "too_short" not in figures:
        return Check(name, NOT_RUN, "no CTC in this task")
    number = int(figures["too_short"])
    if number:
        return Check(name, WARN, f"{count(number, 'clip')} with fewer frames than labels and repeats")
    return Check(name, PASS, "all of them")
