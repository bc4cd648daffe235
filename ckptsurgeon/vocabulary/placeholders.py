"""Recognises tokens that only keep a row free for later tokens: ``[unused12]``, ``<|reserved_special_token_3|>``."""

from __future__ import annotations

import re

__all__ = ["is_placeholder"]

_PLACEHOLDER = re.compile(
    r"(?:^|[^a-z])(?:unused|reserved|dummy|made_?up|place\W?holder|empty|filler|extra|spare|padding|pad|null)"
    r"(?:[ _.-]?(?:special|control|word|token|tok|id|no))*[^a-z0-9]*\d+",
    re.IGNORECASE,
)
_WHOLE = re.compile(r"\W*_*(?:pad|padding|null|blank|unused|unk|dummy|filler)_*\W*", re.IGNORECASE)


def is_placeholder(token: str) -> bool:
    """Return whether a token is a placeholder or a padding token by its text: a word such as "unused" and a number."""
    return _PLACEHOLDER.search(token) is not None or _WHOLE.fullmatch(token) is not None
