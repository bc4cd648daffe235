r"""Captures as other tools spell them (``\1``, ``$1``), which here would be letters of a name without a word."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["foreign_capture", "in_our_spelling", "spelling_hint"]

_FOREIGN = re.compile(
    r"\{[\\$](?P<inner>[0-9]+)\}"  # {\1}, {$1}
    r"|\\(?P<sed>[0-9]+)|\\[gk](?:<(?P<python>\w+)>|\{(?P<perl>\w+)\})"  # \1, \g<1>, \k<name>, \g{1}
    r"|\$(?P<dollar>[0-9]+)|\$\{(?P<shell>\w+)\}|\$<(?P<script>\w+)>"  # $1, ${1}, $<name>
    r"|\$\+\{(?P<hash>\w+)\}|\$(?P<named>[^\W\d]\w*)"  # $+{name}, $name
    r"|\\.",
    re.DOTALL,
)


def foreign_capture(text: str, names: Collection[str] = ()) -> str:
    """Return the first capture of a target that is in the spelling of another tool, else ''.

    A bare ``$name`` is one only of the ``names`` that the pattern catches; any other is a name with a dollar.
    """
    return next((found[0] for found in _FOREIGN.finditer(text) if _is_capture(found, names)), "")


def in_our_spelling(text: str, names: Collection[str] = ()) -> str:
    """Return a target with the captures of other tools spelled as ours: ``{1}``, ``{name}``."""
    return _FOREIGN.sub(lambda found: f"{{{_inner(found)}}}" if _is_capture(found, names) else found[0], text)


def _is_capture(found: re.Match[str], names: Collection[str]) -> bool:
    return found.lastgroup is not None and (found.lastgroup != "named" or found["named"] in names)


def _inner(found: re.Match[str]) -> str:
    return found[found.lastgroup or 0]


def spelling_hint(foreign: str, written: str, captures: int) -> str:
    """Return what to do about a foreign capture; ``written`` is the rule in our spelling, '' where it has none."""
    char, name = ("$", "dollar") if "$" in foreign else ("\\", "backslash")
    literal = f"\\{char} is a {name} in the name"
    if written:
        return f"Write {written}; {literal}."
    caught = f"{{1}} to {{{captures}}}" if captures > 1 else "{1}" if captures else "nothing"
    return f"The pattern catches {caught}; {literal}."
