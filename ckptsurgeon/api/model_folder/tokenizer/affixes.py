"""Notes on a tokenizer.json whose prefix or suffix for parts of words does not fit its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count
from ..folder import ModelFolder
from .spelling import INSIDE, SHARE, Spelling
from .tokenizer_files import WHOLE, brief_token

__all__ = ["affix_notes"]

PREFIX, SUFFIX = "continuing_subword_prefix", "end_of_word_suffix"
END = "</w>"


@notes_of(NoteKind.VOCABULARY)
def affix_notes(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield a note if no token has the configured prefix or suffix, or if many have one that is not configured."""
    found = folder.token_list
    if found is None or not spelling.tokens:
        return
    prefix, suffix = found.model.get(PREFIX), found.model.get(SUFFIX)
    if found.kind == "WordPiece" and isinstance(prefix, str):
        yield from _other_prefix(prefix, spelling)
    elif found.kind == "BPE":
        if prefix and isinstance(prefix, str) and not _has(spelling, prefix, at_end=False):
            yield _none(PREFIX, prefix, "begins", "all characters of a word after the first are lost or unknown")
        if suffix and isinstance(suffix, str) and not _has(spelling, suffix, at_end=True):
            yield _none(SUFFIX, suffix, "ends", "the last character of each word is lost or unknown")
        if not suffix and not _mentions(folder, END):
            yield from _unread(spelling)


def _has(spelling: Spelling, affix: str, *, at_end: bool) -> bool:
    return any((one.endswith(affix) if at_end else one.startswith(affix)) and one != affix for one in spelling.tokens)


def _none(field: str, affix: str, begins: str, what: str) -> str:
    return f"{field} of {WHOLE} is {brief_token(affix)}, but no token {begins} with it: {what}"


@notes_of(NoteKind.VOCABULARY)
def _other_prefix(prefix: str, spelling: Spelling) -> Iterator[str]:
    """Yield a note if no WordPiece token begins with the configured prefix, but many begin with ``##``."""
    if spelling.mark == INSIDE and prefix != INSIDE and not (prefix and _has(spelling, prefix, at_end=False)):
        has = f"{count(len(spelling.marked), 'token')} begin with {INSIDE}"
        none = " and none with this prefix" if prefix else ""
        yield f"{PREFIX} of {WHOLE} is {brief_token(prefix)}, but {has}{none}: words of several pieces become unknown"


def _mentions(folder: ModelFolder, mark: str) -> bool:
    """Return whether the normaliser or the pre-tokeniser may insert ``mark``: whether their settings contain it."""
    return any(mark in json.dumps(folder.tokenizer_head.get(name)) for name in ("normalizer", "pre_tokenizer"))


@notes_of(NoteKind.VOCABULARY)
def _unread(spelling: Spelling) -> Iterator[str]:
    ending = [one for one in spelling.tokens if one.endswith(END) and one != END]
    if len(ending) * SHARE > len(spelling.tokens):
        has = f"{WHOLE} has {count(len(ending), 'token')} that end with {END} ({brief_token(ending[0])})"
        yield f"{has}, but no {SUFFIX}: the tokeniser never produces them"
