"""Notes on the operations ``halves`` and ``pairs`` (orders of rotary rows) if names or settings contradict them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....planning.keys.pattern import KeyPattern
from ....planning.keys.renaming import KeyMatcher
from ....planning.keys.row_order import HALVES, PAIRS, Spelling, known_spellings, module_pattern, spelled
from ....planning.llama_cpp.names import ARCHITECTURES
from ....planning.plan.plan import Plan
from ....util.text import count, escape
from .heads import Settings, architecture_of, heads_of, rotates_pairs, settings_of

__all__ = ["reordering_notes"]

_KINDS = {"q": "queries", "k": "keys"}


@dataclass(frozen=True)
class _Reordered:
    """A tensor of queries (``kind`` "q") or keys ("k") that operations reorder, with its ``old`` and ``new`` name.

    ``before`` is the order of rows in models that use the old name, and ``after`` the order in models that use the new
    name; '' if the order is not known. ``operations`` are the indices of the operations.
    """

    old: str
    new: str
    kind: str
    module: str
    before: str
    after: str
    operations: Sequence[int]


def reordering_notes(
    plan: Plan, number: int, source: Checkpoint, keys: Collection[str], config: Settings
) -> Iterator[str]:
    """Yield notes on operations of a plan's source ``number`` that reorder rows of queries and keys in a wrong way.

    ``source`` has the tensors of this source after the plan's operations. ``keys`` are all keys of the output, and
    ``config`` the fields of the destination's configuration.
    """
    rows = [row for row in plan.sources[number].operations if HALVES in row or PAIRS in row]
    if not rows:
        return
    settings = config, settings_of(source)
    found = list(_reordered(plan, number, rows, (list(source), keys), settings))
    heads = heads_of({one.module: one.kind for one in found if one.module}, source, settings)
    faults: dict[tuple[int, str], list[_Reordered]] = {}
    for one in found:
        for index in one.operations:
            for fault in _faults(rows[index], one, heads):
                faults.setdefault((index, fault), []).append(one)
    for (index, fault), some in faults.items():
        verb = _verb(rows[index])
        yield (
            f"the operation {verb} {escape(rows[index][verb])} {fault} ({count(len(some), 'tensor')}, "
            f"{escape(some[0].old)} as {escape(some[0].new)}): the model would compute something else"
        )


def _reordered(
    plan: Plan,
    number: int,
    rows: Sequence[Mapping[str, Any]],
    sides: tuple[Collection[str], Collection[str]],
    settings: Sequence[Settings],
) -> Iterator[_Reordered]:
    """Yield the queries and keys of source ``number`` that the operations ``rows`` reorder.

    ``sides`` are (all keys of the source, all keys of the output). ``settings`` are the known settings of the
    models of the destination and of the source.
    """
    matcher = KeyMatcher([KeyPattern.given(row[_verb(row)], "") for row in rows])
    known = [known_spellings(side) for side in sides]
    for step in plan.steps:
        of = step.made_of[0] if len(step.made_of) == 1 else step.source_key
        hits = matcher.match(of) | matcher.match(step.source_key)
        if step.source != number or not step.made_of or step.tied_to or not hits:
            continue
        (here, old), (there, new) = spelled(of, known[0]), spelled(step.key, known[1])
        match = old or new
        if match is not None:
            module = module_pattern(of, old) if old is not None and of == step.source_key else ""
            orders = _order(here, settings), _order(there, settings)
            yield _Reordered(of, step.key, match["kind"], module, *orders, sorted(hits))


def _verb(row: Mapping[str, Any]) -> str:
    return HALVES if HALVES in row else PAIRS


def _order(spelling: Spelling | None, settings: Sequence[Settings]) -> str:
    """Return the order in which a library stores the rows of queries and keys of a model; '' if it is not known.

    ``spelling`` has the names that the library gives to such tensors. ``settings`` are the known settings of the model.
    """
    if spelling is None or rotates_pairs(settings):
        return "" if spelling is None else PAIRS
    if spelling.library != "llama.cpp":
        return spelling.order
    architectures = [ARCHITECTURES[name] for name in map(architecture_of, settings) if name]
    return "" if not architectures else PAIRS if all(one.pairs for one in architectures) else HALVES


def _faults(row: Mapping[str, Any], one: _Reordered, heads: Mapping[str, int]) -> Iterator[str]:
    """Yield texts on faults of the operation ``row``, which reorders the rows of the queries or keys ``one``.

    ``heads`` has the numbers of heads of queries ("q") and of keys ("k"), if they are known.
    """
    verb, stated = _verb(row), heads.get(one.kind)
    use = f"use {one.after}" if one.after not in ("", one.before, verb) else "leave it out"
    if len(one.operations) > 1:
        yield "reorders rows that another operation also reorders; use only one of the two"
    elif one.before == verb:
        yield f"puts rows into the order {verb}, but tensors with the old name have this order already; {use}"
    elif one.after not in ("", verb):
        yield f"puts rows into the order {verb}, but tensors with the new name need the order {one.after}; {use}"
    if stated is not None and row["heads"] != stated:
        yield f"says heads: {row['heads']}, but the configuration says {stated} heads for {_KINDS[one.kind]}"
