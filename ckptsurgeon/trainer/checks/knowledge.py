"""Did knowledge move? The warm start against scratch and against its own weights, permuted."""

from __future__ import annotations

from ...util.text import count
from ..run.result import Arm, Controls
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["KNOWLEDGE", "KNOWLEDGE_MOVED", "NONE", "SCALE_ONLY", "beats", "knowledge_moved", "verdict_of"]

KNOWLEDGE_MOVED = "knowledge moved"
KNOWLEDGE, SCALE_ONLY, NONE = "KNOWLEDGE", "SCALE ONLY", "NONE"
MARGIN = 0.05
"""One start beats another where it is better with every seed, and on average by this share of the other."""
MIN_SEEDS = 3


def beats(one: Arm, other: Arm, *, higher: bool = False) -> bool:
    """Whether one start is clearly better than another; their seeds are pairs. ``higher`` is better, else lower."""
    sign = -1 if higher else 1
    gaps = [sign * (theirs - own) for own, theirs in zip(one.values, other.values, strict=True)]
    return all(gap > 0 for gap in gaps) and sum(gaps) / len(gaps) > MARGIN * abs(other.mean)


def verdict_of(warm: Arm, scratch: Arm, permuted: Arm, *, higher: bool = False) -> str:
    """Return KNOWLEDGE (warm beats scratch and permuted), SCALE ONLY (it beats scratch alone) or NONE.

    Much of what looks like transfer is scale: of English weights permuted inside each tensor a Russian model learned
    better than of torch's default initialisers. A start that beats its permuted weights and not scratch brought
    nothing worth having, and is NONE.
    """
    if not beats(warm, scratch, higher=higher):
        return NONE
    return KNOWLEDGE if beats(warm, permuted, higher=higher) else SCALE_ONLY


def knowledge_moved(
    found: Controls | None, why: str = "--controls trains scratch and permuted weights beside it"
) -> Check:
    """Put the verdict and its figures in one line."""
    if found is None:
        return Check(KNOWLEDGE_MOVED, NOT_RUN, why)
    arms = [arm for arm in found.arms if arm.frozen == (found.decided_on == "frozen")]
    figures = ", ".join(f"{arm.mean:.3g} {arm.name}" for arm in arms)
    body = "body frozen" if found.decided_on == "frozen" else "all of it trained"
    says = f"{found.verdict}  {found.metric} {figures} ({body}, {count(found.seeds, 'seed')})"
    if {"scratch", "permuted"} <= set(found.plateau):
        says = f"{says}; scratch and permuted have learned nothing yet"
        if found.decided_on != "frozen":  # of a frozen body that is what was asked: what a head can learn from it
            return Check(
                KNOWLEDGE_MOVED, FAIL if found.verdict == NONE else WARN, f"{says}: train longer, or it says little"
            )
    if found.seeds < MIN_SEEDS:
        return Check(KNOWLEDGE_MOVED, WARN, f"{says}; fewer than {MIN_SEEDS} seeds say little")
    return Check(KNOWLEDGE_MOVED, {KNOWLEDGE: PASS, SCALE_ONLY: WARN, NONE: FAIL}[found.verdict], says)
