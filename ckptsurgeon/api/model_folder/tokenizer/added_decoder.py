"""Notes on added tokens whose id in tokenizer_config.json differs from their id in the token list."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape, listing
from ....vocabulary.row_order import is_of_pieces
from ..documents import TOKENIZER, VOCABULARIES
from ..folder import ModelFolder
from .tokenizer_files import MORE, added_in, brief_token, local_tokens, object_in

__all__ = ["decoder_notes"]


@notes_of(NoteKind.TOKEN_IDS)
def decoder_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note if tokens have other ids in ``added_tokens_decoder`` than in the vocabulary.

    ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a folder with the same tokeniser
    whose vocabulary is already in memory. transformers uses the ids of the vocabulary, and gives a token that the
    vocabulary lacks the next free id.
    """
    is_read = read.vocabulary in VOCABULARIES[:3] or is_of_pieces(read.vocabulary)
    is_known = read.token_list is not None and read.token_list.is_whole and is_read
    tokens = local_tokens(read) if is_known and MORE in object_in(folder, TOKENIZER) else ()
    if not tokens or object_in(folder, TOKENIZER).get("auto_map"):
        return
    places, listed = {token: row for row, token in enumerate(tokens)}, escape(folder.vocabulary)
    found, free = list[str](), len(tokens)
    for token, row in sorted(added_in(folder, TOKENIZER), key=lambda one: one[1]):
        if token in places:
            if places[token] != row:
                found.append(f"{brief_token(token)} is {row} in {TOKENIZER} and {places[token]} in {listed}")
        elif row >= len(tokens) and (not read.has_all_tokens or row == free):
            free += 1
        elif 0 <= row < len(tokens) and tokens[row] and not read.has_all_tokens:
            found.append(f"{row} is {brief_token(token)} in {TOKENIZER} and {brief_token(tokens[row])} in {listed}")
        elif read.has_all_tokens:
            own = f", where {row} is {brief_token(tokens[row])}" if 0 <= row < len(tokens) else ""
            found.append(
                f"{brief_token(token)} is {row} in {TOKENIZER} and missing in {listed}{own}: it gets the id {free}"
            )
            free += 1
    if found:
        files = f"{MORE} of {TOKENIZER} and {listed}"
        yield f"{files} have different ids for {count(len(found), 'token')}: {listing(found, 3, where='')}"
