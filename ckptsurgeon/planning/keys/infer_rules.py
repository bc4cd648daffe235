"""Finds ``--map`` rules for known renamings (old key -> new name): few rules, as general as possible.

A rule is accepted only if it renames every key that it matches correctly. So the order of the rules does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import PatternError
from .renaming import rename
from .rules import parse_rule
from .spelling import is_printable, pieces, quoted, rule_text, spelled, spelled_exactly

__all__ = ["left_out", "rules_for", "unspelled"]

_NUMBER = re.compile(r"[0-9]{1,9}")
_NAMES = "nmk"
"""The names of the numbers that a rule captures, as in ``h.{n}=layers.{n}``; rules with more numbers are not tried."""

TRIES = 2_000_000
"""The most trials (of one rule on one key). After that, each key gets its own rule. Real models need few per key."""
PARSING = 20
"""The cost of parsing one rule, counted in trials."""


@dataclass(frozen=True)
class _Candidate:
    """The text of a rule that renames no key wrongly, and the keys that it renames (``covers``)."""

    text: str
    covers: tuple[int, ...]
    """The positions of the keys that the rule renames."""


@dataclass
class _KeyIndex:
    """An index of the keys by the modules that contain them.

    ``names`` maps each key to its new name. ``under`` maps each module to the positions of its keys in the list
    ``keys``; ``alike`` maps each group of modules whose names differ only in numbers to the positions of their keys. A
    module is written with a dot before each segment: ".a.b"; the top level is "", and "." is a module without a name.
    ``left`` is the number of trials that are still allowed; checking a rule uses some of them.
    """

    names: Mapping[str, str]
    keys: Sequence[str]
    under: dict[str, list[int]]
    alike: dict[str, list[int]]
    left: int

    @staticmethod
    def of(names: Mapping[str, str]) -> _KeyIndex:
        under: dict[str, list[int]] = {"": list(range(len(names)))}
        alike: dict[str, list[int]] = {}
        for position, key in enumerate(names):
            plain, open_ = "", ""
            for part in key.split("."):
                plain, open_ = f"{plain}.{part}", f"{open_}.{_opened_part(part)}"
                under.setdefault(plain, []).append(position)
                alike.setdefault(open_, []).append(position)
        return _KeyIndex(names, list(names), under, alike, TRIES)


def rules_for(names: Mapping[str, str]) -> list[str]:
    """Return rules that rename every key of ``names`` to its value; keys that keep their name may need none.

    Each rule can be written in a map file and on a command line. A key gets no rule if no rule can produce its new
    name, or if every rule that can would rename another key wrongly.
    """
    index = _KeyIndex.of(names)
    candidates: dict[str, _Candidate | None] = {}
    for position, (key, name) in enumerate(names.items()):
        if key != name:
            _find(position, key, name, index, into=candidates)
    left = {position for position, (key, name) in enumerate(names.items()) if key != name}
    chosen: list[_Candidate] = []
    found = [candidate for candidate in candidates.values() if candidate is not None]
    for candidate in sorted(found, key=lambda c: (-len(c.covers), len(c.text), c.text)):
        if not left.isdisjoint(candidate.covers):
            chosen.append(candidate)
            left.difference_update(candidate.covers)
    return [candidate.text for candidate in _needed(sorted(chosen, key=lambda c: c.covers))]


def left_out(names: Mapping[str, str], rules: Sequence[str]) -> list[str]:
    """Return the keys of ``names`` that the rules do not rename to their values in ``names``."""
    done = rename(list(names), [parse_rule(text) for text in rules]).names
    return [key for key, name in names.items() if done[key] != (name,)]


def unspelled(names: Mapping[str, str], rules: Sequence[str]) -> tuple[str, ...]:
    """Return a note with the number of ``names`` that the rules do not produce; () if they produce all."""
    number = len(left_out(names, rules))
    return (f"no rule can produce {number} of the new names",) if number else ()


def _needed(rules: Iterable[_Candidate]) -> Iterator[_Candidate]:
    """Yield the rules, except those whose keys are all renamed by earlier rules: such a rule would be an error."""
    taken: set[int] = set()
    for rule in rules:
        if not taken.issuperset(rule.covers):
            yield rule
            taken.update(rule.covers)


def _find(position: int, old: str, new: str, index: _KeyIndex, *, into: dict[str, _Candidate | None]) -> None:
    """Add to ``into`` the most general rule that renames the key ``old`` to ``new`` and renames no other key wrongly.

    ``position`` is the key's position in the index. ``into`` maps the text of each rule to the checked rule, or to None
    if the rule is wrong.
    """
    for text, positions in _generalisations(old, new, index):
        if text not in into:
            into[text] = _checked(text, positions, index) if index.left > 0 else None
        if into[text] is not None:
            return
    # the key is also the name of a module, no pattern can be written for it, or the limit of trials is reached
    plain, exact = spelled([old], [new]), spelled_exactly(old, new)
    text = plain if index.under[_dotted(old.split("."))] == [position] and _checked(plain, [position], index) else exact
    into[text] = _checked(text, [position], index)


def _generalisations(old: str, new: str, index: _KeyIndex) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield rules that rename ``old`` to ``new``, the most general first.

    With each rule it yields the positions of the keys that the rule may match.
    """
    a, b = old.split("."), new.split(".")
    shared = 0
    while shared < min(len(a), len(b)) and a[-1 - shared] == b[-1 - shared]:
        shared += 1
    for tail in range(shared, -1, -1):
        left, right = a[: len(a) - tail], b[: len(b) - tail]
        if not left and not right:
            continue
        alike = index.alike.get(_dotted(map(_opened_part, left)), [])
        yield from ((text, alike) for text in _opened(*(pieces(".".join(side)) for side in (left, right))))
        yield spelled(left, right), index.under[_dotted(left)]


def _dotted(parts: Iterable[str]) -> str:
    return "".join(f".{part}" for part in parts)


def _opened_part(part: str) -> str:
    if "/" in part:
        return "".join("#" if _NUMBER.fullmatch(piece) else piece for piece in pieces(part))
    return "#" if part.isascii() and part.isdigit() else part


def _opened(left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """Yield rules in which numbers are captures: ``h.{n}=layers.{n}`` for ``h.3`` and ``layers.3``.

    ``left`` and ``right`` are the pieces of the old and the new name. In the first rule only the numbers that are the
    same on both sides are captured. In the second all numbers are captured, and the right side may add a constant.
    """
    here = [i for i, part in enumerate(left) if _NUMBER.fullmatch(part)]
    there = [i for i, part in enumerate(right) if _NUMBER.fullmatch(part)]
    equal: list[tuple[int, int]] = []
    for i in here:
        rest = [j for j in there if right[j] == left[i] and (not equal or j > equal[-1][1])]
        equal += [(i, rest[0])] if rest else []
    for pairs in (equal, list(zip(here, there, strict=False)) if len(here) == len(there) else []):
        if 0 < len(pairs) <= len(_NAMES):
            yield _with_numbers(left, right, pairs)


def _with_numbers(left: Sequence[str], right: Sequence[str], pairs: Sequence[tuple[int, int]]) -> str:
    pattern, target = ([part if part == "." else quoted(part) for part in side] for side in (left, right))
    for name, (i, j) in zip(_NAMES, pairs, strict=False):
        shift = int(right[j]) - int(left[i])
        pattern[i], target[j] = f"{{{name}}}", f"{{{name}{shift:+d}}}" if shift else f"{{{name}}}"
    return rule_text("".join(pattern), "".join(target))


def _checked(text: str, positions: Sequence[int], index: _KeyIndex) -> _Candidate | None:
    """Return the rule ``text`` with the keys that it renames; None if it is not valid or renames a key wrongly.

    ``positions`` are the positions of the keys that the rule may match.
    """
    index.left -= PARSING
    if not is_printable(text):
        return None
    try:
        rule, covers = parse_rule(text), []
        for position in positions:
            key = index.keys[position]
            index.left -= 1
            name = rule.apply(key)
            if name is not None and name != index.names[key]:
                return None
            covers += [position] if name is not None else []
    except PatternError:
        return None
    return _Candidate(text, tuple(covers)) if covers else None
