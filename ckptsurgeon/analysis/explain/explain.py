"""Explains tensors of a plan: what the plan says, and what selecting again says of the alternatives."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import PatternError
from ...planning.keys.hints import unmatched
from ...planning.keys.matcher import KeyMatcher
from ...planning.keys.pattern import KeyPattern
from ...planning.plan.plan import Plan
from ...planning.plan.step import Step
from ...planning.transplant.select import Planning, Selection
from ...util.text import escape, listing
from .alternatives import Chooser
from .facts import Explained, Explanation

__all__ = ["explain"]


def explain(plan: Plan, patterns: Sequence[str], planning: Planning | None = None) -> Explained:
    """Explain the destination tensors that patterns name; alternatives are known from ``planning`` alone.

    Raises PatternError for a pattern that matches no destination key, and says so where it is one of a source.
    """
    wanted: set[str] = set()
    for text in patterns:
        wanted.update(_matching(text, plan, planning))
    chooser = Chooser(plan, planning) if planning is not None else None
    names: dict[str, list[str]] = {}
    for step in plan.steps:
        names.setdefault(step.tied_to or step.key, []).append(step.key)
    steps = [step for step in plan.steps if step.key in wanted]
    return Explained(tuple(_explained(plan, step, names[step.tied_to or step.key], chooser) for step in steps))


def _explained(plan: Plan, step: Step, names: Sequence[str], chooser: Chooser | None) -> Explanation:
    """Explain a tensor that has ``names`` in the destination."""
    given = step.source is not None and step.op != "keep"
    draws = step.draws and not any(source.role == "destination" for source in plan.sources)
    return Explanation(
        step,
        source=plan.sources[step.source].name if given and step.source is not None else "",
        because=_because(step),
        seed=plan.seed if draws else None,
        ties=tuple(name for name in names if name != step.key),
        alternatives=chooser.alternatives(step, names) if chooser is not None else None,
    )


def _because(step: Step) -> str:
    """Return why a tensor comes from no source, '' where it comes from one."""
    return {
        "missing": "no source has it",
        "excluded": f"left out: {step.rule}",
        "reinit": f"{step.rule}, whatever a source has",
        "mismatch": f"the shapes differ: {step.rule}",
    }.get(step.reason, "")


def _matching(text: str, plan: Plan, planning: Planning | None) -> list[str]:
    keys = [step.key for step in plan.steps]
    if text in keys:
        return [text]
    if not text:
        raise PatternError("--explain is empty.", hint="Name a destination key or a pattern of them.")
    pattern = KeyPattern.given(text, "--explain ")
    hits = KeyMatcher([pattern]).hits(keys)[0]
    if hits:
        return hits
    error = unmatched(f"--explain {text}", pattern, keys, "destination")
    hint = _of_a_source(pattern, planning) if planning is not None else ""
    raise PatternError(error.message, hint=hint or error.hint)


def _of_a_source(pattern: KeyPattern, planning: Planning) -> str:
    """Return where the source keys go that a pattern matches, '' where it matches none."""
    keys = [key for view in planning.views for key in view.tensors]
    hits = KeyMatcher([pattern]).hits(keys)[0]
    if not hits:
        return ""
    names = _names_of(hits[0], planning.selection())
    placed = [name for name in names if name in planning.target.tensors]
    where = f"is there as {listing(placed)}" if placed else _nowhere(names)
    return f"{escape(hits[0])} is a key of the source, and {where}; --explain speaks of destination keys."


def _nowhere(names: Sequence[str]) -> str:
    return f"would be {listing(names)}, which the destination does not have" if names else "is left out"


def _names_of(key: str, selection: Selection) -> list[str]:
    return [name for name, origins in selection.origins.items() if any(origin.key == key for origin in origins)]
