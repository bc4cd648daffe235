"""Notes on tokenisers of wav2vec 2.0 that put letters or word delimiters into texts, but have no such tokens."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import escape
from ..documents import TOKENIZER
from ..folder import ModelFolder
from .tokenizer_files import added_tokens, brief_token, local_tokens, object_in

__all__ = ["ctc_notes"]

CLASS = "Wav2Vec2CTCTokenizer"
LOWERS, DELIMITER = "do_lower_case", "word_delimiter_token"
FEWEST = 20
"""A list with fewer letters of Latin, Greek and Cyrillic (scripts with capitals) may be for texts without spaces."""


@notes_of(NoteKind.VOCABULARY)
def ctc_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes on characters that a wav2vec 2.0 tokeniser puts into all texts, but that its list lacks.

    These are capital letters (``do_lower_case`` of this tokeniser upper-cases texts), and the word delimiter, which
    replaces spaces. ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a folder with the
    same tokeniser whose vocabulary is already in memory. A list of phonemes, or of a script without spaces, gets no
    note on the delimiter.
    """
    settings = object_in(folder, TOKENIZER)
    if settings.get("tokenizer_class") != CLASS:
        return
    tokens = local_tokens(read)
    letters = [one for one in tokens if len(one) == 1 and one.lower() != one.upper()]
    if settings.get(LOWERS) is True and letters and not any(map(str.isupper, letters)):
        has = f"no letter in {escape(folder.vocabulary)} is a capital letter"
        yield f"{LOWERS} of {TOKENIZER} (true) upper-cases texts, but {has}: letters become unknown"
    given = settings.get(DELIMITER, "|")
    token = given.get("content") if isinstance(given, dict) else given
    if not isinstance(token, str) or token in {*tokens, *added_tokens(folder), ""} or len(letters) < FEWEST:
        return
    rows = folder.config.get("vocab_size")
    if isinstance(rows, int) and rows <= len(tokens):  # if there are more rows, the model has one for the delimiter
        lacks = f"{escape(folder.vocabulary)} lacks the {DELIMITER} {brief_token(token)}, which replaces spaces"
        yield Note(
            NoteKind.TOKEN_IDS, f"{lacks}: transformers gives it the id {len(tokens)}, for which the model has no row"
        )
