"""Notes on settings in ``model`` of a tokenizer.json: unknown token, tokens for bytes, scores and dropout."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape
from ....vocabulary.huggingface import BYTE
from ....vocabulary.vocabulary import Vocabulary
from ..folder import ModelFolder
from .spelling import Spelling, types_in
from .tokenizer_files import SPECIAL, WHOLE, added_tokens, brief_token, named_tokens

__all__ = ["chance_notes", "unknown_notes"]

UNKNOWN = re.compile(r"[<\[]_?unk(nown)?_?[>\]]", re.IGNORECASE)
FAILS = "texts with a character that the list lacks cannot be encoded"
FEWEST = 20
"""Equal scores of fewer pieces get no note, because test models have only a few pieces."""
ALL = 240
"""A list with at least this many byte tokens is treated as if it had all 256.

Some lists lack the bytes that never occur in UTF-8, or the bytes of characters that are tokens themselves.
"""


@notes_of(NoteKind.VOCABULARY)
def unknown_notes(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield a note if a tokenizer.json names an unknown token that its list lacks, or if it has an unusable ``unk_id``.

    An ``unk_id`` (of Unigram) is unusable if it is null, beyond the list, or the index of an ordinary word although the
    list has a real unknown token. There is no note if ``unk_token`` is null or ``unk_id`` is absent, nor on tokenisers
    that first turn every text into bytes: they need no unknown token.
    """
    found, head = folder.token_list, folder.tokenizer_head
    types = {kind for name in ("normalizer", "pre_tokenizer") for kind in types_in(head.get(name))}
    if found is None or not spelling.tokens or "ByteLevel" in types:
        return
    if found.kind == "Unigram":
        yield from _unigram(folder, found, spelling)
    elif found.lacks_unknown and _needs(found, spelling.tokens):
        named = brief_token(found.model["unk_token"])
        yield f"the unknown token of {WHOLE}, {named} (unk_token of its model), is not in its list: {FAILS}"


@notes_of(NoteKind.VOCABULARY)
def chance_notes(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield notes if the model in a tokenizer.json ignores its byte tokens, has equal scores only, or has dropout.

    With dropout, the tokeniser splits the same text in different ways.
    """
    found = folder.token_list
    if found is None or not spelling.tokens:
        return
    pieces = sum(BYTE.fullmatch(one) is not None for one in spelling.tokens)
    if found.kind in ("BPE", "Unigram") and pieces >= ALL and found.model.get("byte_fallback") is False:
        yield (
            f"{WHOLE} lists {pieces} tokens for bytes, but byte_fallback of its model is false: characters that it "
            "lacks become the unknown token"
        )
    scored = {one for one, token in zip(found.piece_scores, spelling.tokens, strict=False) if len(token) > 1}
    if len(scored) == 1 and len(found.piece_scores) >= FEWEST:
        yield Note(
            NoteKind.OTHER,
            f"all pieces of {WHOLE} have the same score, {scored.pop():g}: Unigram chooses pieces by their scores, so "
            "all ways to split a text are equally good",
        )
    chance = found.model.get("dropout")
    if isinstance(chance, (int, float)) and 0 < chance <= 1:
        varies = "merges are left out at random, so a text gets different tokens each time"
        yield f"dropout of {WHOLE} is {chance:g}: {varies}"


def _needs(found: Vocabulary, tokens: tuple[str, ...]) -> bool:
    """Return whether the tokeniser with the list ``found`` needs an unknown token (``unk_token``) for some texts.

    WordPiece and BPE need one, but BPE with byte_fallback needs it only if byte tokens are missing. WordLevel needs one
    only if its list has a token such as [UNK]: otherwise its words may be all words that occur.
    """
    if found.kind == "BPE" and found.model.get("byte_fallback") is True:
        return sum(BYTE.fullmatch(one) is not None for one in tokens) < ALL
    return found.kind in ("WordPiece", "BPE") or (found.kind == "WordLevel" and any(map(UNKNOWN.fullmatch, tokens)))


@notes_of(NoteKind.OTHER)
def _unigram(folder: ModelFolder, found: Vocabulary, spelling: Spelling) -> Iterator[str]:
    if "unk_id" not in found.model:
        return
    number, tokens = found.model["unk_id"], spelling.tokens
    if number is None:
        without = ", with byte_fallback too" if found.model.get("byte_fallback") is True else ""
        yield f"unk_id of {WHOLE} is null: {FAILS}{without}"
    elif type(number) is int and number >= len(tokens):
        yield Note(
            NoteKind.TOKENISER_FILES,
            f"unk_id of {WHOLE} is {number}, but its list has {count(len(tokens), 'token')}: the tokeniser cannot be "
            "loaded",
        )
    elif type(number) is int and number >= 0:
        yield from _word(folder, tokens, number)


@notes_of(NoteKind.OTHER)
def _word(folder: ModelFolder, tokens: tuple[str, ...], number: int) -> Iterator[str]:
    """Yield a note if the unknown token, at index ``number``, is a word, although the list has a real unknown token."""
    token, named = tokens[number], named_tokens(folder).get("unk_token", "")
    meant = named if named in tokens else next((one for one in tokens if UNKNOWN.fullmatch(one)), "")
    if meant and token != meant and not SPECIAL.fullmatch(token) and token not in added_tokens(folder):
        place = f"{brief_token(meant)} is {tokens.index(meant)}"
        yield f"unk_id of {WHOLE} is {number}, {escape(brief_token(token))}, while {place}: unknown text becomes a word"
