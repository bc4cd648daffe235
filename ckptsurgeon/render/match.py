"""Shows the rules and operations that ``match`` proposes."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.match.proposal import Proposal, ProposedOperation
from ..tensors.info import TensorInfo
from ..util.text import count, escape, shape_text
from .columns import Columns
from .tree import build_tree

__all__ = ["left_over", "operation_lines", "proposal_view", "rule_lines"]

SHOWN = 12


def proposal_view(found: Proposal, *, every: bool = False) -> RenderableType:
    """Return the ambiguous modules, the keys without a match, and the number of matches for each reason.

    With ``every``, return all matches as well, and shorten no list.
    """
    limit = 1 << 30 if every else SHOWN
    parts: list[RenderableType] = []
    if every:
        rows = [[m.why, str(m.tensors), f"{escape(m.first)} to {escape(m.second)}"] for m in found.matches]
        parts.append(Columns(rows, right=[1]))
    for module, options in list(found.ambiguous.items())[:limit]:
        could = ", ".join(map(escape, options))
        parts.append(Columns([[Text("ambiguous", style="yellow"), escape(module), f"could be {could}"]]))
    for one in found.open[:limit]:
        said = f"from {', '.join(map(escape, one.first))}: {one.why} (--values decides)"
        parts.append(Columns([[Text("ambiguous", style="yellow"), ", ".join(map(escape, one.second)), said]]))
    more = sum(max(0, len(some) - limit) for some in (found.ambiguous, found.open))
    if more:
        parts.append(Columns([[Text("ambiguous", style="yellow"), f"and {more} more (-v or --json lists all)"]]))
    parts += left_over("missing", "red", found.missing, limit)
    parts += left_over("not used", "", found.unmatched, limit)
    return Group(*parts, _summary(found))


def _summary(found: Proposal) -> Text:
    ways = Counter(dict.fromkeys(("same name", "prefix", "name", "shape", "value"), 0))
    for match in found.matches:
        ways[match.why] += match.tensors
    said = ", ".join(f"{number} by {why}" for why, number in ways.items() if number)
    said += f"{', ' if said else ''}{len(found.made)} by operations" if found.made else ""
    wanted = found.matched + len(found.missing) + found.undecided
    how = f": {said}" if said else ""
    return Text(f"  {found.matched} of {count(wanted, 'destination tensor')} matched{how}")


def rule_lines(rules: Sequence[str], *, unwrap: bool = False) -> Iterator[str]:
    """Yield the proposed rules as options of ``ckpt rename`` that users can copy; nothing if there are no rules.

    ``unwrap`` adds --unwrap, which the rules need if the keys have prefixes such as ``module.``.
    """
    if rules:
        yield "  rules"
    if rules and unwrap:
        yield "    --unwrap"
    for rule in rules:
        yield f"    --map {shlex.quote(rule)}"


def operation_lines(operations: Sequence[ProposedOperation]) -> Iterator[str]:
    """Yield the proposed operations as lines of YAML, each with its evidence and its number of tensors."""
    if operations:
        yield "  operations"
    for one in operations:
        fields = ", ".join(f"{name}: {_value(value)}" for name, value in one.row.items())
        yield f"    - {{{fields}}}  # {one.why}, {count(one.tensors, 'tensor')}"


def _value(value: object) -> str:
    """Return a field of an operation as YAML on one line; JSON is YAML."""
    return json.dumps(value, ensure_ascii=True)


def left_over(name: str, style: str, tensors: Mapping[str, TensorInfo], limit: int) -> list[RenderableType]:
    """Return a table of keys without a match, after the label ``name``; repeated layers share one row."""
    rows = list(_paths(build_tree(tensors), ""))
    shown: list[list[str | Text]] = []
    for i, (path, said) in enumerate(rows[:limit]):
        shown.append([Text(name if i == 0 else "", style=style), said, escape(path)])
    if len(rows) > limit:
        shown.append([Text(""), "", f"and {len(rows) - limit} more (-v or --json lists all)"])
    return [Columns(shown)] if shown else []


def _paths(branch: object, prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for child in getattr(branch, "children", {}).values():
        path = f"{prefix}.{child.name}".strip(".")
        if child.info is not None:
            found.append((path, shape_text(child.info.shape)))
        else:
            found += _paths(child, path)
    return found
