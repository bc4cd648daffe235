"""Which branch of a model a key belongs to, so that a table has a row for each and not for every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .tree import is_number, numbers_text

__all__ = ["branch_names", "collapsed", "modules_at", "numbers_of", "pattern_of"]

MAX_BRANCHES = 16

_DIGITS = re.compile(r"(\d+)", re.ASCII)
_LONGEST = 18


def branch_names(keys: Sequence[str]) -> dict[str, str]:
    """Map each key to the first segments that tell branches apart; numbered ones are joined where they are many."""
    level = 1
    while _is_shared(keys, level) and any(key.count(".") >= level for key in keys):
        level += 1
    names = {key: _prefix(key, level) for key in keys}
    if len(set(names.values())) > MAX_BRANCHES:
        joined = _numbered(dict.fromkeys(names.values()))
        names = {key: joined[name] for key, name in names.items()}
    kept = list(dict.fromkeys(names.values()))
    if len(kept) > MAX_BRANCHES:
        rest = {name: f"and {len(kept) - MAX_BRANCHES + 1} more" for name in kept[MAX_BRANCHES - 1 :]}
        names = {key: rest.get(name, name) for key, name in names.items()}
    return names


def modules_at(keys: Iterable[str], depth: int) -> dict[str, str]:
    """Map each key to the module it lies in so many levels deep, a key that is not as deep to itself."""
    return {key: _prefix(key, depth) for key in keys}


def _is_shared(keys: Sequence[str], level: int) -> bool:
    """Whether all keys have the same first segments."""
    shared = _prefix(keys[0], level) if keys else ""
    inside = f"{shared}."
    return bool(keys) and all(key.startswith(inside) or key == shared for key in keys)


def _prefix(key: str, level: int) -> str:
    """Return a key's first segments; the whole key where these are empty, as of ``..``."""
    head = ".".join(key.split(".", level)[:level])
    return head if head.strip(".") else key


def _numbered(names: Iterable[str]) -> dict[str, str]:
    """Map names whose last segment is a number to ``layers.{0..2299}``, all others to themselves."""
    numbers: dict[str, list[int]] = {}
    heads: dict[str, str] = {}
    for name in names:
        last = name.rpartition(".")[2]
        if is_number(last):
            heads[name] = name.removesuffix(last)
            numbers.setdefault(heads[name], []).append(int(last))
        else:
            heads[name] = name
    # a head that numbers follow ends in a dot or is empty, so that it is no other branch's name
    joined = {head: f"{head}{{{numbers_text(found)}}}" for head, found in numbers.items()}
    return {name: joined.get(head, name) if head != name else name for name, head in heads.items()}


def collapsed(texts: Sequence[str]) -> str:
    """Return texts that differ in numbers only as one, with the numbers as lists and ranges: ``layers.{0..11}.w``."""
    parts = [_DIGITS.split(text) for text in texts]
    shown = []
    for place, same in enumerate(parts[0]):
        found = {part[place] for part in parts}
        if len(found) == 1:
            shown.append(same)
        else:
            shown.append(f"{{{numbers_text({int(text[:_LONGEST]) for text in found})}}}")
    return "".join(shown)


def pattern_of(text: str) -> str:
    """Return a text with its numbers blanked, which texts that may be shown as one share."""
    return _DIGITS.sub("\0", text)


def numbers_of(text: str) -> list[str]:
    """Return the numbers in a text, in their order."""
    return _DIGITS.findall(text)
