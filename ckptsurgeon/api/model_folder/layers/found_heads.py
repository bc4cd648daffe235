"""Notes on numbers of heads that the values of two checkpoints show, if a configuration has another number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....planning.keys.fused_parts import part_of
from ....planning.keys.row_order import HALVES, PAIRS
from ....util.text import count, escape, listing
from .heads import settings_of, stated_heads

__all__ = ["found_heads_notes"]

_KINDS = {"q": "queries", "k": "keys"}


def found_heads_notes(rows: Iterable[Mapping[str, Any]], checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """Yield notes on operations whose number of heads is not the one in the configuration of one of the checkpoints.

    ``rows`` are the operations that the values show: ``halves``, ``pairs``, and splits and concatenations of queries,
    keys and values in groups, with one group for each head of keys.
    """
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for row in rows:
        verb = next(iter(row))
        names = [name for field in (verb, "into") for name in _texts(row.get(field, ()))]
        kinds = [kind for kind in map(_part, names) if kind]
        if verb in (HALVES, PAIRS) and kinds and kinds[0] in _KINDS:
            groups[kinds[0], row["heads"]].append(f"{verb} {row[verb]}")
        elif verb in ("split", "concat") and row.get("groups", 1) > 1 and {*kinds} == {"q", "k", "v"}:
            groups["k", row["groups"]].append(f"{verb} {', '.join(_texts(row[verb]))}")
    for checkpoint in checkpoints:
        stated = stated_heads([settings_of(checkpoint)])
        for (kind, number), said in groups.items():
            if stated.get(kind, number) != number:
                yield (
                    f"the values show {count(number, 'head')} of {_KINDS[kind]} ({listing(said, 2)}), but the "
                    f"configuration of {escape(checkpoint.path)} has {stated[kind]}: one of the two is wrong"
                )


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _part(name: str) -> str:
    """Return the part of a projection (query, key or value) that a key or pattern names; backslashes are ignored."""
    return part_of(name.replace("\\", ""))
