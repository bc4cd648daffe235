"""Recognises tokens that only keep a row free for later tokens: ``[unused12]``, ``<|reserved_special_token_3|>``."""

from __future__ import annotations

import re

__all__ = ["is_placeholder", "is_reserved"]

_RESERVED = re.compile(
    r"(?:^|[^a-z])(?:unused|reserved|dummy|made_?up|place\W?holder|empty|filler|extra|spare|padding|pad|null)"
    r"(?:[ _.-]?(?:special|control|word|token|tok|id|no))*[^a-z0-9]*\d+",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"\W*_*(?:pad|padding|null|blank|unused|unk|dummy|filler)_*\W*", re.IGNORECASE)


def is_placeholder(token: str) -> bool:
    """Return whether a token is reserved (see ``is_reserved``), or a padding, blank or unknown token, by its text."""
    return is_reserved(token) or _WHOLE.fullmatch(token) is not None


def is_reserved(token: str) -> bool:
    """Return whether a token is reserved for later use by its text: a word such as "unused" and a number."""
    return _RESERVED.search(token) is not None
