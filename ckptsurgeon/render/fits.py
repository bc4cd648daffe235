"""Shows whether a checkpoint fits a destination, and the differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.fits.fit import Fit
from ..util.text import count, escape, shape_text
from .columns import Columns
from .match import SHOWN, left_over, rule_lines
from .tree import collapsed, numbers_of, pattern_of

__all__ = ["command_lines", "fit_view"]

Rows = Mapping[str, str]
"""A map from keys to descriptions."""


def fit_view(found: Fit, *, every: bool = False) -> RenderableType:
    """Return the verdict, then the differences by kind; tensors that differ only in layer numbers share a row.

    With ``every``, nothing is left out, and each renamed tensor has a row. Otherwise, if ``from_pretrained`` loads the
    checkpoint, the differences are left out, because they do not matter then.
    """
    if found.loader and not every:
        return Group(Text(found.verdict, style="green"), Text(found.strictly), *_cast(found))
    limit = 1 << 30 if every else SHOWN
    given = set(found.renamed.values())
    missing = {key: info for key, info in found.missing.items() if key not in given}
    unused = {key: info for key, info in found.unexpected.items() if key not in found.renamed}
    shapes = {p.key: f"{shape_text(p.first.shape)} to {shape_text(p.second.shape)}" for p in found.mismatched}
    parts: list[RenderableType] = [Text(found.verdict, style="green" if found.fits else "red")]
    parts += [Text(found.strictly)] if found.strictly else []
    parts += left_over("missing", "red", missing, limit)
    parts += _table("other shape", "yellow", shapes, limit, is_first=True)
    parts += _table("not copied", "yellow", found.uncopied, limit)
    parts += left_over("unexpected", "yellow", unused, limit)
    parts += _renamed(found, every=every)
    parts += _cast(found)
    parts += _table("tied", "", {key: f"is {owner}" for key, owner in found.tied.items()}, limit)
    return Group(*parts)


def command_lines(found: Fit) -> Iterator[str]:
    """Yield the rules and the command that make a checkpoint fit, as lines to be copied."""
    if found.command:
        yield from rule_lines(found.rules)
        planned = ", ".join(f"{number} {kind}" for kind, number in found.counts.items())
        what = "this makes it fit load_state_dict(strict=True), too" if found.loader else "this makes it fit"
        yield f"  {what}: {planned}"
        yield f"    {found.command_line}"


def _table(name: str, style: str, tensors: Rows, limit: int, *, is_first: bool = False) -> list[RenderableType]:
    """Return a table of tensors with their descriptions, after the label ``name``; equal layers share one row.

    The description comes after the key or, if ``is_first`` is set, before it.
    """
    rows = list(_rows(tensors))
    shown: list[list[str | Text]] = []
    for place, (key, said) in enumerate(rows[:limit]):
        cells = [escape(said), escape(key)] if is_first else [escape(key), escape(said)]
        shown.append([Text(name if place == 0 else "", style=style), *cells])
    if len(rows) > limit:
        shown.append(["", f"and {len(rows) - limit} more (-v or --json lists all)", ""])
    return [Columns(shown)] if shown else []


def _renamed(found: Fit, *, every: bool) -> list[RenderableType]:
    """Return a line with the number of tensors that have other names in the destination.

    With ``every``, return a table of these tensors.
    """
    if not found.renamed:
        return []
    if every:
        return _table("renamed", "cyan", {old: f"is {new}" for old, new in found.renamed.items()}, 1 << 30)
    how = "by these rules" if found.rules else "under names that the destination also accepts"
    return [Columns([[Text("renamed", style="cyan"), f"{count(len(found.renamed), 'tensor')}, {how}"]])]


def _cast(found: Fit) -> list[RenderableType]:
    """Return the numbers of tensors that are cast when they are loaded, by their dtypes."""
    pairs = Counter((pair.first.dtype, pair.second.dtype) for pair in found.retyped)
    rows = [
        ["cast" if place == 0 else "", f"{count(number, 'tensor')}, {old} to {new}"]
        for place, ((old, new), number) in enumerate(pairs.items())
    ]
    return [Columns(rows)] if rows else []


def _rows(tensors: Rows) -> Iterator[tuple[str, str]]:
    """Yield a row (pattern of keys, description) for each group of keys that differ only in numbers.

    The descriptions of the keys in a group are equal, or they differ only in the numbers that the keys contain.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for key, said in tensors.items():
        alike = pattern_of(said) if numbers_of(said) == numbers_of(key) else said
        groups.setdefault((pattern_of(key), alike), []).append(key)
    for keys in (part for group in groups.values() for part in _even(group)):
        times = f"  x {len(keys)}" if len(keys) > 1 else ""
        yield collapsed(keys), f"{collapsed([tensors[key] for key in keys])}{times}"


def _even(keys: list[str]) -> list[list[str]]:
    """Divide keys that differ only in numbers into groups that can each be written as one pattern.

    If every combination of the numbers occurs, all keys are one group. Otherwise the keys of each group differ only in
    the first number.
    """
    found = [numbers_of(key) for key in keys]
    if math.prod(len(set(place)) for place in zip(*found, strict=True)) == len(keys):
        return [keys]
    parts: dict[tuple[str, ...], list[str]] = {}
    for key, numbers in zip(keys, found, strict=True):
        parts.setdefault(tuple(numbers[1:]), []).append(key)
    return list(parts.values())
