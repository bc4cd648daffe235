"""Joins operations on single tensors into few operations with patterns, such as ``layers.{n}`` for 32 layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....planning.keys.spelling import pieces, quoted
from .steps import Step

__all__ = ["Row", "collapsed"]

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_NAMES = "nmkabcdefgh"
EXPRESSION = 20_000
"""The largest length, in characters, of a list of layer numbers in a pattern."""
INDEX = "{i}"
TRIES = 2_000_000
"""The largest number of comparisons of a key with a pattern; afterwards, layers are listed one by one."""


@dataclass(frozen=True)
class Row:
    """An operation with patterns.

    ``row`` is the operation as users write it, ``steps`` are the single operations that it stands for.
    """

    row: Mapping[str, Any]
    steps: tuple[Step, ...]


@dataclass
class _Keys:
    """All ``keys`` before an operation, and the keys of each form: a key with ``#`` in place of each number.

    ``left`` is the number of comparisons that ``alike`` may still make.
    """

    keys: Collection[str]
    forms: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    inside: set[str] = field(default_factory=set)
    """The paths of all modules."""
    left: int = field(default_factory=lambda: TRIES)

    def __post_init__(self) -> None:
        for key in self.keys:
            self.forms[_form(key)].append(key)
            parts = key.split(".")
            self.inside.update(".".join(parts[:end]) for end in range(1, len(parts)))
        self.inside_forms = {_form(path) for path in self.inside}

    def alike(self, key: str, fixed: Sequence[tuple[int, str]]) -> set[str]:
        """Return the keys that differ from ``key`` only in numbers, and that have all ``fixed`` pieces: (index, piece).

        Returns an empty set after ``TRIES`` comparisons in total, to bound the time.
        """
        near = self.forms[_form(key)]
        self.left -= len(near)
        if self.left < 0:
            return set()
        return {one for one in near if all(pieces(one)[at] == part for at, part in fixed)}


def collapsed(steps: Sequence[Step], keys: Collection[str]) -> list[Row]:
    """Return the steps of one phase as operations with patterns; ``keys`` are the names of all tensors before them.

    A pattern matches exactly the inputs of its steps. The operations are in the order of their first steps.
    """
    known = _Keys(keys)
    groups: dict[tuple[object, ...], list[Step]] = defaultdict(list)
    for step in steps:
        forms = tuple(map(_form, step.inputs)), tuple(map(_form, step.outputs))
        groups[step.verb, step.fields, _short(forms[0]), _short(forms[1])].append(step)
    rows = [row for group in groups.values() for row in _rows(group, known)]
    return _by_module(rows, known.keys)


def _short(forms: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``forms`` (keys with ``#`` for each number) without repeats.

    So a stack of 8 tensors and a stack of 16, all of whose keys have one form, can be joined into one operation.
    """
    return tuple(dict.fromkeys(forms))


def _form(key: str) -> str:
    """Return a key with ``#`` in place of each number; keys with the same form have the same number of pieces."""
    found = pieces(key)
    literal = (part.replace("\\", "\\\\").replace("#", "\\#") if "/" in key else part for part in found)
    return "".join("#" if _NUMBER.fullmatch(part) else said for part, said in zip(found, literal, strict=True))


def _quoted(piece: str) -> str:
    return piece if piece == "." else quoted(piece)


def _rows(steps: Sequence[Step], known: _Keys) -> Iterator[Row]:
    row = _together(steps, known)
    if row is not None:
        yield row
    elif len(steps) > (
        number := EXPRESSION // 10
    ):  # a list of so many numbers, of nine digits at most, is not too long
        for begin in range(0, len(steps), number):
            yield from _rows(steps[begin : begin + number], known)
    else:
        for step in steps:
            yield _single(step, known)


def _single(step: Step, known: _Keys) -> Row:
    """Return the operation for one step; its patterns have captures only if the operation needs them."""
    found = _together([step], known) if step.verb in ("stack", "unstack") else None
    if found is not None:
        return found
    patterns = [_exactly(key, known) for key in step.inputs]
    return Row(_written(step, patterns, [quoted(key) for key in step.outputs]), (step,))


def _exactly(key: str, known: _Keys) -> str:
    text = quoted(key)
    return f"re:{re.escape(key)}" if key in known.inside or text[0].isspace() or text.startswith("re:") else text


def _written(step: Step, patterns: Sequence[str], into: Sequence[str]) -> dict[str, Any]:
    given = list(patterns) if step.verb == "concat" else patterns[0]
    row: dict[str, Any] = {step.verb: given}
    if not step.keeps_names:
        row["into"] = list(into) if step.verb in ("split", "copy") else into[0]
    return {**row, **{name: list(value) if isinstance(value, tuple) else value for name, value in step.fields}}


@dataclass
class _Column:
    """The keys that one input has in a group of similar steps, such as the same tensor of all layers.

    ``parts`` are the pieces (names, dots and numbers) of the first key; ``rows`` has, for each step, the numbers that
    differ between the steps.
    """

    parts: list[str]
    rows: list[list[int]]
    names: dict[int, str] = field(default_factory=dict)
    """{position of a piece in the keys: name of the capture}"""


def _together(steps: Sequence[Step], known: _Keys) -> Row | None:
    """Return one operation with patterns that replaces all ``steps``; None if no patterns match exactly their keys."""
    first = steps[0]
    one = first.verb == "stack"
    inputs = [[key for step in steps for key in step.inputs]] if one else _transposed(step.inputs for step in steps)
    columns = [_column(keys) for keys in inputs]
    patterns = [_pattern(column, keys, known) for column, keys in zip(columns, inputs, strict=True)]
    if any(pattern is None for pattern in patterns):
        return None
    into: list[str] = []
    if not first.keeps_names:
        if first.verb == "unstack":
            outputs = [[_indexed(step) for step in steps]]
        elif one:
            outputs = [[step.outputs[0] for step in steps for _ in step.inputs]]
        else:
            outputs = _transposed(step.outputs for step in steps)
        targets = [_target(names, columns) for names in outputs]
        if any(target is None for target in targets):
            return None
        into = [target for target in targets if target is not None]
    return Row(_written(first, [pattern or "" for pattern in patterns], into), tuple(steps))


def _transposed(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _indexed(step: Step) -> str:
    """Return the common name of the results of an unstack, with ``{i}`` in place of the index of each result."""
    if len(step.outputs) == 1:
        name, _, _ = step.outputs[0].rpartition(".")
        return f"{name}.{INDEX}"
    first, second = (pieces(name) for name in step.outputs[:2])
    return "".join(INDEX if a != b else a for a, b in zip(first, second, strict=True))


def _column(keys: Sequence[str]) -> _Column:
    split = [pieces(key) for key in keys]
    numbers = [at for at, part in enumerate(split[0]) if _NUMBER.fullmatch(part)]
    rows = [[int(parts[at]) for at in numbers] for parts in split]
    varying = [at for at, values in zip(numbers, zip(*rows, strict=True), strict=True) if len(set(values)) > 1]
    column = _Column(split[0], [[int(parts[at]) for at in varying] for parts in split])
    column.names = dict(zip(varying, _NAMES, strict=False)) if len(varying) <= len(_NAMES) else {}
    return column


def _pattern(column: _Column, keys: Sequence[str], known: _Keys) -> str | None:
    """Return a pattern that matches exactly ``keys``, with captures of the numbers that vary; None if there is none."""
    wanted = set(keys)
    if len(wanted) > 1 and not column.names:
        return None
    fixed = [(at, part) for at, part in enumerate(column.parts) if at not in column.names]
    alike = known.alike(keys[0], fixed) if column.names else wanted
    begins_oddly = quoted(keys[0]).startswith("re:") or keys[0][:1].isspace()
    if alike == wanted and _form(keys[0]) not in known.inside_forms and not begins_oddly:
        names = column.names
        return "".join(f"{{{names[at]}}}" if at in names else _quoted(part) for at, part in enumerate(column.parts))
    return _expression(column)


def _expression(column: _Column) -> str | None:
    """Return a regular expression that matches the keys of a column by a list of the numbers that differ between them.

    Returns None if the keys differ in two numbers, or if the list is longer than ``EXPRESSION``.
    """
    if len(column.names) > 1:
        return None
    at, name = next(iter(column.names.items()), (-1, ""))
    numbers = "|".join(str(row[0]) for row in column.rows) if name else ""
    if len(numbers) > EXPRESSION:
        return None
    said = (f"(?P<{name}>{numbers})" if i == at else re.escape(part) for i, part in enumerate(column.parts))
    return "re:" + "".join(said)


def _target(names: Sequence[str], columns: Sequence[_Column]) -> str | None:
    """Return one pattern for the new ``names``, in which captures of the inputs' patterns give the numbers.

    Returns None if no capture gives one of the numbers, or if the names differ in something else.
    """
    split = [pieces(name) for name in names]
    said: list[str] = []
    for at, parts in enumerate(zip(*split, strict=True)):
        if len(set(parts)) == 1:
            said.append(parts[0] if parts[0] == INDEX else _quoted(parts[0]))
            continue
        if not all(_NUMBER.fullmatch(part) for part in parts):
            return None
        found = _capture([int(part) for part in parts], columns, at)
        if found is None:
            return None
        said.append(found)
    return "".join(said)


def _capture(numbers: Sequence[int], columns: Sequence[_Column], at: int) -> str | None:
    """Return an expression such as ``{n+1}`` that gives ``numbers``, one number per new name; None if there is none."""
    options: list[tuple[int, int, str]] = []
    for place, (position, name) in enumerate(columns[0].names.items()):
        shifts = {number - row[place] for number, row in zip(numbers, columns[0].rows, strict=True)}
        if len(shifts) == 1:
            shift = shifts.pop()
            options.append((abs(shift), abs(position - at), f"{{{name}{shift:+d}}}" if shift else f"{{{name}}}"))
            if not all(_has(other, name, place, columns[0].rows) for other in columns[1:]):
                options.pop()
    return min(options)[2] if options else None


def _has(column: _Column, name: str, place: int, rows: Sequence[Sequence[int]]) -> bool:
    """Return whether the column's pattern has a capture ``name``, with the numbers in column ``place`` of ``rows``."""
    at = next((number for number, known in enumerate(column.names.values()) if known == name), None)
    return at is not None and all(mine[at] == row[place] for mine, row in zip(column.rows, rows, strict=True))


def _by_module(rows: Sequence[Row], keys: Collection[str]) -> list[Row]:
    """Return the operations; equal operations on weights and biases become one operation on the modules."""
    groups: dict[object, list[tuple[str, Row]]] = defaultdict(list)
    for row in rows:
        stripped = _stripped(row.row)
        groups[repr(stripped[1]) if stripped else id(row)].append((stripped[0] if stripped else "", row))
    leaves: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        module, _, leaf = _form(key).rpartition(".")
        leaves[module].add(leaf)
        for end in range(module.count(".") + 1):
            leaves[module.rsplit(".", end + 1)[0]].add("")
    joined = [_joined([leaf for leaf, _ in group], [row for _, row in group], leaves) for group in groups.values()]
    return [row for group in joined for row in group]


def _joined(ends: Sequence[str], rows: Sequence[Row], leaves: Mapping[str, set[str]]) -> list[Row]:
    modules = {_form(key).rpartition(".")[0] for row in rows for step in row.steps for key in step.inputs}
    whole = all(leaves[module] == set(ends) for module in modules)
    if len(rows) < 2 or not whole or len({len(row.steps) for row in rows}) > 1:
        return list(rows)
    stripped = _stripped(rows[0].row)
    assert stripped is not None
    return [Row(stripped[1], tuple(step for row in rows for step in row.steps))]


def _stripped(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return ("weight" or "bias", the operation with this ending removed from its names).

    None if a name ends otherwise.
    """
    verb = next(iter(row))
    texts = [text for name in (verb, "into") if name in row for text in _texts(row[name])]
    ends = {text.rpartition(".")[2] for text in texts}
    if len(ends) != 1 or not ends <= {"weight", "bias"} or any(text.startswith("re:") for text in texts):
        return None
    end = ends.pop()
    cut = {name: _cut(value, end) if name in (verb, "into") else value for name, value in row.items()}
    return end, cut


def _texts(value: Any) -> Iterable[str]:
    return [value] if isinstance(value, str) else value


def _cut(value: Any, end: str) -> Any:
    if isinstance(value, str):
        return value.removesuffix(f".{end}")
    return [one.removesuffix(f".{end}") for one in value]
