"""Explains the merge of tensors: shows the agreement of the models' changes, and the share that each method keeps."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.compare.changes import Changes
from ..analysis.merge_explanation import ExplainedMerge, MergeExplanation, MergeOutcome
from ..util.text import escape, percent, shape_text
from .changes import letter, models_view, pairs_view, relative_said
from .columns import Columns, Hanging

__all__ = ["explained_merge_view"]


def explained_merge_view(found: ExplainedMerge) -> RenderableType:
    """Return, for each tensor, its models and their agreement, and a table of the methods."""
    parts: list[RenderableType] = []
    for one in found.tensors:
        parts += [*([Text("")] if parts else []), *_tensor(one)]
    return Group(*parts)


def _tensor(one: MergeExplanation) -> Iterator[RenderableType]:
    head = Text(escape(one.step.key), "bold")
    head.append(f"  {shape_text(one.step.shape)} {one.step.dtype}  ", "not bold")
    head.append(one.step.kind, "not bold green")
    yield Columns([[head]])
    if one.step.merge is not None:
        said = ", ".join(f"{name}={_value(value)}" for name, value in one.step.merge.parameters.items())
        yield Hanging(Text("  by "), Text(escape(f"{one.step.merge.method}  {said}", 600)))
    if one.why or one.changes is None:
        yield Hanging(Text("  not compared: ", "yellow"), Text(escape(one.why, 600)))
        return
    changes = Changes(one.base, one.models, (one.changes,))
    yield from (models_view(changes), Text(""), pairs_view(changes), Text(""), *_methods(one))


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _methods(one: MergeExplanation) -> Iterator[RenderableType]:
    names = [f"of {letter(index)}" for index in range(len(one.models))]
    rows: list[list[str | Text]] = [["", *(Text(label, "dim") for label in ("change", "of values", *names))]]
    rows += (_row(outcome) for outcome in one.outcomes if not outcome.why)
    head = Text("  how much of each change would a method keep?", "bold")
    yield Hanging(
        head + Text("  (the first method as given, the others with their default parameters)", "not bold dim"), Text("")
    )
    yield Columns(rows, right=range(1, len(rows[0])))
    others = [f"{escape(outcome.method)} ({escape(outcome.why, 100)})" for outcome in one.outcomes if outcome.why]
    if others:
        yield Hanging(Text("  not tried: ", "dim"), Text(", ".join(others), "dim"))


def _row(one: MergeOutcome) -> list[str | Text]:
    kept = ["-" if share is None else percent(round(share, 2) + 0.0) for share in one.kept]
    changed = "-" if one.changed is None else percent(one.changed)
    return [Text(escape(one.method), "bold" if one.is_planned else ""), relative_said(one.change), changed, *kept]
