"""Notes on two files of one tokeniser that give tokens different ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ...errors import ConfigError, SourceError
from ...storage.read.uri import scheme_of
from ...util.text import brief_repr, escape
from ...vocabulary.read import vocabulary_of
from .documents import VOCABULARIES
from .folder import LARGEST, ModelFolder
from .merge_rules import merge_rule_notes
from .tokenizer_files import WHOLE

__all__ = ["token_list_notes"]

OLDER, LINES = VOCABULARIES[1:3]


def token_list_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if two files of a tokeniser do not fit together: vocab.json and merges.txt, or two token lists.

    Files that would have to be fetched, or that cannot be read, are not compared.
    """
    for older in (OLDER, LINES):
        yield from _other_tokens(folder, older)
    yield from merge_rule_notes(folder)


def _other_tokens(folder: ModelFolder, older: str) -> Iterator[str]:
    named = {one.name: one.path for one in folder.files}
    if not {WHOLE, older} <= named.keys() or scheme_of(named[older]) or folder.tokens is None:
        return
    theirs: tuple[str, ...] = ()
    with suppress(ConfigError, SourceError):
        theirs = vocabulary_of(older, folder.read(older, LARGEST)).tokens
    pairs = list(zip(theirs, folder.tokens, strict=False))
    other = [row for row, (one, two) in enumerate(pairs) if one != two]
    if len(other) * 2 > len(pairs):
        row = other[0]
        one, two = (escape(brief_repr(token)) for token in pairs[row])
        differ = f"have other tokens in {len(other)} of {len(pairs)} rows"
        yield f"{older} and {WHOLE} {differ}: row {row} is {one} in {older} and {two} in {WHOLE}"
