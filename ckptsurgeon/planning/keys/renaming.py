"""Renaming keys by rules: the first that matches a key wins, and none sees what another made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import PatternError
from ...util.text import count, escape
from .matcher import KeyMatcher
from .rules import Rule

__all__ = ["Renaming", "check_shadowed", "rename"]


@dataclass(frozen=True)
class Renaming:
    """The names of every key, several where its rule lists them, and which rule gave them (None: it kept its name)."""

    names: dict[str, tuple[str, ...]]
    by: dict[str, int | None]
    used: tuple[int, ...]
    shadowed: Mapping[int, int] = field(default_factory=dict)
    """The rules that earlier ones leave no key, and how many they match."""

    def collisions(self) -> dict[str, list[str]]:
        """Return the names on which several keys land, with those keys."""
        landed: dict[str, list[str]] = {}
        for key, names in self.names.items():
            for name in names:
                landed.setdefault(name, []).append(key)
        return {name: keys for name, keys in landed.items() if len(keys) > 1}


def _renamed(rule: Rule, key: str) -> tuple[str, ...]:
    names = rule.names(key)
    if not names:
        raise PatternError(
            f"{rule.label} matches {escape(key)} segment by segment and not as a whole.",
            hint="Please report it: it is a fault of ours.",
        )
    return names


def rename(keys: Sequence[str], rules: Sequence[Rule]) -> Renaming:
    """Rename every key by the first rule that matches it; no rule sees what another made.

    Rules that match nothing are not in ``used``, and ``check_shadowed`` is for those that match and never apply: the
    caller, who knows every source, judges them.
    """
    matcher = KeyMatcher([rule.pattern for rule in rules if rule.pattern is not None])
    dotted = [i for i, rule in enumerate(rules) if rule.pattern is not None]
    always = [i for i, rule in enumerate(rules) if rule.pattern is None]
    names: dict[str, tuple[str, ...]] = {}
    by: dict[str, int | None] = {}
    seen: dict[int, int] = dict.fromkeys(range(len(rules)), 0)
    won: set[int] = set()
    for key in keys:
        matching = sorted([dotted[i] for i in matcher.match(key)] + always)
        for index in matching:
            seen[index] += 1
        by[key] = matching[0] if matching else None
        won.update(matching[:1])
        names[key] = _renamed(rules[matching[0]], key) if matching else (key,)
    shadowed = {index: number for index, number in seen.items() if number and index not in won}
    return Renaming(names, by, tuple(sorted(won)), shadowed)


def check_shadowed(rules: Sequence[Rule], renamings: Sequence[Renaming]) -> None:
    """Raise PatternError for a rule that matches keys of some source, all of them taken by earlier rules."""
    used = {index for renaming in renamings for index in renaming.used}
    for index, rule in enumerate(rules):
        number = sum(renaming.shadowed.get(index, 0) for renaming in renamings)
        if number and index not in used and not rule.lenient:
            raise PatternError(
                f"{rule.label} never applies: earlier rules take all of its {count(number, 'key')}.",
                hint="Put it first, or remove it.",
            )
