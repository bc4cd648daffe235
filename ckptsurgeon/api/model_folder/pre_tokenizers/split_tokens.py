"""Notes on tokens that the pre-tokeniser of tokenizer.json splits, so that the tokeniser never produces them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, listing
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import added_tokens, brief_token, local_tokens
from .patterns import PUNCTUATION, SPACE_MARKS
from .steps import BYTES, PIECES, Step, kinds_in, steps_of

__all__ = ["split_token_notes"]

CLASSES = {
    "several digits": "[0-9]{2,8}", "a space with digits": "_[0-9]{1,7}",
    "letters": "[A-Za-z]{2,8}", "a space with letters": "_[A-Za-z]{1,7}",
    "punctuation": f"[{PUNCTUATION}]{{2,8}}", "a space with punctuation": f"_[{PUNCTUATION}]{{1,7}}",
}  # fmt: skip
"""{kind of tokens: regular expression that matches them, with "_" instead of the mark of a space}

Tokens of more than 8 characters are left out, so that an expression from an untrusted file cannot take long.
"""
FEWEST, SHARE, MOST = 8, 0.5, 128
"""A kind is reported if at least ``FEWEST``, and more than ``SHARE``, of its tried tokens are split.

At most ``MOST`` tokens of a kind are tried. Published lists have a few tokens that their pre-tokeniser splits: lists of
tiktoken have parts of contractions as tokens, and some lists were trained with another pre-tokeniser than the one that
now reads them.
"""
FIRST = 20_000
"""Tokens of letters are frequent, so they are searched only among this many tokens at the beginning of a list."""


@notes_of(NoteKind.VOCABULARY)
def split_token_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the pre-tokeniser in tokenizer.json splits most tokens of a kind, such as several digits.

    Only lists of byte-level BPE and of sentencepiece are checked, and only if ckpt knows all steps of the
    pre-tokeniser. For each token, the pre-tokeniser gets a text that is only this token.
    """
    found = folder.token_list if folder.has_all_tokens and local_tokens(folder) else None
    if found is None or found.kind not in ("BPE", "Unigram"):
        return
    step = folder.tokenizer_head.get("pre_tokenizer")
    kinds = set(kinds_in(step))
    mark = SPACE_MARKS[0] if BYTES in kinds else SPACE_MARKS[1]
    steps = steps_of(step) if kinds & {BYTES, PIECES} else None
    if not steps or kinds >= {BYTES, PIECES} or not any(token[:1] == mark != token for token in found.tokens):
        return
    split = dict[str, list[str]]()
    tried, is_part = 0, False
    for name, tokens in _of_kinds(found.tokens, mark).items():
        lost = [token for token in tokens if not _is_whole(token, mark, steps)]
        if len(lost) >= FEWEST and len(lost) > SHARE * len(tokens):
            split[name] = lost
            tried, is_part = tried + len(tokens), is_part or len(tokens) * 2 > MOST
    if added := added_tokens(folder) if split else set():
        split = {name: [one for one in tokens if one not in added] for name, tokens in split.items()}
    lost = [token for tokens in split.values() for token in tokens]
    if len(lost) >= FEWEST:
        examples = listing([brief_token(tokens[0]) for tokens in split.values() if tokens], 3, where="")
        of = ", of ".join(split)
        many = count(tried, "tried token" if is_part else "token")
        yield (
            f"the pre_tokenizer of tokenizer.json splits {len(lost)} of {many} of {of}, such as "
            f"{examples}: the tokeniser never produces them, so perhaps it is the pre_tokenizer of another model"
        )


def _of_kinds(tokens: Sequence[str], mark: str) -> Mapping[str, Sequence[str]]:
    """Return up to ``MOST`` tokens of each kind in ``CLASSES``, evenly spread over the list."""
    text = "\n".join(("", *tokens, ""))
    first = len("\n".join(("", *islice(tokens, FIRST))))
    found = dict[str, Sequence[str]]()
    for name, pattern in CLASSES.items():
        line = re.compile(f"\n({pattern.replace('_', mark, 1) if pattern[0] == '_' else pattern})(?=\n)")
        every = line.findall(text, 0, first + 1 if "letters" in name else len(text))
        found[name] = every[:: len(every) // MOST + 1]
    return found


def _is_whole(token: str, mark: str, steps: Sequence[Step]) -> bool:
    """Return whether the pre-tokeniser's ``steps`` leave a text that is only the token ``token`` in one piece."""
    pieces = [token.replace(mark, " ")]
    for step in steps:
        pieces = [one for piece in pieces for one in step(piece)]
    return any(token in piece.replace(" ", mark) for piece in pieces)
