"""A proposed matching of names as a person wants to see it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from ..matching import Proposal
from ..tensors import TensorInfo
from ..text import count, escape, shape_text
from .columns import Columns
from .tree import build_tree

__all__ = ["proposal_view"]

SHOWN = 12


def proposal_view(found: Proposal, *, every: bool = False) -> RenderableType:
    """Return the matches with what speaks for each, the rules, and what is left open."""
    limit = 1 << 30 if every else SHOWN
    parts: list[RenderableType] = []
    rows = [[escape(m.first), escape(m.second), str(m.tensors), m.why] for m in found.matches if m.first != m.second]
    if rows:
        parts.append(Columns([["source", "destination", "", "by"], *rows], right=[2]))
    same = sum(m.tensors for m in found.matches if m.first == m.second)
    if same:
        parts.append(Text(f"  {count(same, 'tensor')} under the same name"))
    if found.rules:
        parts += [Text("  rules"), *(Text(f"    --map {shlex.quote(rule)}") for rule in found.rules)]
    for module, options in list(found.ambiguous.items())[:limit]:
        could = ", ".join(map(escape, options))
        parts.append(Columns([[Text("ambiguous", style="yellow"), escape(module), f"could be {could}"]]))
    parts += _left("missing", "red", found.missing, limit)
    parts += _left("not used", "", found.unmatched, limit)
    wanted = len(found.names) + len(found.missing)
    return Group(*parts, Text(f"  {len(found.names)} of {count(wanted, 'destination tensor')} matched"))


def _left(name: str, style: str, tensors: Mapping[str, TensorInfo], limit: int) -> list[RenderableType]:
    """Return the rows of what nothing fits, repeated layers as one."""
    rows = list(_paths(build_tree(tensors), ""))
    shown: list[list[str | Text]] = []
    for i, (path, said) in enumerate(rows[:limit]):
        shown.append([Text(name if i == 0 else "", style=style), escape(path), said])
    if len(rows) > limit:
        shown.append([Text(""), f"and {len(rows) - limit} more (-v or --json lists all)", ""])
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
