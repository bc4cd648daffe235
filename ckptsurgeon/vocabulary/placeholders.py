"""Recognises tokens that only keep a row free for later tokens: ``[unused12]``, ``<|reserved_special_token_3|>``."""

from __future__ import annotations

import re

__all__ = ["is_placeholder", "is_reserved"]

_WORDS = r"unused|reserved|dummy|made_?up|place\W?holder|empty|filler|extra|spare|padding|pad|null"
_NUMBERED = r"(?:^|[^a-z])(?:{})(?:[ _.-]?(?:special|control|word|token|tok|id|no))*[^a-z0-9]*\d+"
_RESERVED = re.compile(_NUMBERED.format(_WORDS), re.IGNORECASE)
_PLACEHOLDER = re.compile(_NUMBERED.format(f"{_WORDS}|token|tok"), re.IGNORECASE)
_WHOLE = re.compile(
    r"\W*_*(?:pad|padding|null|blank|unused|reserved|unk|dummy|filler|made_?up|mask)"
    r"(?:_?(?:token|word))?(?:_[a-z]|\d+)?_*\W*",
    re.IGNORECASE,
)


def is_placeholder(token: str) -> bool:
    """Return whether the text of a token shows that it is a placeholder or a padding token: "unused", "token_12"."""
    return _PLACEHOLDER.search(token) is not None or _WHOLE.fullmatch(token) is not None


def is_reserved(token: str) -> bool:
    """Return whether the text of a token shows that it is reserved for later use: a word like "unused" and a number."""
    return _RESERVED.search(token) is not None
