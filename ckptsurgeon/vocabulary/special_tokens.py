"""The note on special tokens that only one of two token lists has, with pairs that may have the same role."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from ..planning.plan.rows import VocabularyRows
from ..util.text import brief_repr, escape, listing
from .placeholders import is_reserved
from .replacement import NewVocabulary
from .spoken import BLANKS, SPACES

__all__ = ["special_tokens_note"]

_SPECIAL = re.compile(r"<(?!0x[0-9A-Fa-f]{2}>)[^<>]+>|\[[^\[\]]+\]")
"""Matches special tokens: a name in brackets, except for tokens of single bytes."""
_MARKS = re.compile(r"^[<\[|｜]+|[|｜\]>]+$")
_ROLES = {
    **dict.fromkeys(("unknown", "oov"), "unk"),
    **dict.fromkeys(("s", "bos", "start"), "sos"),
    **dict.fromkeys(("/s", "end", "endoftext"), "eos"),
    "eos/sos": "sos/eos",
}
"""{name of a special token, without brackets: the other name of a token with the same role}"""
_MOST = 3
"""The largest number of tokens of each kind, and of pairs, that the note names."""


def special_tokens_note(rows: VocabularyRows, change: NewVocabulary) -> Iterator[str]:
    """Yield a note on special tokens of ``change`` whose rows are lost or new; none if no such row is.

    ``rows`` are the rows of the new vocabulary. Tokens that only keep a row free are not special.
    """
    kept = {row for row in rows.rows if isinstance(row, int)}
    pairs = zip(change.new.tokens, rows.rows, strict=False)
    new = [token for token, row in pairs if not isinstance(row, int) and _is_special(token)]
    lost = [token for row, token in enumerate(change.source.tokens) if row not in kept and _is_special(token)]
    old_list, new_list = map(escape, change.names)
    told = [f"{_named(lost)} of {old_list} {_are(lost)} lost"] if lost else []
    told += [f"{_named(new)} of {new_list} {_are(new)} new"] if new else []
    if not told:
        return
    alike = list(_alike(lost, new))
    options = " ".join(f"--token-map {shlex.quote(f'{one}={other}')}" for one, other in alike[:_MOST])
    row = "the two have the same role, keep the row" if len(alike) == 1 else "two have the same role, keep their rows"
    advice = f"; if {row} with {escape(options)}" if alike else ""
    yield f"special tokens: {', and '.join(told)}{advice}"


def _is_special(token: str) -> bool:
    is_named = token in BLANKS or token in SPACES or _SPECIAL.fullmatch(token) is not None
    return is_named and not is_reserved(token)


def _named(tokens: Sequence[str]) -> str:
    return listing([brief_repr(token, 24) for token in tokens], _MOST, where="")


def _are(tokens: Sequence[str]) -> str:
    return "is" if len(tokens) == 1 else "are"


def _alike(lost: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of a lost and a new token that may have the same role, by their names; each token is in one pair."""
    left = list(new)
    for token in lost:
        found = next((one for one in left if _role(one) == _role(token)), None)
        if found is None and token in BLANKS:
            found = next((one for one in left if one in BLANKS), None)
        if found is not None:
            left.remove(found)
            yield token, found


def _role(token: str) -> str:
    if token in SPACES:
        return SPACES[1]
    name = _MARKS.sub("", token).lower()
    return _ROLES.get(name, name)
