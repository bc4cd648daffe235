"""Shows where tensors of a plan come from, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.explanation import Alternatives, Candidate, Explained, Explanation
from ..util.text import count, escape, listing, shape_text
from .columns import Columns
from .plan import rows_said

__all__ = ["explained_view"]

SHOWN = 12
"""The largest number of tensors that are shown without -v."""
CANDIDATES = 5

Row = Sequence[str | Text]


def explained_view(found: Explained, *, every: bool = False) -> RenderableType:
    """Return a view of tensors with their source, rule and alternatives; without ``every``, the first ``SHOWN``."""
    shown = found.tensors if every else found.tensors[:SHOWN]
    parts: list[RenderableType] = []
    for one in shown:
        parts += [*([Text("")] if parts else []), _head(one), Columns(list(_rows(one)), indent=4)]
    more = len(found.tensors) - len(shown)
    if more:
        parts += [Text(""), Text(f"  and {count(more, 'more tensor')} (-v or --json lists all)", "dim")]
    return Group(*parts)


def _head(one: Explanation) -> RenderableType:
    line = Text(escape(one.key), "bold")
    line.append(f"  {shape_text(one.step.shape)} {one.step.dtype}  ", "not bold")
    line.append(one.step.kind, "not bold green" if one.source else "not bold yellow")
    return Columns([[line]])


def _rows(one: Explanation) -> Iterator[Row]:
    for label, text in _facts(one):
        yield Text(label, "dim"), text
    for label, text in _others(one.alternatives) if one.alternatives is not None else ():
        yield Text(label, "dim"), Text(text, "dim")


def _facts(one: Explanation) -> Iterator[tuple[str, str]]:
    step = one.step
    if one.source:
        yield "from", _tensor(one.source, step.source_key, step.source_dtype, step.source_shape)
        yield "rule", escape(step.rule, 600) or "the same name in both"
    if one.because:
        yield "because", escape(one.because, 600)
    if step.operation:
        yield "made by", escape(step.operation, 600)
        if step.made_of:
            yield "made of", listing(step.made_of)
    if step.rows is not None:
        yield "rows", f"{rows_said(step.rows)}, along dimension {step.axis}"
    elif step.policy and one.source:
        yield "policy", step.policy
    if one.source and step.source_dtype != step.dtype:
        yield "cast", f"{step.source_dtype} to {step.dtype}"
    part = "the remaining values: " if one.source else ""
    if one.seed is not None:
        yield "drawn", f"{part}by the destination's initialiser, seed {one.seed}"
    elif (step.op == "keep" and not one.source) or step.overlays:
        yield "kept", f"{part}the destination's own value"
    if one.ties:
        yield "tied to", listing(one.ties)


def _others(found: Alternatives) -> Iterator[tuple[str, str]]:
    yield from _candidates("passed over", found.sources)
    yield from _candidates("left out", found.excluded)
    for rule in found.rules:
        yield "also matches", f"{escape(rule.text, 600)}, but {rule.why}"
    if found.policies:
        yield "also fits", ", ".join(found.policies)
    yield from _candidates("near", found.near)


def _candidates(label: str, found: Sequence[Candidate]) -> Iterator[tuple[str, str]]:
    for one in found[:CANDIDATES]:
        yield label, f"{_tensor(one.source, one.key, one.dtype, one.shape)}: {escape(one.why, 600)}"
    if len(found) > CANDIDATES:
        yield label, f"and {len(found) - CANDIDATES} more (--json lists all)"


def _tensor(source: str, key: str, dtype: str, shape: Sequence[int]) -> str:
    return f"{escape(source)}: {escape(key)} {shape_text(shape)} {dtype}"
