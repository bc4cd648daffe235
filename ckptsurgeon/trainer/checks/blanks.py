"""CTC: whether the model says blanks alone, and which clips can never be learned."""

from __future__ import annotations

from collections.abc import Mapping

from ...util.text import count, percent
from ..loop.run_progress import RunProgress
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["blank_share", "clips_long_enough"]

BLANK_PLATEAU = 0.995
NO_CTC = "no CTC in this task"
NOT_EVALUATED = "nothing was evaluated"


def blank_share(figures: Mapping[str, float]) -> Check:
    """Name the plateau on which CTC models begin and may stay: every frame is blank, the loss falls no further."""
    name = "share of blanks"
    if "blanks" not in figures:
        return Check(name, NOT_RUN, NO_CTC if figures else NOT_EVALUATED)
    share = figures["blanks"]
    if share >= BLANK_PLATEAU:
        return Check(
            name, FAIL, f"{percent(share, 1)} of frames: the all-blank plateau; train longer, or with another lr"
        )
    return Check(name, PASS, f"{percent(share, 1)} of frames")


def clips_long_enough(standing: RunProgress) -> Check:
    """Count clips with fewer frames than labels and repeats: no alignment exists, and nothing is learned of them.

    Those of training in the first epoch, as far as it came, those of dev in the last evaluation.
    """
    name = "clips long enough"
    trained, seen = standing.too_short, standing.fresh
    evaluated = standing.figures.get("too_short")
    if trained is None and evaluated is None:
        return Check(name, NOT_RUN, NO_CTC if standing.step or standing.figures else "no step was taken")
    said = [f"{trained} of {count(seen, 'clip')} of train"] if trained is not None else []
    said += [f"{int(evaluated)} of dev"] if evaluated is not None else []
    if trained or evaluated:
        return Check(name, WARN, f"{', '.join(said)} with fewer frames than labels and repeats")
    return Check(name, PASS, f"too short: {', '.join(said)}")
