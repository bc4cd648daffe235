"""Finds the ``--map`` rules that rename a set of keys as wanted, as few and as general as they can be.

A rule is only ever taken when it is right for every key that it matches, so their order does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import PatternError
from .rules import Rule, parse_rule

__all__ = ["rules_for"]

_NUMBER = re.compile(r"\d{1,9}")
_SPECIAL = re.compile(r"([\\*?\[\]{}=])")
_NAMES = "nmk"


@dataclass(frozen=True)
class _Candidate:
    rule: Rule
    covers: frozenset[str]


def rules_for(names: Mapping[str, str]) -> list[str]:
    """Return rules that rename every key of ``names`` to its value; keys that keep their name may need none."""
    moved = {key for key, name in names.items() if key != name}
    candidates = _candidates(names, sorted(moved))
    chosen: list[str] = []
    left = set(moved)
    while left:
        best = max(candidates, key=lambda c: (len(c.covers & left), -len(c.rule.text), c.rule.text))
        gained = best.covers & left
        if not gained:  # cannot be: the rule for a single key is always among them
            break
        chosen.append(best.rule.text)
        left -= gained
        candidates = [c for c in candidates if c.covers & left]
    return _in_order(chosen, names)


def _candidates(names: Mapping[str, str], moved: Sequence[str]) -> list[_Candidate]:
    seen: set[str] = set()
    found: list[_Candidate] = []
    modules = _by_module(names)
    for key in moved:
        for text in _generalisations(key, names[key]):
            if text in seen:
                continue
            seen.add(text)
            candidate = _checked(text, names, modules)
            if candidate is not None:
                found.append(candidate)
                break  # the widest rule that is right for this key's neighbours
    return found


def _by_module(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the keys under each first segment, so that a rule is tried on few."""
    found: dict[str, list[str]] = {}
    for key in names:
        found.setdefault(key.partition(".")[0], []).append(key)
    return found


def _generalisations(old: str, new: str) -> Iterator[str]:
    """Yield rules that rename one key, the widest first: its modules from the outermost, numbers left open or not."""
    a, b = old.split("."), new.split(".")
    shared = 0
    while shared < min(len(a), len(b)) and a[-1 - shared] == b[-1 - shared]:
        shared += 1
    for tail in range(shared, -1, -1):
        left, right = a[: len(a) - tail], b[: len(b) - tail]
        if not left and not right:
            continue
        yield from _opened(left, right)
        yield f"{_quoted('.'.join(left))}={_quoted('.'.join(right))}"
    yield f"re:{re.escape(old)}={_quoted(new)}"  # a key that is a module's name too


def _opened(left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """Yield rules with numbers left open: those that both sides have, or all of them, shifted."""
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
    pattern, target = [_quoted(part) for part in left], [_quoted(part) for part in right]
    for name, (i, j) in zip(_NAMES, pairs, strict=False):
        shift = int(right[j]) - int(left[i])
        pattern[i], target[j] = f"{{{name}}}", f"{{{name}{shift:+d}}}" if shift else f"{{{name}}}"
    return f"{'.'.join(pattern)}={'.'.join(target)}"


def _quoted(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _checked(text: str, names: Mapping[str, str], modules: Mapping[str, list[str]]) -> _Candidate | None:
    """Return a rule with the keys it renames, None where it is wrong for one of them."""
    rule = parse_rule(text)
    head = text.partition(".")[0].partition("=")[0]
    literal = head and not head.startswith("re:") and not _SPECIAL.search(head)
    keys = modules.get(head, []) if literal else list(names)
    covers = []
    for key in keys:
        name = _applied(rule, key)
        if name is not None and name != names[key]:
            return None
        covers += [key] if name is not None else []
    return _Candidate(rule, frozenset(covers))


def _applied(rule: Rule, key: str) -> str | None:
    """Return what a rule makes of a key; '', which is no key's name, where it makes nothing of it."""
    try:
        return rule.apply(key)
    except PatternError:
        return ""


def _in_order(chosen: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return rules in the order in which the keys need them."""
    rules = [parse_rule(text) for text in chosen]
    first = {}
    for position, key in enumerate(names):
        for rule in rules:
            if rule.text not in first and _applied(rule, key) is not None:
                first[rule.text] = position
    return sorted(chosen, key=lambda text: first.get(text, 0))
