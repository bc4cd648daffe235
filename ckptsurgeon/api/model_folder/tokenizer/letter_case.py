"""Notes on WordPiece tokenisers that lower-case texts although their vocabulary has capital letters, or the reverse."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence

from ....util.text import escape, listing
from ....vocabulary.row_order import kind_of
from ..documents import TOKENIZER, VOCABULARIES
from ..folder import ModelFolder
from .text_differences import normalising_steps
from .tokenizer_files import SPECIAL, WHOLE, added_tokens, brief_token, local_tokens, object_in

__all__ = ["case_notes"]

LINES = VOCABULARIES[2]
KIND = "WordPiece"
FIELD = "do_lower_case"
OF_BERT = frozenset((
    "bert", "convbert", "distilbert", "electra", "funnel", "layoutlm", "layoutlmv2", "lxmert", "mobilebert", "mpnet",
    "retribert", "splinter", "squeezebert",
))  # fmt: skip
"""Names of transformers' tokenisers that read ``do_lower_case``, in lower case and without ``Tokenizer``."""
CAPITAL = re.compile(r"[A-Z]")
LEAST = 100
"""If more than one word in 100 has capital letters, the list is for texts with capital letters.

In the list of BERT for such texts (cased), every third word has capital letters.
"""


def case_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note if a tokeniser lower-cases texts although its vocabulary has capital letters, or the reverse.

    A vocabulary for lower-cased texts has capital letters in special tokens only. ``read`` is the same folder, or one
    with the same tokeniser whose vocabulary is loaded already. A vocabulary that lacks a letter from a to z may be for
    another script, and gets no note on missing capital letters.
    """
    said = list(_said(folder, read))
    if not said:
        return
    added = added_tokens(folder)
    words = [one for one in local_tokens(read) if not SPECIAL.fullmatch(one) and one not in added]
    capitals = [one for one in words if CAPITAL.search(one)]
    name = escape(folder.vocabulary)
    for lowers in (True, False):
        by = " and ".join(text for text, value in said if value is lowers)
        if by and lowers and len(capitals) * LEAST > len(words):
            has = f"{len(capitals)} of {len(words)} words in {name} have capital letters"
            yield f"{by} lower-cases texts, but {has}, so the tokeniser never produces them: {_examples(capitals)}"
        elif by and not lowers and not capitals and _has_letters(words):
            unknown = "words with capital letters become unknown"
            yield f"{by} keeps capital letters, but no word in {name} has one: {unknown}"


def _examples(words: Sequence[str]) -> str:
    return listing([brief_token(one) for one in words], 3, where="")


def _has_letters(words: Sequence[str]) -> bool:
    return set(string.ascii_lowercase) <= {one.removeprefix("##") for one in words}


def _said(folder: ModelFolder, read: ModelFolder) -> Iterator[tuple[str, bool]]:
    """Yield (name, value) of each setting that decides whether a WordPiece tokeniser lower-cases texts.

    ``folder`` has the settings, and ``read`` the vocabulary: the same folder, or one with the same tokeniser.
    """
    settings = object_in(folder, TOKENIZER)
    is_whole = read.has_all_tokens and read.token_list is not None and read.token_list.kind == KIND
    if not local_tokens(read) or not (is_whole or read.vocabulary == LINES):
        return
    value, named = settings.get(FIELD), settings.get("tokenizer_class")
    is_of_bert = kind_of(settings, folder.config) in OF_BERT and not str(named).startswith("PreTrained")
    if isinstance(value, bool) and is_of_bert and settings.get("do_basic_tokenize") is not False:
        yield f"{FIELD} of {TOKENIZER} ({str(value).lower()})", value
    lowercase = normalising_steps(read).get("lowercase") if is_whole else None
    if isinstance(lowercase, bool):
        yield f"the normalizer of {WHOLE}", lowercase
