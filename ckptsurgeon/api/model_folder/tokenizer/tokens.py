"""Notes on tokens that files of a tokeniser add, and that have no row in the weights."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..documents import TOKENIZER, VOCABULARIES
from ..folder import ModelFolder
from .tokenizer_files import ADDED, WHOLE, added_in, brief_token, is_ctc, named_tokens, object_in

__all__ = ["added_beyond", "listed_beyond", "needless"]

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
