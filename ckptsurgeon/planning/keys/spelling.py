"""Writes rules that match exactly the given names; recognises the syntax of other tools, and superfluous dots."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from itertools import count
from string import ascii_lowercase

from ...util.text import escape
from .pattern_parser import INTEGER

__all__ = [
    "foreign_capture",
    "in_our_spelling",
    "is_printable",
    "name_as_option",
    "numberless",
    "pieces",
    "quoted",
    "rule_text",
    "spelled",
    "spelled_exactly",
    "spelling_hint",
    "undotted",
    "without_dots",
]

# Names in pieces: numbers, dots, and the text between them.

_DIGITS = re.compile(r"([0-9]+|\{i\})")


def pieces(name: str) -> list[str]:
    """Return the pieces of a name: its segments, and the dots between them.

    If a name has slashes, as in JAX, its segments are also divided at their numbers: ``layer_`` ``3`` ``/kernel``.
    """
    found: list[str] = []
    for number, segment in enumerate(name.split(".")):
        found += ["."] if number else []
        found += [one for one in _DIGITS.split(segment) if one] if "/" in segment else [segment]
    return found


# Superfluous dots: at the ends of a name, or two in a row.

_PIECE = re.compile(r"\\.|\[[^\]]*\]|\{[^{}]*\}|\.+|.", re.DOTALL)


def undotted(text: str) -> str:
    """Return a pattern or a target without dots at its ends, and with a single dot instead of several in a row."""
    if not (text.startswith(".") or text.endswith(".") or ".." in text):
        return text
    pieces = _PIECE.findall(text)
    first = 1 if pieces and _is_dots(pieces[0]) else 0
    end = len(pieces) - (1 if pieces and _is_dots(pieces[-1]) else 0)
    return "".join("." if _is_dots(piece) else piece for piece in pieces[first:end])


def without_dots(text: str, before: str = "", behind: str = "") -> str:
    """Return the hint for a pattern or target ``text`` with a superfluous dot: it shows the text without the dot.

    ``before`` and ``behind`` are the texts around it on the command line, such as ``--map``; the hint repeats them.
    """
    at_ends = text.startswith(".") or text.endswith(".")
    why = "a name has no dot at its ends" if at_ends else "a name has no two dots in a row"
    return f"Write {escape(f'{before}{undotted(text)}{behind}')}: {why}."


def _is_dots(piece: str) -> bool:
    return not piece.strip(".")


# Captures in the syntax of other tools (``\1``, ``$1``), which would silently be literal characters of a name here.

_FOREIGN = re.compile(
    r"\{[\\$](?P<inner>[0-9]+)\}"  # {\1}, {$1}
    r"|\\(?P<sed>[0-9]+)|\\[gk](?:<(?P<python>\w+)>|\{(?P<perl>\w+)\})"  # \1, \g<1>, \k<name>, \g{1}
    r"|\$(?P<dollar>[0-9]+)|\$\{(?P<shell>\w+)\}|\$<(?P<script>\w+)>"  # $1, ${1}, $<name>
    r"|\$\+\{(?P<hash>\w+)\}|\$(?P<named>[^\W\d]\w*)"  # $+{name}, $name
    r"|\\.",
    re.DOTALL,
)


def foreign_capture(text: str, names: Collection[str] = ()) -> str:
    """Return the first capture of a target that is in the syntax of another tool, else ''.

    ``names`` are the names that the pattern captures. ``$name`` without braces is a capture only if it is one of them.
    """
    return next((found[0] for found in _FOREIGN.finditer(text) if _is_capture(found, names)), "")


def in_our_spelling(text: str, names: Collection[str] = ()) -> str:
    """Return a target with captures in the syntax of other tools, such as ``$1``, rewritten as ``{1}``.

    ``names`` are the names that the pattern captures.
    """
    return _FOREIGN.sub(lambda found: f"{{{_inner(found)}}}" if _is_capture(found, names) else found[0], text)


def _is_capture(found: re.Match[str], names: Collection[str]) -> bool:
    return found.lastgroup is not None and (found.lastgroup != "named" or found["named"] in names)


def _inner(found: re.Match[str]) -> str:
    return found[found.lastgroup or 0]


def spelling_hint(foreign: str, written: str, captures: int) -> str:
    """Return the hint for a capture in the syntax of another tool.

    ``written`` is the whole rule in our syntax, or '' if that is impossible. ``captures`` is the number of captures in
    the pattern.
    """
    char, name = ("$", "dollar") if "$" in foreign else ("\\", "backslash")
    literal = f"\\{char} is a literal {name}"
    if written:
        return f"Write {written}; {literal}."
    caught = f"{{1}} to {{{captures}}}" if captures > 1 else "{1}" if captures else "nothing"
    return f"The pattern captures {caught}; {literal}."


# Rules that match exactly the given names; they can be written in a map file, too.

_SPECIAL = re.compile(r"[\\*?\[\]{}=]|(?<!\S)#|\$(?=[\w<+])")
"""Characters that have a meaning in a pattern or a target, begin a comment, or begin a capture in other tools."""
_INTEGER = re.compile(INTEGER)
_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Characters that end a line, control a terminal, or cannot be written as UTF-8."""
_BOM = "\ufeff"


def quoted(text: str) -> str:
    """Return ``text`` with a backslash before each special character; patterns and targets take it literally."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def numberless(key: str) -> str:
    """Return a pattern for a key and for all keys that differ from it only in numbers: ``h.{a}.mlp.{b}.weight``."""
    names = (f"{letter}{turn or ''}" for turn in count() for letter in ascii_lowercase)
    return ".".join(f"{{{next(names)}}}" if _INTEGER.fullmatch(part) else quoted(part) for part in key.split("."))


def rule_text(pattern: str, target: str, *, kind: str = "") -> str:
    """Return the text of a rule from its two sides, with blanks at its ends escaped.

    With ``kind`` "re:" the pattern is a regular expression.
    """
    text = f"{kind}{pattern}={target}"
    if not kind and (text[0].isspace() or text.startswith(("re:", _BOM))):
        text = f"\\{text}"
    return f"{text[:-1]}\\{text[-1]}" if text[-1].isspace() else text


def spelled(old: Sequence[str], new: Sequence[str]) -> str:
    """Return the text OLD=NEW of the rule that renames a module or key; ``old`` and ``new`` are its names' segments."""
    return rule_text(quoted(".".join(old)), quoted(".".join(new)))


def spelled_exactly(old: str, new: str) -> str:
    """Return the text of a rule that renames only the key ``old``, to ``new``; its pattern is a regular expression."""
    return rule_text(_expression(old), quoted(new), kind="re:")


def name_as_option(name: str, *, is_key: bool) -> str:
    """Return the pattern that matches a key or module of the given name, quoted as a shell needs it.

    It is a regular expression if no other pattern matches such a name.
    """
    if undotted(name) != name or _UNPRINTABLE.search(name):
        return shlex.quote(f"re:{_expression(name)}" if is_key else rf"re:{_expression(name)}\..*")
    text = quoted(name)
    return shlex.quote(f"\\{text}" if text.startswith("re:") else text)


def _expression(name: str) -> str:
    return "".join(f"\\u{ord(c):04x}" if _UNPRINTABLE.match(c) else re.escape(c) for c in name)


def is_printable(rule: str) -> bool:
    """Return whether a rule can be printed and written in a line of a map file."""
    return not _UNPRINTABLE.search(rule)
