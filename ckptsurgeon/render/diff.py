"""A difference between two checkpoints as a person wants to see it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..comparison import Difference, Pair
from ..text import count, escape, shape_text
from .columns import Columns
from .tree import numbers_text

__all__ = ["difference_view"]

SHOWN = 12
"""Rows of each kind that are shown, equal layers as one, before "and N more"."""


def difference_view(found: Difference, *, every: bool = False) -> RenderableType:
    """Return what differs, kind by kind, and a line that says how much is the same."""
    limit = 1 << 30 if every else SHOWN
    kinds: list[tuple[str, str, list[tuple[str, str]]]] = [
        ("removed", "red", [(key, "") for key in found.removed]),
        ("added", "green", [(key, "") for key in found.added]),
        ("renamed", "cyan", [(old, new) for old, new in found.renamed.items()]),
        (
            "reshaped",
            "yellow",
            _rows(found.reshaped, lambda p: _arrow(shape_text(p.first.shape), shape_text(p.second.shape))),
        ),
        (
            "retyped",
            "yellow",
            _rows(found.retyped, lambda p: _join(_arrow(p.first.dtype, p.second.dtype), _numbers(p))),
        ),
        ("changed", "yellow", _rows(sorted(found.changed, key=_least_far), _numbers)),
        ("close", "", _rows(found.close, _numbers)),
        ("not compared", "", list(found.not_compared.items())),
    ]
    shown = [line for name, style, rows in kinds if rows for line in _shown(name, style, rows, limit)]
    parts: list[RenderableType] = [Columns(shown)] if shown else []
    return Group(*parts, _summary(found))


def _rows(pairs: Sequence[Pair], say: Callable[[Pair], str]) -> list[tuple[str, str]]:
    return [(pair.key, say(pair)) for pair in pairs]


def _shown(name: str, style: str, rows: Sequence[tuple[str, str]], limit: int) -> Iterator[list[str | Text]]:
    """Yield the rows of one kind, numbered layers of which the same is said as one."""
    grouped = list(_grouped(rows))
    for i, (key, said) in enumerate(grouped[:limit]):
        yield [Text(name if i == 0 else "", style=style), escape(key), said]
    if len(grouped) > limit:
        yield ["", f"and {len(grouped) - limit} more (-v or --json lists all)", ""]


def _grouped(rows: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Join keys that differ in one number only and of which the same is said."""
    groups: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for key, said in rows:
        numbered = re.fullmatch(r"(.*?)(\d+)(.*)", key)
        whole, number = (f"{numbered[1]}\0{numbered[3]}", numbered[2]) if numbered else (key, "")
        shown = said.replace(number, "\0", 1) if number and "." in said and " " not in said else said
        groups.setdefault((whole, shown), []).append((key, number, said))
    for (whole, _), members in groups.items():
        if len(members) == 1:
            yield members[0][0], members[0][2]
            continue
        numbers = f"{{{numbers_text([int(number) for _, number, _ in members])}}}"
        key, said = whole.replace("\0", numbers), members[0][2]
        yield key, said.replace(members[0][1], numbers, 1) if "." in said and " " not in said else said


def _least_far(pair: Pair) -> tuple[float, float]:
    """Return a key that puts what is furthest apart first."""
    if pair.numbers is None:
        return 0.0, 0.0
    return -(pair.numbers.relative or 0.0), -pair.numbers.max_abs


def _arrow(before: str, after: str) -> str:
    return f"{before} to {after}"


def _join(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def _numbers(pair: Pair) -> str:
    """Return how far two tensors are apart: ``max 1.2e-3  rel 4.5e-4  cos 0.99991``."""
    if pair.numbers is None:
        return ""
    numbers = pair.numbers
    words = [f"max {numbers.max_abs:.2g}"]
    words += [f"rel {numbers.relative:.2g}"] if numbers.relative is not None else []
    words += [f"cos {numbers.cosine:.5f}"] if numbers.cosine is not None else []
    words += [f"{numbers.nan} NaN in one of them"] if numbers.nan else []
    return "  ".join(words)


def _summary(found: Difference) -> Text:
    same = "byte for byte" if found.values else "in dtype and shape; values not compared (--values)"
    if not found.differs:
        word = "the same" if found.values else "alike"
        return Text(f"  {word}  {count(found.identical, 'tensor')} {same}{_within(found)}", style="green")
    return Text(f"  {count(found.identical, 'tensor')} identical {same}{_within(found)}")


def _within(found: Difference) -> str:
    return f", {count(len(found.close), 'tensor')} within the tolerance" if found.close else ""
