"""Encodes what a plan computes as its quantised sources are encoded."""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint.checkpoint import Checkpoint
from ...planning.kept_codes import CodedSource, with_codes_kept
from ...planning.plan.plan import Plan
from .dequantising import encoded_by
from .encoding import ENCODINGS, as_stored
from .inputs import plan_source

__all__ = ["keeping_codes"]


def keeping_codes(
    plan: Plan, read: Sequence[Checkpoint], encoding: str, owner: int = 0
) -> tuple[Plan, list[Checkpoint]]:
    """Return a plan whose output is quantised as its sources are, if ``encoding`` is ``keep``; and its open sources.

    ``read`` are the sources with which it was planned. ``owner`` is the index of the one whose encodings new weights
    get: the one that gives the output its configuration. Raises PlanError for a weight that cannot be encoded.
    """
    coded = [at for at, one in enumerate(read) if one.stored is not None] if encoding == ENCODINGS[0] else []
    if not coded:
        return plan, list(read)
    from ...tensors.encoders._like import UnencodableError

    stored = as_stored(read, encoding)
    sources = {
        at: CodedSource(
            plan_source(plan.sources[at].name, stored[at], plan.sources[at].role),
            stored[at].codes, stored[at], encoded_by(stored[at]), UnencodableError,
        )
        for at in coded
    }  # fmt: skip
    plan, decoded = with_codes_kept(plan, sources, owner)
    return plan, [*stored, *(read[at] for at in decoded)]
