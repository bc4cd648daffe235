"""Notes on tokens that files of a tokeniser add or name, and that have no row in the weights."""

from __future__ import annotations

from collections.abc import Iterator

from ...util.text import count, escape, listing
from .documents import BYTE_PAIRS, TOKENIZER, VOCABULARIES
from .folder import ModelFolder
from .tokenizer_files import (
    ADDED,
    WHOLE,
    added_in,
    added_tokens,
    brief_token,
    is_ctc,
    local_tokens,
    named_tokens,
    object_in,
)

__all__ = ["added_beyond", "listed_beyond", "needless", "unlisted_names"]

OLDER = VOCABULARIES[1]


def added_beyond(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on the first file of a tokeniser that adds tokens with ids of ``rows`` or more.

    ``has`` is text that names the tensor with these rows. Tokens of a readable vocabulary are checked elsewhere.
    """
    named = {one.name for one in folder.files}
    for name in (ADDED, TOKENIZER, *((WHOLE,) if folder.vocabulary and folder.tokens is None else ())):
        listed = added_in(folder, name) if name in named else ()
        found = {token: number for token, number in listed if number >= rows and token not in needless(folder)}
        if found:
            examples = listing([f"{token} is {number}" for token, number in found.items()], 3)
            yield f"{escape(name)} adds {count(len(found), 'token')} without a row, since {has}: {examples}"
            return


def needless(folder: ModelFolder) -> set[str]:
    """Return the tokens that need no row: those for begin and end of a sentence, which a CTC model never emits."""
    names = named_tokens(folder) if is_ctc(folder) else {}
    return {token for name, token in names.items() if name in ("bos_token", "eos_token")} - {names.get("pad_token")}


def listed_beyond(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on a vocab.json that skips ids, so that some tokens have an id without a row (``rows`` or more)."""
    if folder.vocabulary != OLDER or folder.tokens is not None:
        return
    listed = object_in(folder, OLDER)
    found = {token: number for token, number in listed.items() if type(number) is int and number >= rows}
    if found and len(listed) <= rows and len(found) < len(listed):
        examples = listing([f"{brief_token(token)} is {number}" for token, number in found.items()], 3)
        yield f"{OLDER} skips ids, which leaves {count(len(found), 'token')} without a row, since {has}: {examples}"


def unlisted_names(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on special tokens that a vocabulary lacks, so that they get ids of ``rows`` or more.

    ``has`` is text that names the tensor with these rows. A tokeniser with code of its own gets no note: it may have
    such tokens.
    """
    tokens = local_tokens(folder)
    if not tokens or folder.vocabulary in BYTE_PAIRS or object_in(folder, TOKENIZER).get("auto_map"):
        return
    names = {name: token for name, token in named_tokens(folder).items() if token not in tokens}
    added = added_tokens(folder) if names else set()
    missing = [token for token in dict.fromkeys(names.values()) if token not in added]
    beyond = [
        f"{next(name for name in names if names[name] == token)} {brief_token(token)} is {number}"
        for number, token in enumerate(missing, len(tokens))
        if number >= rows and token not in needless(folder)
    ]
    if beyond:
        named = f"{count(len(beyond), 'token')} that {escape(folder.vocabulary)} lacks"
        yield f"{TOKENIZER} names {named}, but {has}: {listing(beyond, 3, where='')} without a row"
