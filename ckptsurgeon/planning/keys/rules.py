"""Rules that rename keys: ``pattern=target``.

    rule     = pattern "=" target     split at the last "=" outside braces; either side may be empty
    target   = text with the captures in order as "*" and "**", numbered "{1}", or computed "{n}", "{n+12}";
               a list "{2n,2n+1}" or range "{0..11}" means several names, and the tensor gets each of them

``encoder=model.encoder`` moves a module, ``module=`` strips a prefix, ``=model`` adds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import PatternError
from ...util.short_repr import Brief
from ...util.text import escape
from .pattern import Captures, KeyPattern
from .spelling import undotted
from .target import RuleTarget

__all__ = ["Rule", "RuleLine", "parse_rule", "rules_from_lines", "target_rule"]

_COMMENT = re.compile(r"(^|\s)#.*", re.DOTALL)
_MARK = re.compile(r"\\.|[{}=]", re.DOTALL)
"""Matches the characters that decide where a rule is split: braces, "=", and a backslash with the next character."""


@dataclass(frozen=True, repr=False)
class Rule(Brief):
    """A rule: the keys that it matches, and their new names. Without a ``pattern`` it adds a prefix to all keys.

    If a rule is ``lenient``, it is no error that it renames nothing: in a ruleset, earlier rules may have renamed all
    keys that it matches. If ``again`` is true, the rule is applied to its own result until it no longer matches.
    """

    text: str
    pattern: KeyPattern | None
    target: RuleTarget
    lenient: bool = False
    again: bool = False

    @property
    def label(self) -> str:
        """The rule as messages show it: the file and line if it was read from a map file, then its text."""
        return _label(self.text)

    @property
    def given(self) -> str:
        """The rule as the user gave it: ``label`` if it was read from a map file or a ruleset, else ``--map``."""
        return self.label if isinstance(self.text, RuleLine) else f"--map {self.text}"

    def apply(self, key: str, also: Mapping[str, str] | None = None) -> str | None:
        """Return the new name of ``key``, the first if there are several; None if the rule does not match it.

        ``also`` are further captures, by name. Raises PatternError if the new name is empty or a number is below zero.
        """
        names = self.names(key, also)
        return names[0] if names else None

    def names(self, key: str, also: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Return all new names of ``key``, an empty tuple if the rule does not match it.

        ``also`` are further captures, by name. Raises PatternError if a new name is empty or given twice, or if a
        number is below zero.
        """
        names = self._once(key, also)
        while self.again and names and (shorter := self._once(names[0], also)):
            names = shorter
        if len(names) > 1 and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise PatternError(
                f"{self.label} gives the key {escape(key)} the name {escape(twice)} twice.",
                hint="Write each new name only once.",
            )
        return names

    def _once(self, key: str, also: Mapping[str, str] | None) -> tuple[str, ...]:
        caught = Captures(rest=f".{key}") if self.pattern is None else self.pattern.captures(key)
        if caught is None:
            return ()
        if also:
            caught = replace(caught, named={**caught.named, **also})
        try:
            heads = self.target.render(caught)
        except ValueError as error:
            raise PatternError(f"{self.label} on {escape(key)}: {error}.") from error
        names = tuple([head + caught.rest if head else caught.rest.removeprefix(".") for head in heads])
        if "" in names:
            raise PatternError(
                f"{self.label} would make the name of the key {escape(key)} empty.",
                hint="Write a name after the =.",
            )
        return names


def parse_rule(text: str) -> Rule:
    """Return the rule that ``text`` describes.

    Raises PatternError if it has no "=", a side is malformed, or the target uses something that is not captured. For a
    line of a map file the message begins with the file and the line.
    """
    at = _last_equals(text)
    if at < 0:
        raise PatternError(f"{_label(text)} has no '='.", hint="Write FROM=TO, as in encoder=model.encoder.")
    left, right = text[:at], text[at + 1 :]
    if not left and not right:
        raise PatternError(
            f"{_label(text)} has neither FROM nor TO.", hint="Write FROM=TO, as in encoder=model.encoder."
        )
    option = "" if isinstance(text, RuleLine) else "--map "
    try:
        pattern = KeyPattern.given(left, option, f"={undotted(right)}") if left else None
    except PatternError as error:
        raise PatternError(f"{_place(text)}{error.message}", hint=error.hint) from None
    return Rule(text, pattern, RuleTarget(right, pattern, rule=_label(text), start=f"{left}="))


def target_rule(pattern: KeyPattern, target: str, label: str, also: Sequence[str] = ()) -> Rule:
    """Return the rule that renames the keys that ``pattern`` matches; ``target`` is the new name.

    The target may use the pattern's captures, and further captures whose names are in ``also``. ``label`` is the rule's
    name in errors. Raises PatternError if the target is empty, malformed, or uses something that is not captured.
    """
    if not target:
        raise PatternError(f"{label}: a name is empty.", hint="Write the tensor's new name.")
    made = RuleTarget(target, pattern, rule=label, also=also)
    if made.several:
        raise PatternError(f"{label}: {escape(target)} means several names, but there is one tensor to name.")
    return Rule(f"{pattern.text}={target}", pattern, made)


def target_rules(pattern: KeyPattern, target: str, label: str) -> list[Rule]:
    """Return a rule for each name that the lists and ranges in ``target`` expand to.

    The other parameters, and the errors, are the same as for ``target_rule``.
    """
    if not target:
        raise PatternError(f"{label}: a name is empty.", hint="Write the tensor's new name.")
    made = RuleTarget(target, pattern, rule=label)
    return [Rule(f"{pattern.text}={target}", pattern, one) for one in made.each()]


def _place(text: str) -> str:
    return f"{text.place}: " if isinstance(text, RuleLine) else ""


def _label(text: str) -> str:
    return f"{_place(text)}rule '{escape(str(text))}'"


def _last_equals(text: str) -> int:
    depth, found = 0, -1
    for mark in _MARK.finditer(text):
        if mark[0] == "{":
            depth += 1
        elif mark[0] == "}":
            depth = max(0, depth - 1)
        elif mark[0] == "=" and depth == 0:
            found = mark.start()
    return found


class RuleLine(str):
    """The text of a rule from a map file or a ruleset; ``place`` says which: ``names.map, line 3``."""

    __slots__ = ("place",)
    place: str

    @classmethod
    def at(cls, place: str, text: str) -> RuleLine:
        """Return the rule ``text`` that stands at ``place``."""
        line = cls(text)
        line.place = place
        return line


def rules_from_lines(lines: Iterable[str], name: str = "") -> list[str]:
    """Return the rules of a map file as RuleLines: one for each line, without blank lines and ``#`` comments.

    Within a line, ``#`` begins a comment only after a blank. ``name`` is the file's name, for errors in the rules.
    """
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        text = _trimmed(_COMMENT.sub("", line.removeprefix("\ufeff").rstrip("\r\n")))
        if text:
            found.append(RuleLine.at(f"{name}, line {number}" if name else f"line {number}", text))
    return found


def _trimmed(text: str) -> str:
    """Return ``text`` without blanks at its ends; a blank at the end stays if a backslash escapes it."""
    text = text.lstrip()
    short = text.rstrip()
    escapes = len(short) - len(short.rstrip("\\"))
    return text[: len(short) + escapes % 2]
