"""Shows the difference of two checkpoints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from ..analysis.compare.results import Difference, Numbers, Pair
from ..util.text import count, escape, natural_key, shape_text, together
from .columns import Columns, Hanging
from .tree import branch_names, collapsed, modules_at, numbers_of, pattern_of

__all__ = ["difference_view"]

SHOWN = 12
"""The largest number of rows that are shown of each kind of difference; equal layers are one row."""

FEW = 4
"""If there are more rows than this, a table also shows how much differs in each branch."""

STYLES = {"removed": "red", "added": "green", "renamed": "cyan", "close": "", "not compared": ""}


@dataclass(frozen=True)
class _Row:
    """A tensor that differs: its key, a description, the figures of the difference, and its new name if it has one."""

    key: str
    said: str = ""
    numbers: Numbers | None = None
    renamed: str = ""


def difference_view(found: Difference, *, every: bool = False, depth: int | None = None) -> RenderableType:
    """Return a list of the differences by kind, a table of branches, and the number of tensors that are the same.

    In the list, numbered layers with the same description share one row, which has their largest difference; with
    ``every``, each tensor has its own row. The table shows how many tensors differ in each branch: the part of the
    model whose keys have the same beginning. There is no table if the list is short, or if there is only one branch.
    With ``depth``, there is no list, and the table has a row for each module at that level.
    """
    kinds = _kinds(found)
    if depth is not None:
        return Group(_where(found, kinds, modules_at(_keys(found, kinds), depth), measured=True), _summary(found))
    shown = [line for name, rows in kinds.items() for line in _lines(name, rows, every=every)]
    parts: list[RenderableType] = [Columns(shown)] if shown else []
    names = branch_names(_keys(found, kinds)) if len(shown) > FEW and found.differs else {}
    where = _where(found, kinds, names) if len(set(names.values())) > 1 else None
    return Group(*parts, *([Text(""), where] if where is not None else []), _summary(found))


def _kinds(found: Difference) -> dict[str, list[_Row]]:
    kinds = {
        "removed": [_Row(key) for key in found.removed],
        "added": [_Row(key) for key in found.added],
        "renamed": [_Row(old, renamed=new) for old, new in found.renamed.items()],
        "reshaped": [
            _Row(p.key, f"{shape_text(p.first.shape)} to {shape_text(p.second.shape)}") for p in found.reshaped
        ],
        "retyped": [_Row(p.key, _retyped(p), p.numbers) for p in found.retyped],
        "changed": _measured(found.changed),
        "close": _measured(found.close),
        "decoded": [_Row(p.key, _encoded(p), p.numbers) for p in found.decoded],
        "not compared": [_Row(key, why) for key, why in found.not_compared.items()],
    }
    return {name: rows for name, rows in kinds.items() if rows}


def _retyped(pair: Pair) -> str:
    equal = ", equal in value" if pair.numbers is not None and not pair.numbers.differing else ""
    return f"{pair.first.dtype} to {pair.second.dtype}{equal}"


def _encoded(pair: Pair) -> str:
    """Return the encodings of a weight in both checkpoints."""
    here, there = pair.encodings
    equal = ", equal in value" if pair.numbers is not None and not pair.numbers.differing else ""
    return f"{here}{equal}" if here == there else f"{here} to {there}{equal}"


def _measured(pairs: Iterable[Pair]) -> list[_Row]:
    return [_Row(pair.key, _unmeasured(pair), pair.numbers) for pair in pairs]


def _unmeasured(pair: Pair) -> str:
    """Return the description of a tensor whose bytes differ, but whose numeric difference was not computed."""
    if pair.codes:
        return "other codes"
    if pair.numbers is None:
        return f"{pair.first.dtype}, not measured"
    return "" if pair.numbers.differing else "equal values, but different bits"


def _lines(name: str, rows: Sequence[_Row], *, every: bool) -> Iterator[list[str | Text]]:
    """Yield the table lines for one kind of difference, ``name``, the largest differences first."""
    if name == "not compared" and not every:
        yield from _by_reason(name, rows)
        return
    grouped = sorted(([row] for row in rows) if every else _grouped(rows), key=_least_far)
    shown = len(grouped) if every else SHOWN
    for i, group in enumerate(grouped[:shown]):
        key, renamed = collapsed([row.key for row in group]), _new_names(group)
        times = f"x {len(group)}" if len(group) > 1 else ""
        words = "  ".join(filter(None, (escape(renamed), escape(group[0].said), times, _apart(group))))
        yield [Text(name if i == 0 else "", style=STYLES.get(name, "yellow")), escape(key), words]
    if len(grouped) > shown:
        yield ["", f"and {len(grouped) - shown} more (-v or --json lists all)", ""]


def _by_reason(name: str, rows: Sequence[_Row]) -> Iterator[list[str | Text]]:
    """Yield a table line for each reason why tensors were not compared, with the keys of these tensors."""
    keys: dict[str, list[str]] = {}
    for group in _grouped(rows):
        keys.setdefault(group[0].said, []).append(collapsed([row.key for row in group]))
    for i, (why, names) in enumerate(keys.items()):
        number = sum(row.said == why for row in rows)
        times = f"x {number}" if number > len(names) else ""
        label = Text(name if i == 0 else "", style=STYLES.get(name, "yellow"))
        yield [label, together(names), "  ".join(filter(None, (escape(why), times)))]


def _grouped(rows: Iterable[_Row]) -> list[list[_Row]]:
    """Return groups of rows; the rows of a group have the same description, and names that differ only in numbers."""
    groups: dict[tuple[str, str, str], list[_Row]] = {}
    for row in rows:
        groups.setdefault((pattern_of(row.key), pattern_of(row.renamed), row.said), []).append(row)
    return [part for group in groups.values() for part in _even(group)]


def _even(group: list[_Row]) -> list[list[_Row]]:
    """Split a group of tensors into groups whose keys, and whose new names, can each be written as one pattern.

    A group for which this is not possible is split into parts whose keys differ only in the first number. If the new
    names of a part cannot be written as one pattern, each of its tensors becomes a group.
    """
    if _is_even(group):
        return [group]
    parts: dict[tuple[str, ...], list[_Row]] = {}
    for row in group:
        parts.setdefault(tuple(numbers_of(row.key)[1:]), []).append(row)
    return [some for part in parts.values() for some in ([part] if _is_even(part) else [[row] for row in part])]


def _is_even(group: Sequence[_Row]) -> bool:
    """Return whether the keys of a group can be written as one pattern, and their new names as another.

    A pattern is possible only if every combination of its numbers occurs. If the new names are in another order than
    the keys, only one number may vary: then the list ``{2,1}`` shows which key gets which new name.
    """
    places = [list(map(set, zip(*map(numbers_of, texts), strict=True))) for texts in _names(group)]
    if any(math.prod(map(len, each)) != len(set(texts)) for each, texts in zip(places, _names(group), strict=True)):
        return False
    return _keeps_order(group) or all(sum(len(place) > 1 for place in each) == 1 for each in places)


def _names(group: Sequence[_Row]) -> tuple[list[str], list[str]]:
    """Return the keys and the new names of a group, in the natural order of the keys."""
    rows = sorted(group, key=lambda row: natural_key(row.key))
    return [row.key for row in rows], [row.renamed for row in rows]


def _keeps_order(group: Sequence[_Row]) -> bool:
    """Return whether the new names of renamed tensors are in the same order as their old names."""
    names = [natural_key(name) for name in _names(group)[1]]
    return names == sorted(names)


def _new_names(group: Sequence[_Row]) -> str:
    """Return the new names of a group as one pattern, such as ``{2,1}`` if the tensors ``{1,2}`` were swapped."""
    names = _names(group)[1]
    if _keeps_order(group):
        return collapsed(names)
    numbers = [dict.fromkeys(place) for place in zip(*map(numbers_of, names), strict=True)]
    shown = ["".join(place) if len(place) == 1 else f"{{{','.join(place)}}}" for place in numbers]
    texts = pattern_of(names[0]).split("\0")
    return "".join(text + number for text, number in zip(texts, [*shown, ""], strict=True))


def _least_far(group: Sequence[_Row]) -> tuple[bool, float, float]:
    """Return a sort key that puts the group of tensors with the largest relative difference first.

    Groups with infinite differences, or with NaN or infinite values in one tensor, come before all others. Groups whose
    differences were not measured come last, in their order.
    """
    numbers = [row.numbers for row in group if row.numbers is not None]
    infinite = any(one.max_abs is None or one.nan or one.inf for one in numbers)
    relative = max((one.relative or 0.0 for one in numbers), default=0.0)
    return not infinite, -relative, -max((one.max_abs or 0.0 for one in numbers), default=0.0)


def _apart(group: Sequence[_Row]) -> str:
    """Return the largest differences in a group of tensors: ``max 1.2e-3 rel 4.5e-4 cos 0.99991``."""
    numbers = [row.numbers for row in group if row.numbers is not None]
    finite = [one for one in numbers if one.max_abs != 0]  # the others differ only in NaN and infinities, if at all
    relative = [one.relative for one in finite if one.relative is not None]
    cosine = [one.cosine for one in finite if one.cosine is not None]
    words = [f"max {_largest(finite)}"] if finite else []
    words += [f"rel {max(relative):.2g}"] if relative else []
    words += [f"cos {min(cosine):.5f}"] if cosine else []
    words += [f"{' and '.join(some)} in {where}" for where, some in _in_one_only(numbers).items()]
    return "  ".join(words)


def _in_one_only(numbers: Sequence[Numbers]) -> dict[str, list[str]]:
    """Return how many values are NaN or infinite in each place: ``{"the second only": ["3 NaN", "1 Inf"]}``."""
    found: dict[str, list[str]] = {}
    for name, total, parts in (
        ("NaN", sum(one.nan for one in numbers), [one.nan_in for one in numbers]),
        ("Inf", sum(one.inf for one in numbers), [one.inf_in for one in numbers]),
    ):
        counts = {"the first only": sum(n for n, _ in parts), "the second only": sum(n for _, n in parts)}
        counts["both, but different"] = total - sum(counts.values())
        for where, number in counts.items():
            if number:
                found.setdefault(where, []).append(f"{number} {name}")
    return found


def _largest(numbers: Sequence[Numbers]) -> str:
    known = [one.max_abs for one in numbers if one.max_abs is not None]
    return f"{max(known):.2g}" if len(known) == len(numbers) else "beyond float64"


def _keys(found: Difference, kinds: dict[str, list[_Row]]) -> list[str]:
    return [*found.same, *(row.key for rows in kinds.values() for row in rows)]


def _where(
    found: Difference, kinds: dict[str, list[_Row]], names: Mapping[str, str], *, measured: bool = False
) -> RenderableType:
    """Return a table with the number of differing tensors in each branch, and how large the differences are.

    The sizes of the differences are left out unless ``measured`` is true. ``names`` maps each key to its branch.
    """
    rows: dict[str, dict[str, list[_Row]]] = {name: {} for name in names.values()}
    same = Counter(names[key] for key in found.same)
    for kind, every in kinds.items():
        for row in every:
            rows[names[row.key]].setdefault(kind, []).append(row)
    columns = [*(["identical"] if found.same else []), *kinds]
    table: list[list[str | Text]] = [["", *(Text(name, "dim") for name in columns), ""]]
    for name in sorted(rows, key=natural_key):
        counts = {"identical": same[name], **{kind: len(some) for kind, some in rows[name].items()}}
        apart = _apart([row for some in rows[name].values() for row in some]) if measured else ""
        table.append([escape(name), *(str(counts.get(kind) or "-") for kind in columns), Text(apart, "dim")])
    return Columns(table, right=range(1, len(columns) + 1))


def _summary(found: Difference) -> RenderableType:
    same = f"{count(found.identical, 'tensor')} {'identical ' if found.differs else ''}"
    same += "byte for byte" if found.values else "in dtype and shape"
    kinds = {name: len(rows) for name, rows in _kinds(found).items() if name != "close"}
    words = [same, *(f"{number} {kind}" for kind, number in kinds.items())]
    words += [f"{len(found.close)} within the tolerance"] if found.close else []
    words += [f"{found.left_out} left out"] if found.left_out else []
    not_compared = "" if found.values or not found.has_values else "; values not compared (--values)"
    said = f"{', '.join(words)}{_not_finite(found)}{not_compared}"
    if found.differs:
        return Hanging(Text("  "), Text(said))
    return Hanging(Text("  "), Text(f"{'the same' if found.values else 'alike'}  {said}", style="green"))


def _not_finite(found: Difference) -> str:
    """Return how many values are NaN or infinite in only one of two tensors, and in which; '' if none are."""
    numbers = [
        pair.numbers
        for pair in (*found.retyped, *found.changed, *found.close, *found.decoded)
        if pair.numbers is not None
    ]
    words = [f"{' and '.join(some)} in {where}" for where, some in _in_one_only(numbers).items()]
    return f"; {', '.join(words)}" if words else ""
