"""Tokens that files of a tokeniser add with numbers for which the embedding has no row."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ...errors import ConfigError, SourceError
from ...util.text import count, escape, listing
from .file_names import TOKENIZER
from .folder import LARGEST, ModelFolder

__all__ = ["ADDED", "WHOLE", "added_beyond", "added_in"]

ADDED = "added_tokens.json"
WHOLE = "tokenizer.json"
LONGEST = 10
"""Digits of a number that is a row's."""


def added_beyond(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on the first file of a tokeniser that numbers tokens from ``rows`` on; ``has`` says whose these are.

    What a vocabulary that could be read has is counted already.
    """
    named = {one.name for one in folder.files}
    for name in (ADDED, TOKENIZER, *((WHOLE,) if folder.vocabulary and folder.tokens is None else ())):
        found = {token: number for token, number in added_in(folder, name) if number >= rows} if name in named else {}
        if found:
            said = listing([f"{token} is {number}" for token, number in found.items()], 3)
            yield f"{escape(name)} adds {count(len(found), 'token')} without a row, and {has}: {said}"
            return


def added_in(folder: ModelFolder, name: str) -> Iterator[tuple[str, int]]:
    """Yield the tokens that a file adds with their numbers; none of a file that cannot be read, which is said."""
    try:
        document = json.loads(folder.read(name, LARGEST))
    except (ConfigError, SourceError, ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    if name == ADDED:
        yield from ((token, number) for token, number in document.items() if type(number) is int)
    elif name == WHOLE:
        rows = document.get("added_tokens")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get("content"), str):
                yield row["content"], row["id"]
    else:
        decoder = document.get("added_tokens_decoder")
        for number, row in decoder.items() if isinstance(decoder, dict) else ():
            token = row.get("content") if isinstance(row, dict) else None
            if isinstance(token, str) and number.isdecimal() and len(number) < LONGEST:
                yield token, int(number)
