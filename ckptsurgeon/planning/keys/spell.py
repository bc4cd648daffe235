"""Spells names as rules that mean just them, in a map file too."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["is_printable", "quoted", "rule_text", "spelled", "spelled_exactly"]

_SPECIAL = re.compile(r"[\\*?\[\]{}=]|(?<!\S)#|\$(?=[\w<+])")
"""What a pattern or a target gives a meaning, the beginning of a comment, and what other tools take for a capture."""
_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""What ends a line, commands a terminal, or has no UTF-8."""
_BOM = "\ufeff"


def quoted(text: str) -> str:
    """Return a text as a pattern or a target spells it."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def rule_text(pattern: str, target: str, *, kind: str = "") -> str:
    """Return the rule of two sides, its outer blanks escaped; a regular expression only where ``kind`` is "re:"."""
    text = f"{kind}{pattern}={target}"
    if not kind and (text[0].isspace() or text.startswith(("re:", _BOM))):
        text = f"\\{text}"
    return f"{text[:-1]}\\{text[-1]}" if text[-1].isspace() else text


def spelled(old: Sequence[str], new: Sequence[str]) -> str:
    """Return the rule that renames a module, each given as its segments."""
    return rule_text(quoted(".".join(old)), quoted(".".join(new)))


def spelled_exactly(old: str, new: str) -> str:
    """Return the rule that renames one key alone, by a regular expression, which can spell any."""
    expression = "".join(f"\\u{ord(c):04x}" if _UNPRINTABLE.match(c) else re.escape(c) for c in old)
    return rule_text(expression, quoted(new), kind="re:")


def is_printable(rule: str) -> bool:
    """Whether a rule can be shown and stand in a line of a map file."""
    return not _UNPRINTABLE.search(rule)
