"""Notes on tokenisers that lower-case texts although their vocabulary has capital letters, or the reverse."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence

from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import escape, listing
from ....vocabulary.row_order import kind_of
from ..documents import TOKENIZER, VOCABULARIES
from ..folder import ModelFolder
from .text_differences import normalising_steps
from .tokenizer_files import SPECIAL, WHOLE, added_tokens, brief_token, local_tokens, object_in

__all__ = ["case_notes"]

LINES = VOCABULARIES[2]
KIND = "WordPiece"
KINDS = (KIND, "BPE", "Unigram")
FIELD = "do_lower_case"
OF_BERT = frozenset((
    "bert", "convbert", "distilbert", "electra", "funnel", "layoutlm", "layoutlmv2", "lxmert", "mobilebert", "mpnet",
    "retribert", "splinter", "squeezebert",
))  # fmt: skip
"""Names of transformers' tokenisers that read ``do_lower_case``: in lower case, without ``Tokenizer``."""
OF_PIECES = {
    **dict.fromkeys(("albert", "debertav2", "xlnet"), FIELD),
    "flaubert": "do_lowercase",
    "xlm": "do_lowercase_and_remove_accent",
}
"""{name of a transformers tokeniser for BPE or Unigram: its field for lower-casing in tokenizer_config.json}"""
ON_PURPOSE = ("rembert", "siglip", "tipsv2", "videoprism")
"""Beginnings of names of tokenisers or model types that may lower-case texts although tokens have capital letters.

SigLIP 2 was trained in this way, with Gemma's tokeniser. For the other types, it is not known whether their token lists
are lower-case.
"""
END = "</w>"
CAPITAL = re.compile(r"[A-Z]")
LEAST = 100
"""If more than 1 in this many words has capital letters, the list is for texts with capital letters.

In BERT's list for such texts (cased), every third word has capital letters.
"""


@notes_of(NoteKind.VOCABULARY)
def case_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note if a tokeniser lower-cases texts although its vocabulary has capital letters, or the reverse.

    A vocabulary for lower-cased texts has capital letters in special tokens only, or, in byte-level BPE, as single
    letters, which represent bytes. ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a
    folder with the same tokeniser whose vocabulary is already in memory. There is no note on missing capital letters if
    the vocabulary is for BPE or Unigram. There is none either if it lacks a letter from a to z, because it may be for
    another script.
    """
    said, is_of_words = list(_said(folder, read)), _is_of_words(read)
    if not any(lowers or is_of_words for _, lowers in said):
        return
    added = added_tokens(folder)
    words = [one for one in local_tokens(read) if not SPECIAL.fullmatch(one) and one not in added]
    words = words if is_of_words else [one for one in words if len(one.removesuffix(END)) > 1]
    capitals = [one for one in words if CAPITAL.search(one)]
    name = escape(folder.vocabulary)
    for lowers in (True, False):
        by = " and ".join(text for text, value in said if value is lowers)
        if by and lowers and len(capitals) * LEAST > len(words):
            which = "words" if is_of_words else "tokens of several characters"
            has = f"{len(capitals)} of {len(words)} {which} in {name} have capital letters"
            yield (f"{by} lower-cases texts, but {has}, so the tokeniser never produces them: {_examples(capitals)}")
        elif by and not lowers and is_of_words and not capitals and _has_letters(words):
            unknown = "words with capital letters become unknown"
            yield Note(NoteKind.CONFIGURATION, f"{by} keeps capital letters, but no word in {name} has one: {unknown}")


def _examples(words: Sequence[str]) -> str:
    return listing([brief_token(one) for one in words], 3, where="")


def _has_letters(words: Sequence[str]) -> bool:
    return set(string.ascii_lowercase) <= {one.removeprefix("##") for one in words}


def _is_of_words(read: ModelFolder) -> bool:
    """Return whether a vocabulary is for WordPiece: it is a vocab.txt, or a tokenizer.json with this kind of model."""
    if read.has_all_tokens:
        return read.token_list is not None and read.token_list.kind == KIND
    return read.vocabulary == LINES


def _said(folder: ModelFolder, read: ModelFolder) -> Iterator[tuple[str, bool]]:
    """Yield (name, value) of each setting that decides whether a tokeniser lower-cases texts.

    ``folder`` has the settings, and ``read`` the vocabulary: the same folder, or one with the same tokeniser.
    """
    settings = object_in(folder, TOKENIZER)
    names = (kind_of(settings, folder.config), str(folder.config.get("model_type")))
    is_of_words = _is_of_words(read)
    if not local_tokens(read) or (not is_of_words and any(one.startswith(ON_PURPOSE) for one in names)):
        return
    is_class = not str(settings.get("tokenizer_class")).startswith("PreTrained")
    field = (FIELD if names[0] in OF_BERT else "") if is_of_words else OF_PIECES.get(names[0], "")
    value = settings.get(field)
    if isinstance(value, bool) and is_class and settings.get("do_basic_tokenize") is not False:
        yield f"{field} of {TOKENIZER} ({str(value).lower()})", value
    lowercase = normalising_steps(read).get("lowercase") if read.has_all_tokens else None
    if isinstance(lowercase, bool) and read.token_list is not None and read.token_list.kind in KINDS:
        yield f"the normalizer of {WHOLE}", lowercase
