"""Encodes the results of a plan like its quantised sources, for ``--encoding keep``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.files import PlanSource
from ...planning.plan.plan import Plan
from .encoding import DEQUANTIZE, ENCODINGS
from .inputs import plan_source

__all__ = ["keeping_codes"]


def keeping_codes(
    plan: Plan, read: Sequence[Checkpoint], encoding: str, owner: int = 0, *, dtype: str | None = None
) -> tuple[Plan, list[Checkpoint]]:
    """Return ``plan`` with its output quantised like the sources, and the open sources that the new plan reads.

    ``read`` are the sources from which ``plan`` was made, as ``read_as`` decoded them. If ``encoding`` is not ``keep``,
    or if no source was decoded, ``plan`` and ``read`` are returned unchanged. ``owner`` is the index of the source
    whose configuration is copied to the output: new weights are encoded like that source. ``dtype`` is the output dtype
    that the user gave. Raises PlanError for a weight that cannot be encoded.
    """
    coded = [at for at, one in enumerate(read) if is_decoded_only(plan.sources[at], one)]
    if encoding != ENCODINGS[0] or not coded:
        return plan, list(read)
    from ...planning.kept_encodings import CodedSource, with_codes_kept
    from ...tensors.encoders._like import UnencodableError
    from .dequantising import encoded_by

    sources = {at: one.stored for at, one in enumerate(read) if at in coded and one.stored is not None}
    described = {
        at: CodedSource(
            plan_source(plan.sources[at].name, one, plan.sources[at].role), one.codes, one, one.quantisation,
            encoded_by(one), UnencodableError,
        )
        for at, one in sources.items()
    }  # fmt: skip
    plan, decoded = with_codes_kept(plan, described, owner, dtype or "")
    plan = replace(plan, notes=(*plan.notes, *_notes_on_copies(plan, sources)))
    return plan, [*(sources.get(at, one) for at, one in enumerate(read)), *(read[at] for at in decoded)]


def _notes_on_copies(plan: Plan, sources: Mapping[int, Checkpoint]) -> Iterator[str]:
    """Yield notes on implausible scales of quantised tensors that a plan copies without decoding them.

    Tensors that are decoded get these notes when they are decoded. ``sources`` are the sources with quantised tensors,
    by their index in the plan.
    """
    from .sampled_scales import sampled_scale_notes

    copied: dict[int, set[str]] = {}
    for step in plan.steps:
        if step.source is not None and step.source in sources and step.op in ("copy", "keep") and step.coded is None:
            copied.setdefault(step.source, set()).add(step.source_key)
    for at, keys in copied.items():
        yield from sampled_scale_notes(sources[at], keys)


def is_decoded_only(source: PlanSource, read: Checkpoint) -> bool:
    """Return whether decoding is the only operation on a source; ``read`` is the source as ``read_as`` returned it."""
    return read.stored is not None and list(source.operations) == [DEQUANTIZE]
